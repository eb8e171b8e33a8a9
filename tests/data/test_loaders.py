from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, TensorDataset

from csqtool import finalize
from csqtool.data import as_source, batches_of, first_samples, training_batches
from csqtool.data.datasets import Batch
from csqtool.data.streams import Stream
from csqtool.data.training import TrainingBatches
from csqtool.errors import DataError, SearchInterrupted
from csqtool.evaluation import evaluate, reestimate_batch_norm, training_loss
from csqtool.progress import Silent
from csqtool.searching.config import SearchConfig
from csqtool.searching.runs import begin, load_finished, resume
from tests.support.commands import DIGITS

INPUTS = torch.arange(21.0)[:, None].expand(21, 3).contiguous()
TARGETS = torch.arange(21) % 4
TEST = (INPUTS[:5], TARGETS[:5])


class Noisy(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Draws from all three random states."""

    def __len__(self) -> int:
        return 21

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = 0.1 * random.random() + 0.1 * np.random.rand() + 0.1 * float(torch.rand(()))
        return INPUTS[index] + noise, int(TARGETS[index])


class Counted(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(INPUTS, TARGETS, strict=True)


class Passes:
    """Gives its batches anew each time, and has no length."""

    def __init__(self, *, most_passes: int = 1000) -> None:
        self.passes = 0
        self.most = most_passes

    def __iter__(self) -> Iterator[Batch]:
        self.passes += 1
        if self.passes <= self.most:
            yield from zip(INPUTS.split(4), TARGETS.split(4), strict=True)


def training(train: Any, *, seed: int = 0) -> TrainingBatches:
    return training_batches(as_source(train=train, test=TEST), batch_size=4, seed=seed)


def equal(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)
    )


LOADERS: dict[str, Callable[[], Any]] = {
    "shuffled": lambda: DataLoader(Noisy(), batch_size=4, shuffle=True),
    "with a generator of its own": lambda: DataLoader(
        Noisy(), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(int(torch.seed() % 2**31))
    ),
    "with a sampler and its generator": lambda: DataLoader(
        Noisy(), batch_sampler=BatchSampler(RandomSampler(Noisy(), generator=torch.Generator()), 4, drop_last=False)
    ),
    "with workers": lambda: DataLoader(Noisy(), batch_size=4, shuffle=True, num_workers=2),
}


@pytest.mark.parametrize("name", LOADERS)
def test_an_epoch_is_the_same_whatever_was_drawn_before_and_begins_at_any_batch(name: str) -> None:
    whole = list(training(LOADERS[name]()).epoch("search", 3))
    loader = LOADERS[name]()
    for _ in loader:
        random.random()
    batches = training(loader)
    list(batches.epoch("search", 2))
    assert equal(whole, list(batches.epoch("search", 3)))
    assert equal(whole[2:], list(batches.epoch("search", 3, first=2)))


def test_epochs_stages_and_seeds_have_orders_of_their_own() -> None:
    batches = training(DataLoader(Noisy(), batch_size=21, shuffle=True))
    orders = {
        tuple(next(found.epoch(stage, epoch))[1].tolist())
        for found in (batches, training(DataLoader(Noisy(), batch_size=21, shuffle=True), seed=1))
        for stage in ("float", "search")
        for epoch in range(3)
    }
    assert len(orders) == 12


def test_what_is_drawn_outside_does_not_notice_that_data_are_read() -> None:
    stream = Stream(DataLoader(Noisy(), batch_size=4, shuffle=True), "train")
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    wanted = float(torch.rand(())), np.random.rand(), random.random()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    list(batches_of(stream))
    assert (float(torch.rand(())), np.random.rand(), random.random()) == wanted


def test_sampler_batch_size_and_collation_of_the_loader_are_honoured() -> None:
    def collate(samples: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        return [torch.stack([x for x, _ in samples]) * 2, torch.stack([y for _, y in samples])]

    wanted = [3, 1, 20, 7, 7]
    data = TensorDataset(INPUTS, TARGETS)
    batches = training(DataLoader(data, batch_size=3, sampler=wanted, collate_fn=collate))
    found = list(batches.epoch("search", 0))
    assert [len(x) for x, _ in found] == [3, 2]
    assert torch.cat([x[:, 0] for x, _ in found]).tolist() == [2.0 * i for i in wanted]
    assert (batches.count, batches.samples) == (2, 3)


def test_samplers_are_told_the_epoch() -> None:
    epochs: list[int] = []

    class Sampler(RandomSampler):
        def set_epoch(self, epoch: int) -> None:
            epochs.append(epoch)

    sampler = Sampler(Noisy())
    batches = training(DataLoader(Noisy(), batch_size=4, sampler=sampler))
    for epoch in (4, 5):
        next(batches.epoch("search", epoch))
    assert sorted(set(epochs)) == [4, 5]
    assert epochs[-1] == 5


@pytest.mark.parametrize("make", [Passes, lambda: DataLoader(Counted(), batch_size=4)])
def test_batches_and_samples_are_counted_once_where_there_is_no_length(make: Callable[[], Any]) -> None:
    source = as_source(train=make(), test=make())
    assert source.problem() is None
    assert training_batches(source, batch_size=9, seed=0).count == 6
    assert (len(source.train), len(source.test)) == (21, 21)
    if isinstance(source.test, Stream) and isinstance(source.test.loader, Passes):
        assert source.test.loader.passes == 1


def test_of_a_training_loader_with_a_length_only_the_first_batch_is_read_beforehand() -> None:
    asked: list[int] = []

    class Told(TensorDataset):
        def __getitem__(self, index: int) -> tuple[Tensor, ...]:
            asked.append(index)
            return super().__getitem__(index)

    source = as_source(train=DataLoader(Told(INPUTS, TARGETS), batch_size=4), test=TEST)
    assert source.problem() is None
    assert asked == [0, 1, 2, 3]


def test_a_last_batch_of_one_sample_is_trained_with_the_sample_before_it_and_counted_as_one() -> None:
    loader = DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=4)
    batches = training(loader)
    assert [x[:, 0].tolist() for x, _ in batches.epoch("search", 0)][-2:] == [[16, 17, 18, 19], [19, 20]]
    assert batches.count == 6
    assert len(Stream(loader, "test")) == 21


def test_a_loader_of_single_samples_is_trained_by_single_samples() -> None:
    sizes = [len(x) for x, _ in training(DataLoader(TensorDataset(INPUTS, TARGETS))).epoch("search", 0)]
    assert sizes == [1] * 21


@pytest.mark.parametrize("batch_size", [1, 4, 21])
@pytest.mark.parametrize("most", [1, 2, 7, 20, 21, 30, None])
def test_the_first_samples_are_those_of_the_data_set(batch_size: int, most: int | None) -> None:
    data = TensorDataset(INPUTS, TARGETS)
    stream = Stream(DataLoader(data, batch_size=batch_size), "test")
    found, wanted = first_samples(stream, most), first_samples(data, most)
    assert found is not None
    assert wanted is not None
    assert equal([found], [wanted])
    assert torch.equal(torch.cat([x for x, _ in batches_of(stream, max_samples=most)]), wanted[0])


def test_processes_share_the_batches_of_a_loader_out() -> None:
    stream = Stream(DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=4), "test")
    shares = [list(batches_of(stream, share=slice(i, None, 2))) for i in range(2)]
    assert [len(share) for share in shares] == [3, 3]
    assert [len(x) for x, _ in shares[1]] == [4, 4, 1]
    joined = [x for pair in zip(*shares, strict=True) for x, _ in pair]
    assert torch.equal(torch.cat(joined), INPUTS)


@pytest.mark.parametrize("batch_size", [1, 2, 21])
def test_metric_loss_and_statistics_over_a_loader_are_those_over_the_data_set(batch_size: int) -> None:
    torch.manual_seed(0)
    data, device = TensorDataset(INPUTS, TARGETS), torch.device("cpu")
    arrays = as_source(train=data, test=data)
    loader = as_source(train=DataLoader(data, batch_size=batch_size), test=DataLoader(data, batch_size=batch_size))
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    assert evaluate(net, loader.test, loader.task) == evaluate(net, arrays.test, arrays.task)
    losses = [training_loss(net, data, device, samples=21, channels_last=False) for data in (arrays, loader)]
    assert losses[1] > 0
    assert losses[1] == (losses[0] if batch_size == 21 else pytest.approx(losses[0], rel=0.5))
    reestimate_batch_norm(net, loader, device, batch_size=64, seed=0)
    mean = net[0](INPUTS).mean(0)
    # Batches are averaged alike; only the last of them is smaller.
    torch.testing.assert_close(net[1].running_mean, mean, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (Passes(most_passes=1), "train gave 0 batches in a pass, 6 were expected"),
        (DataLoader(TensorDataset(INPUTS), batch_size=4), "train: batch 1 is list of 1, not a pair"),
        (DataLoader([{"x": 1.0, "y": 2}], batch_size=1), "train: batch 1 is dict of 2, not a pair"),
        (DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=None), "do not have the same first axis"),
        (
            DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=4, collate_fn=lambda _: (INPUTS, TARGETS[:3])),
            r"inputs \[21, 3\] and targets \[3\]",
        ),
        (DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=4, collate_fn=lambda _: ("a", TARGETS)), "is str"),
    ],
)
def test_what_is_no_batch_is_refused_where_it_comes(train: Any, said: str) -> None:
    def two_epochs() -> None:
        batches = training(train)
        for epoch in range(2):
            list(batches.epoch("search", epoch))

    with pytest.raises(DataError, match=said):
        two_epochs()


class Failing(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        raise KeyError("no such\nfile")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_exception_in_the_loader_is_one_line_that_names_the_batch(workers: int) -> None:
    with pytest.raises(DataError) as caught:
        list(training(DataLoader(Failing(), batch_size=4, num_workers=workers)).epoch("search", 0))
    text = str(caught.value)
    assert text.startswith("train: reading batch 1 raised KeyError: ")
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize("batch", [0, 3])
def test_inputs_that_are_not_finite_are_found_before_training_or_when_they_come(batch: int) -> None:
    inputs = INPUTS.clone()
    inputs[4 * batch] = torch.nan
    source = as_source(train=DataLoader(TensorDataset(inputs, TARGETS), batch_size=4), test=TEST)
    if batch == 0:
        assert source.problem() == "train holds inputs that are not finite"
    else:
        assert source.problem() is None
        with pytest.raises(DataError, match="train: the inputs of batch 4 are not finite"):
            list(training_batches(source, batch_size=4, seed=0).epoch("search", 0))
    source = as_source(train=TEST, test=DataLoader(TensorDataset(inputs, TARGETS), batch_size=4))
    assert source.problem() == "test holds inputs that are not finite"


@pytest.mark.parametrize("empty", [DataLoader(Counted(), batch_size=30, drop_last=True), Passes(most_passes=0)])
def test_an_empty_loader_is_a_problem(empty: Any) -> None:
    assert as_source(train=empty, test=TEST).problem() == "train is empty"
    assert as_source(train=TEST, test=empty).problem() == "test is empty"
    assert first_samples(as_source(train=TEST, test=empty).test) is None


DATA = """
import random
from dataclasses import replace

import numpy as np
import torch
from torch.utils.data import DataLoader

from csqtool.data import load_data, training_batches
from csqtool.randomness import drawing_from

class Noisy:
    def __init__(self, base):
        self.base = base

    def __len__(self):
        return 130

    def __getitem__(self, index):
        x, y = self.base[index]
        return x + np.float32(0.1 * np.random.rand() + 0.1 * random.random()) + 0.1 * torch.rand(()), y

def noisy():
    source = load_data("digits")
    return DataLoader(Noisy(source.train), batch_size=16, shuffle=True), DataLoader(source.test, batch_size=100)

def arrays():
    return replace(load_data("digits"), augment=None)

def batches():
    source = arrays()
    with drawing_from(0):  # the model's first weights are drawn after this
        return list(training_batches(source, batch_size=64, seed=0).epoch("train", 0)), source.test
"""


@pytest.mark.long
def test_a_search_on_a_shuffling_loader_resumes_within_an_epoch_to_the_same_model(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text(DATA)
    config = SearchConfig.make(model=DIGITS, data=f"{tmp_path}/data.py:noisy", target_bits=3, act_bits=8,
                               pretrain_epochs=1, epochs=1, finetune_epochs=1)  # fmt: skip

    class Interrupting(Silent):
        def step(self, stage: str, done: int, total: int, facts: dict[str, float]) -> None:
            assert total == 9
            if (stage, done) == ("search", 5):
                os.kill(os.getpid(), signal.SIGINT)

    begin(config, tmp_path / "whole")
    with pytest.raises(SearchInterrupted):
        begin(config, tmp_path / "stopped", progress=Interrupting())
    np.random.seed(99)
    random.seed(99)
    resume(tmp_path / "stopped")
    for run in ("whole", "stopped"):
        model = finalize(tmp_path / run, tmp_path / f"{run}.safetensors")
        assert model.info.metrics is not None
        assert model.info.metrics.samples == 450
    assert (tmp_path / "whole.safetensors").read_bytes() == (tmp_path / "stopped.safetensors").read_bytes()
    assert (tmp_path / "whole" / "log.jsonl").read_text() == (tmp_path / "stopped" / "log.jsonl").read_text()


@pytest.mark.long
def test_a_list_of_the_same_batches_trains_to_the_integers_of_the_data_set(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text(DATA)
    found = []
    for name in ("arrays", "batches"):
        config = SearchConfig.make(model=DIGITS, data=f"{tmp_path}/data.py:{name}", target_bits=3, method="lsq",
                                   epochs=1, batch_size=64)  # fmt: skip
        begin(config, tmp_path / name)
        method = load_finished(tmp_path / name).session.method
        assert method is not None
        found.append({layer: (q.tolist(), float(scale)) for layer, (q, scale, _) in method.integers().items()})
    assert found[0] == found[1]
    assert (tmp_path / "arrays" / "log.jsonl").read_text() == (tmp_path / "batches" / "log.jsonl").read_text()
