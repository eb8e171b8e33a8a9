"""Quantization after training: on objects without labels, on the digits sample's command, and on bad input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import csqtool
from csqtool.nn.activation import ActivationFakeQuantizer
from csqtool.nn.quantized_net import QuantizedNet
from csqtool.progress import Told
from csqtool.reconstruction import dropping
from csqtool.summaries import origin_text
from tests.support.commands import DIGITS, invoke, ok


def made() -> nn.Module:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 24), nn.ReLU(),
                        nn.Linear(24, 4))  # fmt: skip
    return net.eval()


def inputs() -> Tensor:
    return torch.randn(192, 1, 6, 6, generator=torch.Generator().manual_seed(2))


def error(net: nn.Module, quantized: csqtool.QuantizedModel) -> float:
    x = torch.randn(256, 1, 6, 6, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return float((csqtool.to_torch(quantized, net)(x) - net(x)).square().mean())


@pytest.mark.parametrize(("reconstruct", "share"), [("lsq", 0.8), ("csq", 0.8), ("adaround", 0.9)])
def test_reconstruction_comes_nearer_to_the_float_network_than_rounding_to_the_nearest(
    reconstruct: str, share: float
) -> None:
    net, before = made(), made().state_dict()
    options: dict[str, Any] = {"target_bits": 2, "batch_norm": False, "equalize": False, "device": "cpu",
                               "reconstruct": reconstruct}  # fmt: skip
    rounded, trained = (csqtool.quantize(net, inputs(), steps=steps, **options) for steps in (0, 100))
    assert error(net, trained) < share * error(net, rounded)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    "given",
    [
        lambda x: x.numpy(),
        lambda x: list(x.split(64)),
        lambda x: DataLoader(TensorDataset(x), 64),
        lambda x: DataLoader(TensorDataset(x, torch.full((len(x),), 99)), 64),
    ],
    ids=["array", "batches", "loader", "labels that no class has"],
)
def test_inputs_are_taken_without_labels_and_the_budget_is_not_exceeded(given: Callable[[Tensor], Any]) -> None:
    quantized = csqtool.quantize(made(), given(inputs()), target_bits=2.5, act_bits=8, steps=2, pin={"6.weight": 5})
    planes = {layer.name: layer.precision for layer in quantized.layers}
    elements = {layer.name: layer.elements for layer in quantized.layers}
    assert planes["6.weight"] == 5
    assert planes["4.weight"] == 2  # with three, it alone would exceed the budget
    assert sum(planes[n] * elements[n] for n in planes) / sum(elements.values()) <= 2.5
    assert quantized.activations


ROUNDED: dict[str, Any] = {"target_bits": 2, "steps": 0, "batch_norm": False, "act_bits": 8, "exclude": ("[46].*",)}


def unequal() -> nn.Module:
    """Return a network whose first layer has channels of very different scales, which BatchNorm takes away."""
    net, factors = made(), torch.logspace(-1.5, 1.5, 6)
    with torch.no_grad():
        net[0].weight.mul_(factors.view(-1, 1, 1, 1))
        net[1].running_mean.mul_(factors)
        net[1].running_var.copy_(factors**2)
    return net


def test_moving_scales_between_layers_is_the_default_of_rounding_and_lowers_the_error_of_unequal_channels() -> None:
    net = unequal()
    plain, equal = (csqtool.quantize(net, inputs(), **ROUNDED, **given) for given in ({"equalize": False}, {}))
    assert error(net, equal) < 0.5 * error(net, plain)


@pytest.mark.long
def test_a_model_of_moved_scales_is_exported_and_verified_against_the_given_module(tmp_path: Path) -> None:
    net = unequal()
    quantized = csqtool.quantize(net, inputs(), **ROUNDED)
    csqtool.export(quantized, tmp_path / "m.onnx", model=net)
    assert csqtool.verify(tmp_path / "m.onnx", quantized, model=net, data=(inputs(), torch.zeros(192).long())).passed


def test_dropping_rounds_all_but_the_asked_share_of_each_activation() -> None:
    net = QuantizedNet(made(), [ActivationFakeQuantizer("2.output", 2)])
    net.calibrate([inputs()])
    values = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    with torch.no_grad():
        rounded, found = net.quantizers["2.output"](values), dropping(net, 0.3)("2.output", values)
    kept = found == values
    assert float(kept.float().mean()) == pytest.approx(0.3, abs=0.01)
    assert torch.equal(found[~kept], rounded[~kept])


@pytest.mark.long
def test_the_share_of_dropped_activations_changes_what_is_trained_but_not_the_activations() -> None:
    one, other = (csqtool.quantize(made(), inputs(), target_bits=2, act_bits=2, steps=3, drop_activations=share)
                  for share in (0.0, 0.5))  # fmt: skip
    assert [a.name for a in one.activations] == [a.name for a in other.activations]
    assert one.activations[0].bits == other.activations[0].bits == 8
    assert any(not np.array_equal(a.dequantized(), b.dequantized())
               for a, b in zip(one.layers, other.layers, strict=True))  # fmt: skip


@pytest.mark.long
def test_the_command_writes_a_file_that_is_exported_and_verified(tmp_path: Path) -> None:
    model, onnx = tmp_path / "m.safetensors", tmp_path / "m.onnx"
    result = ok("quantize", DIGITS, "--data", "digits", "--target-bits", 3, "--act-bits", 8, "--samples", 128,
                "--steps", 4, "-o", model)  # fmt: skip
    assert "steps/s" in result.stderr
    ok("export", model, "--format", "onnx", "-o", onnx)
    assert ok("verify", onnx, "--against", model, "--data", "digits").stdout.splitlines()[-1].startswith("PASS")
    ok("inspect", model)


def test_a_size_of_the_packed_file_is_not_exceeded(tmp_path: Path) -> None:
    quantized = csqtool.quantize(made(), inputs(), target_size="2600B", steps=10)
    csqtool.pack(quantized, tmp_path / "m.csq")
    assert (tmp_path / "m.csq").stat().st_size <= 2600


@pytest.mark.parametrize(
    ("calibration", "settings", "message"),
    [
        (inputs()[:20], {"target_bits": 3}, "20 calibration samples are fewer than a batch of 64"),
        (inputs() / 0, {"target_bits": 3}, "not finite"),
        (inputs(), {"target_bits": 3, "pin": {"4.weight": 7}}, "cannot be met"),
        (inputs(), {"target_bits": 3, "epochs": 4}, "quantize has no setting 'epochs'"),
        (inputs(), {"target_bits": 3, "steps": -1}, "steps must be at least 0"),
        (inputs(), {"target_bits": 3, "reconstruct": "best"}, "reconstruct must be one of lsq, adaround, csq"),
        (inputs(), {"target_bits": 3, "ranges": "max"}, "ranges must be one of mse, percentile, min-max"),
        (inputs(), {"target_bits": 3, "drop_activations": 1.5}, "drop_activations must be 0 to 1, got 1.5"),
        (None, {"target_bits": 3}, "needs calibration data"),
    ],
)
def test_what_cannot_be_quantized_is_refused_in_one_line(
    calibration: Tensor | None, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(csqtool.InputError, match=message) as caught:
        csqtool.quantize(made(), calibration, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("steps", [0, 2])
def test_batch_norm_keeps_the_float_statistics_in_training_and_takes_those_of_rounded_weights_otherwise(
    steps: int,
) -> None:
    net, x = made(), inputs()[:128]  # one batch
    unequal = None if steps else False  # statistics in the scale of the given network; the default where it is trained
    quantized = csqtool.quantize(net, x, target_bits=2, steps=steps, equalize=unequal, device="cpu")
    measured = net if steps else csqtool.to_torch(quantized, net).model
    with torch.no_grad():
        wanted = measured.get_submodule("0")(x).mean((0, 2, 3))
    torch.testing.assert_close(torch.from_numpy(quantized.tensors["1.running_mean"]), wanted, rtol=1e-3, atol=1e-4)


class Partly(nn.Module):
    """A constant activation, and a layer that no input reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.never, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x)) * 0
        return torch.as_tensor(self.last(x) if x.ndim == 2 else self.never(x))


