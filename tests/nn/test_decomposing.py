"""Networks come out of the decomposition by node as out of torch's own, and what is not known is left to torch."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own short name
from torch import Tensor, nn

import csqtool
from csqtool.nn import decomposing
from csqtool.nn.decomposing import FRESH, IN_PLACE, KEPT, decomposed, decomposed_by_node
from csqtool.nn.post_training import post_training_model

Program = torch.export.ExportedProgram


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


class Everything(nn.Module):
    """What is decomposed by node: BatchNorm, operations in place, pooling, flattening, reshaping, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.last = nn.Sequential(nn.Dropout(0.1), nn.Linear(8, 8), nn.Dropout(0.1, inplace=True), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x)
        y = self.second(x)
        y += x
        y = F.hardswish(y, inplace=True)
        rows = y.reshape(x.shape[0], 8, 64).permute(0, 2, 1).softmax(-1)
        return self.last(torch.flatten(F.adaptive_avg_pool2d(y, 1), 1)), rows


@pytest.fixture
def by_torch(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count how often torch itself decomposes a program: each time it traces the whole of it anew."""
    calls: list[int] = []
    original = Program.run_decompositions

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(Program, "run_decompositions", counted)
    return calls


def exported(function: Callable[..., Any], *inputs: Tensor, dynamic: bool = True) -> Program:
    shapes = (tuple({0: torch.export.Dim("batch")} for _ in inputs),) if dynamic else None
    return torch.export.export(Function(function).eval(), inputs, dynamic_shapes=shapes)


def targets(program: Program) -> Counter[str]:
    return Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")


def table_for_onnx() -> Any:
    """The operators that torch decomposes on the way to ONNX."""
    tables = []
    original = Program.run_decompositions
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Program, "run_decompositions", lambda p, table: tables.append(table) or original(p, table))
        torch.onnx.export(nn.Linear(1, 1).eval(), (torch.zeros(1, 1),), dynamo=True, verbose=False)
    return tables[0]


@pytest.mark.long
def test_a_usual_network_is_not_traced_again_for_its_decomposition(by_torch: list[int], tmp_path: Path) -> None:
    net = Everything().eval()
    inputs = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model = post_training_model(copy.deepcopy(net), [inputs], act_bits=8)
    csqtool.export(model, tmp_path / "model.onnx", model=net)
    assert not by_torch
    assert csqtool.verify(tmp_path / "model.onnx", model, model=net, data=[(x, 0) for x in inputs]).passed
    assert not by_torch


@pytest.mark.parametrize("act_bits", [8, pytest.param(None, marks=pytest.mark.slow)])
def test_files_are_those_that_torchs_own_decomposition_gives(
    act_bits: int | None, by_torch: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Everything().eval()
    model = post_training_model(copy.deepcopy(net), [torch.randn(4, 3, 8, 8)], act_bits=act_bits)
    csqtool.export(model, tmp_path / "by_node.onnx", model=net)
    assert not by_torch
    monkeypatch.setattr(decomposing, "decomposed", lambda *_: False)
    csqtool.export(model, tmp_path / "by_torch.onnx", model=net)
    assert by_torch
    files = [(tmp_path / name).read_bytes() for name in ("by_node.onnx", "by_torch.onnx")]
    # Torch counts the values that it has made on the way, also those that are not left.
    by_node, other = (re.sub(rb"val_\d+", b"val", content) for content in files)
    assert by_node == other


def batch_norm() -> nn.Module:
    norm = nn.BatchNorm2d(3, eps=0.1)
    with torch.no_grad():
        for place, tensor in enumerate((norm.weight, norm.bias, norm.running_mean, norm.running_var)):
            tensor.copy_(torch.arange(3.0) + place + 1)
    return norm.eval()


def many_operators(x: Tensor, w: Tensor) -> Any:
    """Use every operator that is kept; x of shape [N, 4, 8, 8], w of [N, 4, 8]."""
    scaled = x * 0.5 + x.abs() - x / 2.0
    scaled = torch.neg(scaled).clamp(0, 1).clamp_min(0.1)
    curves = [
        scaled.exp(), scaled.log(), scaled.sqrt(), scaled.rsqrt(), scaled.sin(), scaled.cos(), scaled.tanh(), scaled**2,
        scaled.sigmoid(), F.elu(scaled), F.gelu(scaled), F.hardsigmoid(scaled), F.hardswish(scaled), F.relu(scaled),
        F.hardtanh(scaled), F.leaky_relu(scaled), F.relu6(scaled), F.silu(scaled), F.softplus(scaled),
        F.prelu(scaled, torch.ones(1)), scaled.softmax(1), scaled.log_softmax(1), F.group_norm(scaled, 2),
        F.layer_norm(scaled, (8,)),
    ]  # fmt: skip
    joined = torch.cat([torch.stack(curves).sum([0]), F.glu(x, 1)], 1)
    pooled = (
        F.max_pool2d(joined, 2), F.avg_pool2d(joined, 2), F.max_pool1d(w, 2), F.avg_pool1d(w, 2),
        F.max_pool3d(x.unsqueeze(1), 2), F.avg_pool3d(x.unsqueeze(1), 2), F.pixel_shuffle(x, 2),
    )  # fmt: skip
    weight = torch.ones(2, 4, 1)
    convolved = (
        F.conv1d(w, weight), F.conv2d(x, weight[..., None]), F.conv3d(x.unsqueeze(2), weight[..., None, None]),
        F.linear(w, torch.ones(3, 8)), F.embedding((w[:, 0] > 0).long(), torch.ones(2, 2)),
    )  # fmt: skip
    attended = F.scaled_dot_product_attention(w, w, w) + torch.bmm(w, w.transpose(1, 2)) @ w
    parts = [*x.split(2, 1), *x.split([1, 3], 1), *w.unbind(1), x[:, 0], w.unsqueeze(1).expand(-1, 3, -1, -1)]
    shaped = (x.permute(0, 2, 3, 1).contiguous().clone(), x.view(x.shape[0], 4, 64), w.unsqueeze(1).squeeze(1))
    return pooled, convolved, attended, parts, shaped, x.mean(), x.mean(1)


@pytest.mark.long
def test_operators_that_are_kept_are_those_that_torch_keeps() -> None:
    program = exported(many_operators, torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8))
    before = targets(program)
    assert KEPT - before.keys() == {"onnx_symbolic._symbolic.default"}  # every test above has the markers
    after = targets(program.run_decompositions(table_for_onnx()))
    changed = {name for name in KEPT & before.keys() if before[name] != after[name]}
    assert changed == {"aten.contiguous.default", "aten.clone.default"}  # one becomes the other; both are none in ONNX


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x: (y := x + 1, y[:, :1], y.relu_())[1], id="a result that something else reads"),
        pytest.param(lambda x: (x * 2)[:, :1].relu_(), id="a view"),
        pytest.param(lambda x: x.relu_(), id="an input"),
        pytest.param(lambda x: (x + 1).add_(torch.ones(1, dtype=torch.float64)), id="values of two types"),
        pytest.param(lambda x: F.dropout(x, 0.5, training=True), id="a dropout that drops"),
        pytest.param(lambda x: F.batch_norm(x, None, None, training=True), id="statistics of the batch"),
        pytest.param(lambda x: F.batch_norm(x, *x[0, :, 0, :2].unbind(1), training=True), id="statistics that change"),
        pytest.param(lambda x: F.adaptive_avg_pool2d(x, 2), id="averages of parts"),
        pytest.param(lambda x: x.flatten(0, 1), id="a size that is no input's"),
        pytest.param(lambda x: x.transpose(1, 2).reshape(x.shape[0], -1), id="a size that depends on memory"),
        pytest.param(lambda x: x.transpose(1, 2).reshape(x.shape[0], 4, 12), id="another order in memory"),
        pytest.param(lambda x: x.transpose(1, 2).flatten(2), id="another order in memory, flattened"),
        pytest.param(lambda x: x.flatten(1, 1), id="nothing to flatten"),
        pytest.param(lambda x: x.cumsum(1), id="an operator that is not listed"),
        pytest.param(lambda x: torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,)), id="a condition"),
    ],
)
def test_what_is_not_known_is_left_to_torch_with_the_program_unchanged(function: Callable[..., Any]) -> None:
    program = exported(lambda x: function(torch.relu(x)) if x.ndim else x, torch.randn(2, 3, 4, 4))
    before = str(program.graph)
    assert not decomposed(program.graph_module, {})
    assert str(program.graph) == before


def test_an_operator_that_torch_wants_decomposed_is_not_kept() -> None:
    program = exported(torch.sigmoid, torch.randn(2, 3))
    assert not decomposed(program.graph_module, {torch.ops.aten.sigmoid.default})
    assert decomposed(program.graph_module, {})


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.flatten(F.adaptive_avg_pool2d(F.relu(x + 1, inplace=True), 1), 1),
        batch_norm(),
        lambda x: (x * 3).add_(x, alpha=2).mul_(x).sub_(x, alpha=3),
        lambda x: F.leaky_relu_(F.hardtanh_(F.elu_(x - 1, 2.0), -0.5, 0.5), 0.3).reshape(x.shape[0], 2, -1),
    ],
)
def test_a_program_decomposed_by_node_computes_what_it_did(function: Callable[..., Any]) -> None:
    program = exported(function, torch.randn(2, 3, 4, 4))
    assert decomposed(program.graph_module, {})
    program.graph_module.recompile()
    assert not targets(program).keys() & {*IN_PLACE, "aten.batch_norm.default", "aten.flatten.using_ints"}
    x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(program.module()(x), function(x.clone()))


def test_torch_gets_its_method_back(by_torch: list[int]) -> None:
    method = Program.run_decompositions
    with decomposed_by_node():
        exported(torch.sigmoid, torch.randn(2, 3)).run_decompositions({})
        exported(torch.sigmoid, torch.randn(2, 3)).run_decompositions()
    assert len(by_torch) == 1  # without a table it is not known what must not remain
    assert Program.run_decompositions is method


def test_results_that_are_changed_in_place_are_new_memory() -> None:
    assert not FRESH & {"aten.view.default", "aten.reshape.default", "aten.dropout.default", "aten.contiguous.default"}
