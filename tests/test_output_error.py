"""The output error is measured only from the changed layer on, and gives what whole runs give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import csqtool
from csqtool import quantizing
from csqtool.output_error import OutputError, SweptProbe
from csqtool.progress import Silent
from csqtool.searching.budget import uniform
from csqtool.searching.scheme import LossProbe


class Residual(nn.Module):
    """A block whose forward pass leaves a context, works in place, and adds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled()):
            y = torch.relu(self.norm(self.first(x)))
            y = self.second(y)
        y += x
        return torch.relu_(y)


class Products(TorchDispatchMode):
    """Counts the matrix products that are computed."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.addmm.default
        with torch._C.DisableTorchFunction():
            return func(*args, **(kwargs or {}))


def made() -> nn.Module:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(10, 16), Residual(), Residual(), nn.Linear(16, 3))
    with torch.no_grad():
        for _ in range(20):
            net(inputs())
    return net.eval()


def inputs() -> Tensor:
    return torch.randn(96, 10, generator=torch.Generator().manual_seed(2))


def weights(net: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in net.named_parameters() if p.ndim >= 2}


def measured(net: nn.Module) -> OutputError:
    return OutputError(net, made(), list(inputs().split(48)))


def test_errors_of_one_pass_from_layer_to_layer_are_those_of_whole_runs_and_take_fewer_products() -> None:
    net = made()
    error, before = measured(net), {name: p.detach().clone() for name, p in weights(net).items()}
    whole = LossProbe(weights(net), error.whole)
    swept = SweptProbe(weights(net), error, {name: uniform(3) for name in weights(net)}, Silent())
    asked = [(name, uniform(planes)) for planes in (3, 1, 2) for name in weights(net)]
    with Products() as all_of_it:
        wanted = [whole(*one) for one in asked]
    with Products() as less:
        found = [swept(*one) for one in asked]
    assert found == wanted
    assert len(set(found)) == len(found)
    assert less.count < 0.65 * all_of_it.count
    assert swept("0.weight", uniform(5)) == whole("0.weight", uniform(5))
    assert swept.of_scheme(dict.fromkeys(weights(net), uniform(2))) == pytest.approx(
        whole.of_scheme(dict.fromkeys(weights(net), uniform(2)))
    )
    assert all(torch.equal(p, before[name]) for name, p in weights(net).items())


def quantized(**settings: Any) -> tuple[csqtool.QuantizedModel, int]:
    given = {"target_bits": 2, "steps": 0, "batch_norm": False, "device": "cpu", **settings}
    with Products() as products:
        model = csqtool.quantize(made(), inputs(), **given)
    return model, products.count


@pytest.mark.parametrize("equalize", [False, True])
def test_quantize_gives_the_same_model_with_whole_runs(monkeypatch: pytest.MonkeyPatch, equalize: bool) -> None:
    model, products = quantized(equalize=equalize)
    monkeypatch.setattr(OutputError, "begin", lambda *_: None)
    other, more = quantized(equalize=equalize)
    assert products < 0.85 * more
    for one, same in zip(model.layers, other.layers, strict=True):
        assert np.array_equal(one.q, same.q)
        assert one.scale == same.scale


def test_a_large_network_is_measured_once_a_layer_and_its_scheme_is_nearly_as_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    begin = OutputError.begin
    monkeypatch.setattr(OutputError, "begin", lambda self, name: calls.append(name) or begin(self, name))
    net = made()
    error = measured(net)
    schemes = []
    for most in (quantizing.MOST_MULTIPLICATIONS, 0):
        monkeypatch.setattr(quantizing, "MOST_MULTIPLICATIONS", most)
        calls.clear()
        model, _ = quantized(equalize=False)
        schemes.append({layer.name: uniform(layer.precision) for layer in model.layers})
        assert bool(calls) == bool(most)
    whole = LossProbe(weights(net), error.whole)
    best, estimated = (whole.of_scheme(scheme) for scheme in schemes)
    assert estimated <= max(1.25 * best, whole.of_scheme(dict.fromkeys(weights(net), uniform(2))))