def test_constant_activations_and_layers_without_samples_are_named() -> None:
    told: list[str] = []
    quantized = csqtool.quantize(Partly().eval(), torch.randn(64, 6), target_bits=3, act_bits=8, steps=2,
                                 progress=Told(told.append))  # fmt: skip
    assert any("no sample reaches" in line and "never.weight" in line for line in told)
    assert any("one value for all calibration samples: mul.output" in line for line in told)
    assert {layer.name for layer in quantized.layers} == {"first.weight", "last.weight"}


def test_the_command_names_what_is_missing_and_writes_nothing(tmp_path: Path) -> None:
    result = invoke("quantize", DIGITS, "-o", tmp_path / "m.safetensors")
    assert result.exit_code == 2
    assert "quantize needs --data, --target-bits, --target-size or --target-bops" in result.stderr
    assert not list(tmp_path.iterdir())


# --- allocators --------------------------------------------------------------------------------------------


def labels() -> Tensor:
    with torch.no_grad():
        return made()(inputs()).argmax(1)


SETTINGS: dict[str, Any] = {"target_bits": 2, "steps": 0, "batch_size": 32, "device": "cpu", "batch_norm": False}


def test_an_allocator_is_given_the_labels_and_its_scheme_is_what_the_weights_are_rounded_to() -> None:
    x, y = inputs(), labels()
    given = {**SETTINGS, "target_bits": 2.1}  # room for 545 planes in two layers of 54 and 96 weights
    found = csqtool.quantize(made(), (x, y), allocator="hawq-v3", hessian_steps=5, **given)
    searched = csqtool.search(made(), train=(x, y), test=(x, y), method="hawq-v3", epochs=0, hessian_steps=5,
                              target_bits=2.1, batch_size=32, device="cpu")  # fmt: skip
    planes = {layer.name: layer.precision for layer in found.layers}
    assert planes == {layer.name: layer.precision for layer in searched.scheme}
    assert planes != {layer.name: layer.precision for layer in csqtool.quantize(made(), x, **given).layers}
    method = found.info.method
    assert method is not None
    assert (method.name, method.allocator) == ("post-training", "hawq-v3")
    assert "post-training, planes by hawq-v3, target 2.1 bits" in origin_text(found)


