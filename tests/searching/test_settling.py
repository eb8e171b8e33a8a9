from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from csqtool.searching.budget import Budget
from csqtool.searching.config import SearchConfig
from csqtool.searching.network import Network
from csqtool.searching.scheme import LossProbe
from csqtool.searching.settling import StartingPoints, contiguous, within_budget
from tests.support.methods import small_net

SCHEME = {"0.weight": (0, 1, 2), "2.weight": (0, 1, 2)}


@pytest.fixture
def network() -> Network:
    return Network(small_net(), SearchConfig.make(model="m", data="d", target_bits=3), torch.zeros(2, 20))


def state_of(network: Network) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.model.state_dict().items()}


def float_file(network: Network, path: Path) -> Path:
    save_file({name: torch.full_like(value, 0.5) for name, value in network.model.state_dict().items()}, path)
    return path


def points(network: Network, float_weights: Path, *, soft: bool = True) -> tuple[StartingPoints, list[str]]:
    """Return the starting points of a network, soft weights of 0.25, and the calibrations that were made."""
    values = {name: torch.full_like(value, 0.25) for name, value in network.weight_values().items()}
    calibrations: list[str] = []
    return StartingPoints(
        network, values if soft else None, float_weights, lambda: calibrations.append("now")
    ), calibrations


def test_each_point_puts_its_weights_into_the_network_whatever_was_there_before(
    network: Network, tmp_path: Path
) -> None:
    searched = state_of(network)
    found, calibrations = points(network, float_file(network, tmp_path / "f.safetensors"))
    assert found.names == ["searched", "soft", "float"]
    for name in ("float", "soft", "searched", "soft", "float"):
        found.load(name)
        state = state_of(network)
        if name == "searched":
            assert all(torch.equal(state[key], value) for key, value in searched.items())
        elif name == "float":
            assert all(bool((value == 0.5).all()) for value in state.values())
        else:  # the quantized weights alone are soft
            assert bool((state["0.weight"] == 0.25).all())
            assert torch.equal(state["0.bias"], searched["0.bias"])
    assert calibrations == ["now", "now"]  # the activations of the float model are others


def test_what_a_search_does_not_have_is_no_point_to_start_from(network: Network, tmp_path: Path) -> None:
    assert points(network, tmp_path / "none", soft=False)[0].names == ["searched"]
    assert points(network, tmp_path / "none")[0].names == ["searched", "soft"]


@pytest.mark.parametrize("best", ["searched", "soft", "float"])
def test_the_point_that_rounds_with_the_least_loss_is_the_best(best: str, network: Network, tmp_path: Path) -> None:
    searched = float(network.parameters["0.weight"].detach().mean())
    found, _ = points(network, float_file(network, tmp_path / "f.safetensors"))
    wanted = {"searched": searched, "soft": 0.25, "float": 0.5}[best]

    def loss() -> float:
        return abs(float(network.parameters["0.weight"].detach().mean()) - wanted)

    assert found.best(SCHEME, LossProbe(network.parameters, loss)) == best


def test_a_contiguous_scheme_keeps_as_many_planes_of_each_layer() -> None:
    closed = contiguous({"a": (0, 2, 5), "b": (7,), "c": (1, 2)})
    assert {name: len(planes) for name, planes in closed.items()} == {"a": 3, "b": 1, "c": 2}
    assert all(planes == tuple(range(planes[0], planes[0] + len(planes))) for planes in closed.values())


def test_a_scheme_above_the_budget_loses_the_planes_that_are_worth_least(network: Network) -> None:
    budget = Budget({"0.weight": 100, "2.weight": 100}, {"0.weight": 1, "2.weight": 1},
                    {"0.weight": 4, "2.weight": 4}, 2.5)  # fmt: skip
    before = state_of(network)
    probe = LossProbe(network.parameters, lambda: 0.0)
    probed = {"0.weight": 10.0, "2.weight": 0.1}
    probe_of = type("Probe", (), {"__call__": lambda _, name, planes: -probed[name] * len(planes)})()
    settled = within_budget({"0.weight": (0, 1, 2, 3), "2.weight": (0, 1, 2, 3)}, budget, probe_of)
    assert {name: len(planes) for name, planes in settled.items()} == {"0.weight": 4, "2.weight": 1}
    assert budget.cost(within_budget(SCHEME, budget, probe)) <= 2.5
    assert all(torch.equal(value, before[name]) for name, value in state_of(network).items())
