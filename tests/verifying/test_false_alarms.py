"""What rounding does to a correct export is told from what is wrong with another one, also where it looks alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import csqtool
from csqtool.nn.finalized_net import finalized_net
from csqtool.nn.post_training import post_training_model
from csqtool.onnx_file import flattened, parse_onnx
from csqtool.verifying import runtime
from csqtool.verifying.findings import VerifyReport
from csqtool.verifying.layer_verdicts import Comparison
from csqtool.verifying.layers import Cut, in_graph, reference_cuts
from csqtool.verifying.outputs import reference_outputs
from csqtool.verifying.rounding import allowed_differences
from csqtool.verifying.tolerances import Tolerances

UNROUNDED = np.array([[3.2, 7.5 + 1e-6, 7.5 - 1e-6, 100.5, 6.5, 254.6]])  # 0.00097 steps: 32·ε of the largest integer


def holds(moves: list[int], share: float = 1e-3) -> bool:
    """Compare values that are off by `moves`; the same ones follow in a second batch, where none is off."""
    wanted = np.round(UNROUNDED).astype(np.uint8)
    cut = Cut("q", "q", wanted, unrounded=UNROUNDED)
    comparison = Comparison(cut, Tolerances(layer_share=share))
    comparison.add((wanted + np.array([moves])).astype(np.uint8), cut)
    comparison.add(wanted, cut)
    return comparison.verdict()[0]


def test_up_to_three_values_next_to_the_boundary_that_they_crossed_are_rounding() -> None:
    assert holds([0, -1, 1, 1, 0, 0])


@pytest.mark.parametrize(
    "moves",
    [
        [1, 0, 0, 0, 0, 0],  # 0.3 steps from the boundary
        [0, 0, 0, 0, 0, -1],  # 0.1 steps
        [0, 1, 0, 0, 0, 0],  # to the other side than the boundary's
        [0, -1, 1, 0, 0, 1],  # one of three
        [0, -2, 0, 0, 0, 0],  # two steps
        [0, -1, 1, 1, 1, 0],  # four
    ],
)
def test_other_values_fail_a_layer_of_few(moves: list[int]) -> None:
    assert not holds(moves)


def test_a_share_of_none_allows_none_on_a_boundary_either() -> None:
    assert not holds([0, -1, 0, 0, 0, 0], share=0)


@pytest.mark.long
@pytest.mark.usefixtures("one_capture")
@pytest.mark.parametrize("on_boundary", [True, False])
def test_verify_tells_both_apart_in_a_network(on_boundary: bool, tmp_path: Any, monkeypatch: Any) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    inputs = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
    model = post_training_model(net, [inputs], act_bits=8)
    first = model.activations[0]
    inputs[0, 0] = (20.5 if on_boundary else 20.4) * float(first.scale)
    original = runtime.run_once

    def moved(*arguments: Any) -> Any:
        outputs = dict(original(*arguments))
        for name, values in outputs.items():
            if values.dtype == np.uint8 and values[0, 0] == 20:
                outputs[name] = values.copy()
                outputs[name][0, 0] = 21
        return outputs

    monkeypatch.setattr(runtime, "run_once", moved)
    csqtool.export(model, tmp_path / "m.onnx", model=net)
    report: VerifyReport = csqtool.verify(tmp_path / "m.onnx", model, model=net, data=[(x, 0) for x in inputs])
    assert {check.level for check in report.failures} == (set() if on_boundary else {"layers"})
    assert any("on a rounding boundary" in finding.detail for finding in report.layers) == on_boundary


@pytest.mark.long
@pytest.mark.usefixtures("one_capture")
@pytest.mark.parametrize(
    ("places", "factor", "layer_share", "passes"),
    [
        ([0.5] * 6, 1 - 1e-6, 1e-3, True),  # on boundaries: PyTorch rounds to the even integer, the file downwards
        ([0.5] * 6, 1 - 1e-6, 0.0, False),  # none may be off
        ([0.4, 0.2] * 3, 1 + 6e-3, 1e-3, False),  # no value that moves was on a boundary
    ],
)
def test_outputs_that_values_on_a_boundary_move_far_are_compared_with_pytorch_on_the_same_side(
    places: list[float], factor: float, layer_share: float, passes: bool, tmp_path: Any
) -> None:
    net = nn.Linear(4, 1).eval()
    nn.init.ones_(net.weight)
    inputs = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
    model = post_training_model(net, [inputs], act_bits=8)
    inputs[:] = 0.0
    inputs[:, 0] = (torch.arange(20, 26) + torch.tensor(places)) * float(model.activations[0].scale)
    path = tmp_path / "m.onnx"
    csqtool.export(model, path, model=net)
    proto = onnx.load_from_string(path.read_bytes())
    proto.graph.node[0].input[0] = "moved"
    proto.graph.node.insert(0, onnx.helper.make_node("Mul", ["input", "factor"], ["moved"]))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(factor), "factor"))
    path.write_bytes(proto.SerializeToString())
    report = csqtool.verify(path, model, model=net, data=[(x, 0) for x in inputs],
                            tolerances={"layer_share": layer_share})  # fmt: skip
    checks = [check for check in report.checks if check.name.startswith("onnxruntime, ")]
    assert len(checks) == 4
    assert all(check.passed == passes for check in checks)
    assert all(("rounds 3 values" in check.detail) == passes for check in checks)
    assert not report.passed  # the file multiplies by a number that the network does not have, however little it does


class Parallel(nn.Module):
    """Two layers side by side, as attention and MLP in GPT-NeoX; their biases get the same gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.right.bias.data.copy_(self.left.bias.data)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.left(x)) + self.right(x))


