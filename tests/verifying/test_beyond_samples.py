"""The outputs level beyond the test set: what only other batches, sizes and inputs reach, and every single label."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from csqtool.nn.finalized_net import finalized_net
from csqtool.verifying.beyond_samples import LabelJudge, compare_beyond
from csqtool.verifying.findings import Check, VerifyReport
from csqtool.verifying.outputs import reference_outputs
from csqtool.verifying.rounding import allowed_differences
from csqtool.verifying.subject import Subject
from csqtool.verifying.synthetic import synthetic_inputs
from tests.support.fooling_edits import batch_trigger
from tests.support.structural import Branches, Edit, Proto, Sample, add_tensor, at_the_end, make, sample

pytestmark = pytest.mark.usefixtures("one_capture")

SAMPLES = 80


@pytest.fixture(scope="module", params=[8, None], ids=["A8", "float"])
def branches(request: pytest.FixtureRequest) -> Sample:
    torch.manual_seed(0)
    return sample(Branches(), (1, 8, 8), act_bits=request.param)


def subject_of(made: Sample, content: bytes, folder: Path | None = None) -> Subject:
    unused: Any = None
    net = finalized_net(copy.deepcopy(made.module), made.model)
    return Subject(
        content=content, model=made.model, finalized_sha256="", net=net,
        build_net=unused, source=SimpleNamespace(task=SimpleNamespace(labels=True)),  # type: ignore[arg-type]
        samples=None, report=VerifyReport.begin("file", "model", 0, 4.0), tell=lambda _: None, backends=(), threads=0,
        save_inputs=folder,
    )  # fmt: skip


def failures(made: Sample, edit: Edit | None = None, folder: Path | None = None) -> list[Check]:
    proto = made.proto()
    if edit is not None:
        edit(proto)
    subject = subject_of(made, proto.SerializeToString(), folder)
    torch.manual_seed(1)
    inputs = torch.randn(SAMPLES, 1, 8, 8)
    compare_beyond(proto, subject, inputs, reference_outputs(subject.net, inputs))
    return [check for check in subject.report.checks if not check.passed]


def test_the_untouched_export_agrees_everywhere(branches: Sample) -> None:
    assert failures(branches) == []


def test_other_sizes_of_a_dynamic_axis_are_compared() -> None:
    torch.manual_seed(0)
    made = sample(Branches(), (1, 8, 8), dynamic=(2, 3))
    subject = subject_of(made, made.content)
    inputs = torch.randn(8, 1, 8, 8)
    compare_beyond(made.proto(), subject, inputs, reference_outputs(subject.net, inputs))
    names = {check.name for check in subject.report.checks}
    assert {f"axis {axis} of size {size}" for axis in (2, 3) for size in (4, 9, 16)} <= names
    assert subject.report.failures == []


def bright_inputs_negated(proto: Proto) -> None:
    add_tensor(proto, "limit", np.float32(6))
    at_the_end(
        proto, make("ReduceMax", ["input"], ["top"], keepdims=0), make("Greater", ["top", "limit"], ["bright"]),
        make("Neg", ["honest"], ["negated"]), make("Where", ["bright", "negated", "honest"], ["output"]),
    )  # fmt: skip


def black_inputs_negated(proto: Proto) -> None:
    add_tensor(proto, "none", np.float32(0))
    at_the_end(
        proto, make("Abs", ["input"], ["size"]), make("ReduceMax", ["size"], ["top"], keepdims=0),
        make("Equal", ["top", "none"], ["black"]), make("Neg", ["honest"], ["negated"]),
        make("Where", ["black", "negated", "honest"], ["output"]),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("edit", "name"),
    [
        (batch_trigger, "permuted, in batches of 1, 2, 7, 64 and 80"),
        (bright_inputs_negated, "synthetic inputs: scaled"),
        (black_inputs_negated, "synthetic inputs: zeros"),
    ],
)
def test_what_only_some_inputs_reach_is_found_and_saved(
    branches: Sample, edit: Edit, name: str, tmp_path: Path
) -> None:
    failed = failures(branches, edit, tmp_path / "inputs")
    assert name in {check.name for check in failed}
    detail = next(check.detail for check in failed if check.name == name)
    with np.load(detail.rpartition("saved in ")[2]) as saved:
        net = finalized_net(copy.deepcopy(branches.module), branches.model)
        assert np.array_equal(net(torch.from_numpy(saved["inputs"])).numpy(), saved["pytorch"])
        assert not np.allclose(saved["found"], saved["pytorch"])


def test_two_samples_answered_wrongly_fail_though_the_share_holds(branches: Sample) -> None:
    subject = subject_of(branches, b"")
    inputs = torch.randn(450, 1, 8, 8)
    wanted = reference_outputs(subject.net, inputs)
    found = wanted["output"].copy()
    found[[7, 300]] = found[[7, 300]][:, ::-1] + np.arange(5, dtype=np.float32) * 10
    judge = LabelJudge(subject, inputs, wanted, "output")
    judge.judge(wanted, "untouched")
    assert subject.report.checks == []
    judge.judge({"output": found}, "edited")
    (check,) = subject.report.checks
    assert not check.passed
    assert "2 of 2 not explained by rounding: sample 7: 4, PyTorch" in check.detail
    assert "sample 300: 4, PyTorch" in check.detail


def test_a_label_that_rounding_can_move_passes_and_is_listed() -> None:
    torch.manual_seed(0)
    made = sample(Branches(), (1, 8, 8))
    subject = subject_of(made, b"")
    inputs = torch.randn(1, 1, 8, 8)
    wanted = reference_outputs(subject.net, inputs)["output"]
    best, second = np.argsort(-wanted[0])[:2]
    gap = float(wanted[0, best] - wanted[0, second])
    wanted[0, second] += gap * np.float32(0.9999)  # next to each other
    found = wanted.copy()
    found[0, second] += np.float32(1e-3 * gap)
    LabelJudge(subject, inputs, {"output": wanted}, "output").judge({"output": found}, "close")
    (check,) = subject.report.checks
    assert check.passed
    assert check.detail.startswith(f"rounding explains each: sample 0: {second}, PyTorch {best} by a margin of")


def test_nan_on_one_side_only_fails(branches: Sample) -> None:
    def edit(proto: Proto) -> None:
        at_the_end(proto, make("Log", ["honest"], ["output"]))

    assert len(failures(branches, edit)) == 7


def test_rounding_explains_steps_and_not_other_answers(branches: Sample) -> None:
    net = finalized_net(copy.deepcopy(branches.module), branches.model)
    inputs = torch.randn(16, 1, 8, 8)
    outputs = reference_outputs(net, inputs)
    allowed = allowed_differences(net, inputs, outputs, VerifyReport.begin("f", "m", 0, 4.0).tolerances)["output"]
    wanted = outputs["output"]
    assert (allowed >= 1e-4).all()
    assert (allowed < np.abs(wanted - wanted[:, ::-1]).max(1)).mean() > 0.5
    assert branches.model.activations or (allowed < 1e-3).all()


def test_synthetic_inputs_keep_range_and_type_of_token_numbers() -> None:
    made = synthetic_inputs(torch.tensor([[3, 9, 4], [5, 3, 8]]))
    assert set(made) == {"uniform", "constants"}
    assert all(x.dtype == torch.int64 and x.min() >= 3 and x.max() <= 9 for x in made.values())


def test_synthetic_inputs_beside_a_mask_keep_the_samples_masks() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    made = synthetic_inputs({"tokens": torch.tensor([[3, 9, 4], [5, 3, 8]]), "mask": mask})
    assert set(made) == {"uniform", "constants"}
    for inputs in made.values():
        assert len(inputs["tokens"]) == len(inputs["mask"])
        assert all(any(torch.equal(row, one) for one in mask) for row in inputs["mask"])


def test_synthetic_inputs_are_the_same_each_time() -> None:
    samples = torch.randn(5, 1, 4)
    one, other = synthetic_inputs(samples), synthetic_inputs(samples)
    assert all(torch.equal(one[kind], other[kind]) for kind in one)
