"""The calls of an inference in C against PyTorch's graph: what nothing in the graph explains fails, before it runs."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from csqtool.verifying.c_checks import any_integers
from csqtool.verifying.c_program import FILES
from csqtool.verifying.c_sources import Inference
from tests.support.c_edits import MODEL, Edit, changed
from tests.support.c_nets import CExport, Functions, export_c
from tests.support.onnx_nets import ConvNet

pytestmark = pytest.mark.usefixtures("one_capture")


@pytest.fixture(scope="module")
def residual() -> CExport:
    torch.manual_seed(0)
    return export_c(ConvNet(), (3, 8, 8))


def found(export: CExport, edit: Edit, file: str = MODEL) -> list[str]:
    files = {name: export.files[name] for name in FILES}
    inference = Inference({**files, file: edit(files[file].decode()).encode()})
    assert inference.faults == []
    return inference.beyond(export.reference.graph, ())


ADD = r"( +add\()(arena \+ \d+), (arena \+ \d+), (arena \+ \d+)(,[^\n]*\n)"
TRACED = r"( +TRACE_VALUES[^\n]*\n)"
CHANGES: dict[str, tuple[Edit, str]] = {
    "two additions": (
        changed(ADD, lambda m: m[0] + f"{m[1]}{m[4]}, {m[3]}, {m[4]}{m[5]}"),
        "relu@3.output: add: 2 of them, where PyTorch's graph explains 1",
    ),
    "an addition behind a quantizer": (
        changed(ADD + TRACED, lambda m: m[0] + f"{m[1]}{m[4]}, {m[3]}, {m[4]}{m[5]}"),
        "pool.output: add: 1 of them, where PyTorch's graph explains 0",
    ),
    "a quantizer left out": (changed(ADD + TRACED, lambda m: m[0].replace(m[6], "")), "relu@3.output is missing"),
    "a quantizer of another name": (changed(r'\("relu@3', '("relu@4'), "relu@3.output is missing"),
    "the addition of one value": (
        changed(ADD, lambda m: f"{m[1]}{m[2]}, {m[2]}, {m[4]}{m[5]}"),
        "relu@3.output is computed from conv2.output, not from conv2.output, relu.output",
    ),
    "a name of a layer": (
        changed(r'NAMED\("conv2', 'NAMED("conv1'), "conv2.output has the layers conv1.weight, not conv2.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_calls_that_the_graph_does_not_explain_are_named(name: str, residual: CExport) -> None:
    edit, words = CHANGES[name]
    lines = found(residual, edit)
    assert any(words in line for line in lines)
    assert all(re.match(r"model\.c(:\d+)?: ", line) for line in lines)


def test_the_calls_of_an_untouched_export_are_explained(residual: CExport) -> None:
    assert found(residual, lambda text: text) == []


@pytest.mark.long
def test_a_table_of_what_no_quantizer_made_is_not_explained() -> None:
    torch.manual_seed(0)
    export = export_c(Functions(), (2, 5, 6))
    assert found(export, lambda text: text) == []
    lines = found(export, changed(
        r" +conv\(&layer_\d+, [^,]*, (arena \+ \d+), [^\n]*\n",
        lambda m: f"{m[0]}    look_up({m[1]}, {m[1]}, 180, model_table_0);\n",
    ))  # fmt: skip
    assert len(lines) == 1
    assert lines[0].endswith("a table of what is not quantized")


def test_every_integer_is_among_those_that_replace_a_quantizer_s() -> None:
    made = any_integers(15, (4, 3, 5))
    assert made[0].max() == 0
    assert made[1].min() == 15
    assert set(np.unique(made[2:]).tolist()) == set(range(16))
    assert made.dtype == np.uint8