@pytest.mark.long
def test_layers_with_equal_biases_share_one_in_the_file_and_are_compared_after_it(tmp_path: Any) -> None:
    net = Parallel().eval()
    inputs = torch.rand(6, 3, 4, generator=torch.Generator().manual_seed(0))
    model = post_training_model(net, [inputs], act_bits=None)
    csqtool.export(model, tmp_path / "m.onnx", model=net)
    proto = flattened(parse_onnx((tmp_path / "m.onnx").read_bytes(), where="m"), where="m")
    makers = {name: node for node in proto.graph.node for name in node.output}
    found = in_graph(proto, reference_cuts(finalized_net(net, model), model, inputs))
    places = {cut.name: makers[cut.value] for cut in found}
    assert {name: node.op_type for name, node in places.items()} == {"left": "Add", "right": "Add", "output": "Add"}
    assert len({name for node in (places["left"], places["right"]) for name in node.input}) == 3  # one bias


def test_a_network_that_a_last_place_of_its_input_moves_far_is_not_held_to_closer_outputs() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(1, 4, 3), nn.GroupNorm(4, 4), nn.Flatten(), nn.Linear(4 * 30, 2)).eval()
    noise = torch.randn(2, 1, 32)
    model = post_training_model(net, [noise], act_bits=None)
    finalized = finalized_net(net, model)
    allowed = []
    for inputs in (noise, torch.full((2, 1, 32), 50.0)):  # a variance of zero, to which GroupNorm adds 1e-5
        outputs = reference_outputs(finalized, inputs)
        allowed.append(allowed_differences(finalized, inputs, outputs, Tolerances())["output"])
    assert allowed[0] == pytest.approx(1e-4, rel=0.1)
    assert (allowed[1] > 1e-3).all()


def test_a_network_that_the_rounding_of_its_layers_moves_far_is_not_held_to_closer_outputs() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(1, 4, 3), nn.GroupNorm(4, 4), nn.Flatten(), nn.Linear(4 * 30, 2)).eval()
    nn.init.constant_(net[0].bias, 50.0)
    model = post_training_model(net, [torch.randn(2, 1, 32)], act_bits=None)
    finalized, inputs = finalized_net(net, model), torch.zeros(2, 1, 32)  # a last place of zero is zero
    allowed = allowed_differences(finalized, inputs, reference_outputs(finalized, inputs), Tolerances())["output"]
    assert (allowed > 1e-3).all()


class NormAndActivation(nn.BatchNorm2d):
    """As in timm: the module of a BatchNorm applies the activation, too, in place."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu_(super().forward(x))


def test_a_layer_in_float_is_compared_before_the_activation_that_its_batch_norm_module_applies() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), NormAndActivation(3), nn.Conv2d(3, 2, 3)).eval()
    inputs = torch.randn(4, 1, 8, 8)
    model = post_training_model(net, [inputs], act_bits=None)
    finalized = finalized_net(net, model)
    places = {cut.name: cut.reference for cut in reference_cuts(finalized, model, inputs)}
    assert set(places) == {"1", "output"}
    assert places["1"].min() < 0
    norm = finalized.model.get_submodule("1")
    wanted = nn.functional.batch_norm(
        finalized.model.get_submodule("0")(inputs), norm.running_mean, norm.running_var, norm.weight, norm.bias
    )
    assert places["1"] == pytest.approx(wanted.detach().numpy(), abs=1e-6)