def test_a_loader_with_labels_serves_an_allocator_and_its_random_state_stays() -> None:
    net, loader = made(), DataLoader(TensorDataset(inputs(), labels()), 32, shuffle=True)
    given = {name: value for name, value in SETTINGS.items() if name != "batch_size"}  # which is the loader's
    before = torch.get_rng_state()
    with pytest.raises(csqtool.InputError, match="needs labels"):
        csqtool.quantize(net, DataLoader(TensorDataset(inputs()), 32, shuffle=True), allocator="hawq", **given)
    assert torch.equal(torch.get_rng_state(), before)
    found = csqtool.quantize(net, loader, allocator="measured", **given)
    assert found.info.method is not None
    assert found.info.method.allocator == "measured"


def test_an_allocator_that_needs_no_data_takes_inputs_alone() -> None:
    given: dict[str, Any] = {"synthetic_samples": 8, "synthetic_steps": 2, **SETTINGS}
    found = csqtool.quantize(made(), inputs(), allocator="zeroq", **given)
    elements = sum(layer.elements for layer in found.layers)
    assert sum(layer.precision * layer.elements for layer in found.layers) <= 2 * elements


@pytest.mark.parametrize(
    "given",
    [lambda x: x, lambda x: list(x.split(64)), lambda x: DataLoader(TensorDataset(x), 64)],
    ids=["tensor", "batches", "loader"],
)
def test_an_allocator_that_needs_labels_is_refused_on_inputs_alone(given: Callable[[Tensor], Any]) -> None:
    message = "^hawq-v2 needs labels, and the calibration data are inputs alone: give pairs"
    with pytest.raises(csqtool.InputError, match=message):
        csqtool.quantize(made(), given(inputs()), allocator="hawq-v2", **SETTINGS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"allocator": "hawq-v4"}, "allocator must be one of output-error, .*hawq-v3.*, got 'hawq-v4'"),
        ({"allocator": "lsq"}, "allocator must be one of output-error"),
        ({"allocator": "zeroq", "hessian_steps": 9}, "hessian_steps is not an option of zeroq; it belongs to hawq"),
        ({"hessian_steps": 9}, "hessian_steps is not an option of output-error; it belongs to hawq"),
        ({"allocator": "hawq", "strength": 0.1}, "quantize has no setting 'strength'"),
        ({"allocator": "zeroq", "task": "regression"}, "zeroq compares class probabilities"),
        ({"allocator": "hawq-v3", "labels": 99}, "99"),
    ],
)
def test_what_does_not_go_with_an_allocator_is_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    number = settings.pop("labels", None)
    given: Any = inputs() if number is None else (inputs(), torch.full((192,), number))
    with pytest.raises(csqtool.InputError, match=message) as caught:
        csqtool.quantize(made(), given, **{**SETTINGS, **settings})
    assert "\n" not in str(caught.value)
