"""Files after random edits: every command ends with what it promises, and verify passes only what computes the same."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import csqtool
from csqtool.data import load_data
from csqtool.errors import InputError
from csqtool.factories import build_model
from csqtool.nn.post_training import post_training_model
from csqtool.onnx_isolated import IsolatedSession
from csqtool.quantized_model import QuantizedModel
from exporters.onnx import OnnxOptions, to_onnx
from tests.support.commands import DIGITS
from tests.support.graph_edits import edited

pytestmark = pytest.mark.usefixtures("one_capture")

SAMPLES = 8


class Exports:
    """A network in four forms: packed weights, int8, coded, and float activations."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module: nn.Module = build_model(DIGITS)
        self.inputs = np.stack([x.numpy() for x, _ in (load_data("digits").test[i] for i in range(SAMPLES))])
        sample = [torch.from_numpy(self.inputs)]
        self.eight = post_training_model(self.module, sample, planes=3, act_bits=8)
        self.floating = post_training_model(self.module, sample, planes=3, act_bits=None)
        self.files: list[tuple[QuantizedModel, bytes]] = [
            (model, to_onnx(model, copy.deepcopy(self.module), OnnxOptions(weights=weights))[0])
            for model, weights in (
                (self.eight, "packed"),
                (self.eight, "int8"),
                (self.eight, "coded"),
                (self.floating, "packed"),
            )
        ]

    def output(self, content: bytes) -> np.ndarray:
        return IsolatedSession(content, "off").run(["output"], {"input": self.inputs})[0]


@pytest.fixture(scope="module")
def exports() -> Exports:
    return Exports()


def or_refused(command: Callable[[], Any], said: str) -> Any:
    """Return what a command returns, None where it refuses its input in one line."""
    try:
        return command()
    except InputError as error:
        refusal = str(error).strip()
    assert refusal, said
    assert "\n" not in refusal, said
    return None


def outcome(exports: Exports, seed: int, folder: Path) -> str:
    """Check every command on an edited file; return how verify ended."""
    model, content = exports.files[seed % len(exports.files)]
    changed, edits = edited(content, seed)
    path = folder / "edited.onnx"
    path.write_bytes(changed)
    said = f"seed {seed}: {edits}"
    report = or_refused(lambda: csqtool.verify(path, model, model=exports.module, data="digits", samples=SAMPLES), said)
    ended = "refused" if report is None else "pass" if report.passed else "fail"
    if ended == "pass":
        found, wanted = exports.output(changed), exports.output(content)
        assert found.shape == wanted.shape, said
        assert np.abs(found - wanted).mean() <= 1e-3 * np.abs(wanted).max(), said
    commands: dict[str, Callable[[], Any]] = {
        "inspect": lambda: csqtool.inspect(path),
        "report": lambda: csqtool.report(path, folder / "page.html"),
    }
    if seed % 10 == 0:
        commands["bench"] = lambda: csqtool.bench(path, rounds=1)
    for command in commands.values():
        or_refused(command, said)
    return ended


@pytest.mark.parametrize("count", [pytest.param(30, marks=pytest.mark.long), pytest.param(150, marks=pytest.mark.slow)])
def test_after_random_edits_every_command_ends_as_it_promises(exports: Exports, tmp_path: Path, count: int) -> None:
    counts = Counter(outcome(exports, seed, tmp_path) for seed in range(count))
    assert counts["refused"] > count / 7.5
    assert counts["fail"] > count / 7.5


@pytest.mark.parametrize("seed", [2784])  # a call of a function without its parameters
def test_edits_that_once_broke_a_promise_keep_it(exports: Exports, tmp_path: Path, seed: int) -> None:
    assert outcome(exports, seed, tmp_path) == "refused"


def test_a_scale_that_is_a_text_fails(exports: Exports, tmp_path: Path) -> None:
    model, content = exports.files[1]
    proto = onnx.ModelProto.FromString(content)
    names = {tensor.name for tensor in proto.graph.initializer}
    at, node = next((i, n) for i, n in enumerate(proto.graph.node) if n.op_type == "DequantizeLinear"
                    and {n.input[0], n.input[1]} <= names)  # fmt: skip
    text = onnx.helper.make_node("Constant", [], ["text"], value_string="a")
    node.input[1] = "text"
    proto.graph.node.insert(at, text)
    path = tmp_path / "text.onnx"
    path.write_bytes(proto.SerializeToString())
    report = csqtool.verify(path, model, model=exports.module, data="digits", samples=SAMPLES)
    assert {check.level for check in report.failures} >= {"structure", "weights"}


@pytest.mark.slow
def test_after_thousands_of_random_edits_every_command_ends_as_it_promises(exports: Exports, tmp_path: Path) -> None:
    counts = Counter(outcome(exports, seed, tmp_path) for seed in range(1000, 4000))
    print(dict(counts))
    assert counts["refused"] > 400
    assert counts["fail"] > 400
