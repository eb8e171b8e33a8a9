"""Runs that skip what a changed parameter has no influence on give what whole runs give, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from csqtool.factories import build_model
from csqtool.nn.replay import DivergedError, Replay
from csqtool.searching.config import SearchConfig
from csqtool.searching.network import Network


class Branches(nn.Module):
    """A residual network with additions in place, a view, two results of one call, and a weight that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.shortcut = nn.Conv2d(8, 8, 1)
        self.twice = nn.Linear(8, 8)
        self.last = nn.Linear(8, 5)
        self.spare = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.norm(self.first(x)))
        y = self.inner(x)
        y += self.shortcut(x)
        values, places = y.flatten(2).max(dim=2)
        values = self.twice(torch.relu(self.twice(values)))
        values[:, 0] = places[:, 0].float()
        first, second = values.chunk(2, dim=1)
        found: Tensor = self.last(torch.cat([second, first], dim=1))
        return found


def weights(net: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in net.named_parameters() if p.ndim >= 2}


def assert_same_as_whole_runs(net: nn.Module, run: Callable[[], float], *, times: int = 2) -> Replay[float]:
    replay = Replay(run, weights(net))
    for name in replay.order:
        parameter = weights(net)[name]
        replay.begin(name)
        before = parameter.data
        for factor in range(2, 2 + times):
            parameter.data = before / factor
            with torch.no_grad():
                assert replay() == run(), name
        parameter.data = before
    with torch.no_grad():
        assert replay() == run()
    return replay


def test_a_network_of_many_forms_gives_the_loss_of_whole_runs() -> None:
    torch.manual_seed(0)
    net, x = Branches().eval(), torch.randn(4, 3, 6, 6)
    replay = assert_same_as_whole_runs(net, lambda: float(net(x).square().mean()))
    assert replay.order == [f"{name}.weight" for name in ("first", "inner", "shortcut", "twice", "last")]
    assert float(net(x).detach().square().mean()) == replay.value


def quantized(module: nn.Module, x: Tensor, act_bits: int | None) -> Network:
    network = Network(module, SearchConfig.make(model="m", data="d", target_bits=3, act_bits=act_bits), x)
    network.calibrate(lambda: [x])
    network.net.eval()
    return network


class Products(TorchDispatchMode):
    """Counts the matrix products that are computed."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default)
        with torch._C.DisableTorchFunction():
            return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("act_bits", [None, 4])
def test_what_comes_before_a_layer_is_not_computed_again(act_bits: int | None) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 6)
    net = quantized(nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.GELU()) for _ in range(4))), x, act_bits).net
    replay = assert_same_as_whole_runs(net, lambda: float(net(x).sum()))
    replay = Replay(lambda: float(net(x).sum()), weights(net))
    for number, name in enumerate(replay.order):
        replay.begin(name)
        with Products() as products:
            replay()
        assert products.count == 4 - number


@pytest.mark.parametrize("spec", [
    "digits_cnn/model.py:digits_cnn",
    pytest.param("digits_vit/model.py:digits_vit", marks=pytest.mark.long),
])  # fmt: skip
def test_sample_models_with_quantized_activations_give_the_loss_of_whole_runs(spec: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 1, 8, 8)
    network = quantized(build_model(f"sample_models/{spec}"), x, 8)
    replay = assert_same_as_whole_runs(network.model, lambda: float(network.net(x).square().mean()), times=1)
    assert {weight.name for weight in network.weights} <= set(replay.order)


def test_held_tensors_that_a_later_call_changes_are_not_used_again() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    net, x = nn.ModuleList([first, second]), torch.randn(3, 4)

    def run() -> float:
        y = first(x)
        y += second(x)
        return float(y.sum())

    assert_same_as_whole_runs(net, run, times=3)


def test_a_run_inside_a_context_of_torch_begins_at_any_layer_in_any_order() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4))), torch.randn(5, 6)

    @torch.no_grad()
    def run() -> float:
        return float(net(x).sum())

    replay = Replay(run, weights(net))
    for position in (2, 3, 1, 0):
        replay.begin(f"{position}.weight")
        with Products() as products:
            assert replay() == run()
        assert products.count == 4 - position + 4  # of the replay, and of the whole run


def test_a_function_that_makes_other_calls_each_time_is_noticed() -> None:
    net, x, runs = nn.Linear(3, 3), torch.randn(2, 3), [0]

    def run() -> float:
        runs[0] += 1
        y = x + 1 if runs[0] > 1 else x.relu()
        return float(net(y).sum())

    replay = Replay(run, weights(net))
    with pytest.raises(DivergedError):
        replay.begin("weight")
