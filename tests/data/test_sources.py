from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, Subset, TensorDataset, random_split

from csqtool.data import ArrayDataset, DataSource, as_source, check_fit, first_samples, load_data
from csqtool.data.streams import Stream
from csqtool.errors import ConfigError, CsqtoolError, DataError
from csqtool.task import Classification, Regression, as_task

INPUTS = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(12) % 4
DATASET = TensorDataset(INPUTS, TARGETS)
BATCHES = list(zip(INPUTS.split(5), TARGETS.split(5), strict=True))


class Passes:
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from BATCHES


GIVEN: dict[str, Any] = {
    "map-style data set": DATASET,
    "loader": DataLoader(DATASET, batch_size=5),
    "list of batches": BATCHES,
    "tuple of batches": tuple(BATCHES),
    "object that gives its batches anew": Passes(),
    "pair of tensors": (INPUTS, TARGETS),
    "pair of arrays": (INPUTS.numpy(), TARGETS.numpy()),
    "pair of both": (INPUTS.double().numpy(), TARGETS.to(torch.uint8)),
    "list of samples": [(x, int(y)) for x, y in zip(INPUTS, TARGETS, strict=True)],
    "subset": Subset(TensorDataset(INPUTS.repeat(2, 1), TARGETS.repeat(2)), list(range(12))),
    "batches of arrays": [(x.numpy(), y.numpy().astype(np.int32)) for x, y in BATCHES],
    "data set with small labels": TensorDataset(INPUTS.double(), TARGETS.to(torch.int16)),
}


@pytest.mark.parametrize("name", GIVEN)
def test_everything_that_may_be_given_has_the_same_samples(name: str) -> None:
    for source in (
        as_source(train=GIVEN[name], test=GIVEN[name]),
        as_source((GIVEN[name], GIVEN[name])),
        as_source((GIVEN[name], GIVEN[name], "classification")),
        as_source([GIVEN[name], GIVEN[name]]),
    ):
        assert source.source is None
        assert source.problem() is None
        check_fit(torch.nn.Linear(3, 4), source)
        for part in (source.train, source.test):
            assert len(part) == 12
            found = first_samples(part)
            assert found is not None
            assert torch.equal(found[0], INPUTS)
            assert torch.equal(found[1], TARGETS)
            assert (found[0].dtype, found[1].dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("name", [name for name in GIVEN if not name.startswith("tuple")])
def test_where_one_part_is_needed_data_may_be_that_part(part: str, name: str) -> None:
    for source in (as_source(GIVEN[name], needs=(part,)), as_source(**{part: GIVEN[name]}, needs=(part,))):
        assert len(getattr(source, part)) == 12
        assert source.problem() is None
        with pytest.raises(ConfigError, match="data; give "):
            len(getattr(source, "test" if part == "train" else "train"))


def test_a_pair_of_parts_serves_where_one_is_needed() -> None:
    assert len(as_source((DATASET, BATCHES[:1]), needs=("test",)).test) == 5
    assert len(as_source(random_split(DATASET, [9, 3])).test) == 3


def test_a_name_is_loaded_with_its_task_augmentation_and_record_of_where_from() -> None:
    for source in (as_source("digits"), as_source(train="digits", test="digits"), as_source("digits", needs=("test",))):
        assert (source.name, source.source, len(source.test)) == ("digits", "digits", 450)
        assert source.augment == load_data("digits").augment
        assert source.part_name("test") == "the test set of digits"
    mixed = as_source(train="digits", test=GIVEN["loader"])
    assert mixed.source is None
    assert mixed.augment is not None
    assert as_source(train=DATASET, test="digits").augment is None


def test_a_data_source_is_taken_as_it_is_and_its_loaders_are_understood() -> None:
    given = DataSource("mine", DATASET, DataLoader(DATASET, batch_size=5), Classification())  # type: ignore[arg-type]
    source = as_source(given)
    assert source.train is DATASET
    assert isinstance(source.test, Stream)
    assert source.test.name == "the test set of mine"


def test_a_factory_may_return_loaders_and_pairs_of_arrays(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text(
        "import torch\nfrom torch.utils.data import DataLoader, TensorDataset\n"
        "DATA = torch.zeros(6, 3), torch.ones(6, 2)\n"
        "def loaders():\n    return DataLoader(TensorDataset(*DATA), batch_size=4), DATA, 'regression'\n"
        "def once():\n    return iter([DATA]), DATA\n"
        "def one():\n    return DATA[0]\n"
    )
    spec = f"{tmp_path}/data.py:loaders"
    source = load_data(spec)
    assert (len(source.train), len(source.test), source.task.name, source.source) == (6, 6, "regression", spec)
    assert isinstance(source.test, ArrayDataset)
    assert source.test.targets.dtype == torch.float32
    with pytest.raises(DataError, match=r"the training set of .*:once is a list_iterator and can be read only once"):
        load_data(f"{tmp_path}/data.py:once")
    with pytest.raises(DataError, match=r"must return \(train, test\)"):
        load_data(f"{tmp_path}/data.py:one")


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from zip(INPUTS, TARGETS, strict=True)

    def __len__(self) -> int:
        return 12


class Unsized:
    def __getitem__(self, index: int) -> Any:
        return INPUTS[index], TARGETS[index]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((batch for batch in BATCHES), "train is a generator and can be read only once; give a list of its batches"),
        (iter(BATCHES), "train is a list_iterator and can be read only once"),
        (zip(INPUTS, TARGETS, strict=True), "train is a zip and can be read only once"),
        (INPUTS, r"train is one array; give a pair \(inputs, targets\)"),
        (Endless(), r"give DataLoader\(train, batch_size=…\)"),
        (Unsized(), r"train: Unsized has no length"),
        ({"x": INPUTS}, "train is dict; give a data set"),
        (7, "train is int; give a data set, a DataLoader, a list of batches"),
        ((INPUTS, TARGETS[:3]), "train: 12 inputs but 3 targets"),
        ((INPUTS, TARGETS.float()), r"train: targets must be integer labels \[N\], got torch.float32\[12\]"),
        ((INPUTS[:, 0], TARGETS), r"train: inputs must be numbers of shape \[N, …\], got torch.float32\[12\]"),
        ((np.array([["a"]]), TARGETS[:1]), r"train: inputs must be numbers of shape \[N, …\], got <U1\[1, 1\]"),
        ((INPUTS + 1j, TARGETS), "train: inputs must be numbers"),
        (
            DataLoader(DATASET, sampler=DistributedSampler(DATASET, num_replicas=2, rank=0)),
            "train: its DistributedSampler gives each process other samples",
        ),
    ],
)
def test_what_cannot_be_read_again_and_again_is_refused_in_one_line(given: Any, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        as_source(train=given, test=DATASET)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (as_source, "no training data; give train: a data set"),
        (lambda: as_source(train=DATASET), "no test data; give test: a data set"),
        (lambda: as_source(test=DATASET, needs=("train",)), "no training data"),
        (lambda: as_source("digits", test=DATASET), "data was given and train or test as well"),
        (lambda: as_source(DATASET), r"data must be a source name or a pair \(train, test\) here"),
        (lambda: as_source((INPUTS, TARGETS)), r"data must be a source name or a pair \(train, test\) here"),
        (lambda: as_source("digits", task="regression"), "digits is data for classification, not for regression"),
        (lambda: as_source(train="digits", test=DATASET, task="regression"), "digits is data for classification"),
        (lambda: as_source(train="digitz", test=DATASET), "did you mean 'digits'"),
        (lambda: as_source(train=DATASET, test=DATASET, task="regresion"), "did you mean 'regression'"),
        (lambda: as_source(train=DATASET, test=DATASET, task=Regression), "the task Regression is a class"),
        (lambda: as_source(train=DATASET, test=DATASET, task=DATASET), "TensorDataset lacks name, metric_name, labels"),
        (
            lambda: as_source(train=GIVEN["loader"], test=DATASET, batch_size=8),
            "batch_size 8 goes with data sets; train is a loader that makes its own batches",
        ),
    ],
)
def test_what_is_missing_or_excludes_each_other_is_said_in_one_line(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1


def test_a_batch_size_goes_with_data_sets_whatever_the_test_set_is() -> None:
    assert as_source(train=DATASET, test=GIVEN["loader"], batch_size=8).train is DATASET


class Smooth(Classification):
    name = "smooth"
    metric_name = "share"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(outputs, targets, label_smoothing=0.1)


def test_a_task_of_the_user_s_judges_objects_and_takes_the_place_of_a_named_source_s_own() -> None:
    for source in (
        as_source(train=DATASET, test=DATASET, task=Smooth()),
        as_source((DATASET, DATASET, Smooth())),
        as_source("digits", task=Smooth()),
        as_source(DataSource("mine", DATASET, DATASET, Classification()), task=Smooth()),
        as_source(train="digits", test=DATASET, task=Smooth()),
    ):
        assert isinstance(source.task, Smooth)
        assert source.facts()["task"] == "smooth"


def test_targets_of_arrays_are_what_the_task_needs() -> None:
    arrays = INPUTS.numpy(), np.arange(12)
    for task, dtype in (("classification", torch.int64), ("regression", torch.float32)):
        found = first_samples(as_source(train=arrays, test=arrays, task=task).test)
        assert found is not None
        assert found[1].dtype == dtype


def test_no_task_is_classification() -> None:
    assert as_task(None).name == "classification"


@pytest.mark.parametrize("part", ["train", "test"])
def test_problems_are_told_of_the_part_by_its_name(part: str) -> None:
    def problem(bad: Any) -> str | None:
        return as_source(**{"train": DATASET, "test": DATASET, part: bad}).problem()

    assert problem(TensorDataset(INPUTS[:0], TARGETS[:0])) == f"{part} is empty"
    assert problem((INPUTS[:0], TARGETS[:0])) == f"{part} is empty"
    assert problem([]) == f"{part} is empty"
    assert problem((INPUTS / 0, TARGETS)) == f"{part} holds inputs that are not finite"


@pytest.mark.parametrize("name", ["list of batches", "map-style data set", "pair of tensors"])
def test_a_model_with_too_few_classes_and_inputs_of_two_shapes_are_refused(name: str) -> None:
    with pytest.raises(CsqtoolError, match=r"label \d is out of range|has label \d"):
        check_fit(torch.nn.Linear(3, 2), as_source(train=GIVEN[name], test=(INPUTS[3:], TARGETS[3:])))
    with pytest.raises(DataError, match=r"training inputs have shape \[3\], test inputs \[2\]"):
        check_fit(torch.nn.Linear(3, 4), as_source(train=GIVEN[name], test=(INPUTS[:, :2], TARGETS)))


@pytest.mark.parametrize(
    "raised", [KeyError("no such\nfile"), OSError(2, "No such file"), IndexError(), RuntimeError("a\nb")]
)
def test_an_exception_in_a_data_set_is_one_line(raised: Exception) -> None:
    class Failing:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Any:
            raise raised

    with pytest.raises(DataError, match=rf"samples \[0, 1\] … .*: {type(raised).__name__}: ") as caught:
        first_samples(as_source(Failing(), needs=("test",)).test, 2)
    assert len(str(caught.value).splitlines()) == 1
