from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from csqtool.csq import pack
from csqtool.errors import ConfigError
from csqtool.model_info import ModelInfo
from csqtool.nn.latent import LsqWeight
from csqtool.quantized_model import LayerIntegers
from csqtool.searching.budget import uniform
from csqtool.searching.config import SearchConfig
from csqtool.searching.costs import Costs
from csqtool.searching.network import Network
from csqtool.searching.packed_size import SLACK
from tests.support.methods import small_net


def made(**settings: Any) -> tuple[Network, Costs]:
    config = SearchConfig.make(model="m", data="d", **settings)
    network = Network(small_net(), config, torch.zeros(2, 20))
    return network, Costs(network, config, lambda: ModelInfo({}))


def rounded(network: Network, bits: int) -> dict[str, LayerIntegers]:
    """Return the network's weights as integers of as many planes."""
    weights = network.weight_values()
    return {name: LsqWeight(weight, uniform(bits), n_planes=8).integers() for name, weight in weights.items()}


def test_a_budget_of_bits_counts_the_planes_of_the_masks_by_elements() -> None:
    network, costs = made(target_bits=3)
    assert not costs.counts_bytes
    integers = {
        "0.weight": LayerIntegers(np.zeros((40, 20), np.int8), np.float32(1), "00000001"),
        "2.weight": LayerIntegers(np.zeros((2, 40), np.int8), np.float32(1), "00001111"),
    }
    assert network.elements == {"0.weight": 800, "2.weight": 80}
    assert costs.of(integers) == (800 * 1 + 80 * 4) / 880


@pytest.mark.parametrize("profile", ["archival", "inference"])
@pytest.mark.parametrize("bits", [1, 3, 6])
def test_a_budget_of_bytes_counts_the_packed_file_itself(bits: int, profile: str) -> None:
    network, costs = made(target_size="5KB", size_profile=profile)
    assert costs.counts_bytes
    integers = rounded(network, bits)
    model = network.quantized(integers, ModelInfo({}))
    assert costs.of(integers) == len(pack(model, inference=profile == "inference"))


def test_an_untrained_network_promises_the_bytes_that_batch_norms_take_when_they_are_folded() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 40, bias=False), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 40),
                        nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 2))  # fmt: skip
    config = SearchConfig.make(model="m", data="d", target_size="5KB", size_profile="inference")
    network = Network(net, config, torch.zeros(2, 20))
    costs = Costs(network, config, lambda: ModelInfo({}))
    promised = costs.budget.fixed_bytes
    with torch.no_grad():
        for value in (*net.parameters(), *net.buffers()):
            if value.is_floating_point():
                value.uniform_(0.1, 1)
    costs.fix_other_bytes(rounded(network, 3))
    assert 0 <= promised - costs.budget.fixed_bytes <= SLACK * len(network.weights) + 64


def test_the_profile_of_a_size_needs_a_size() -> None:
    with pytest.raises(ConfigError, match="size_profile says what a target size counts: give a target size"):
        made(target_bits=3, size_profile="inference")


def test_measured_sizes_are_those_of_the_file_once_the_rest_of_it_is_known() -> None:
    network, costs = made(target_size="5KB")
    planes = {name: uniform(4) for name in network.elements}
    promised = costs.budget.cost(planes)
    costs.measure_sizes(network.weight_values)
    integers = {name: LsqWeight(w, uniform(4), n_planes=8).integers() for name, w in network.weight_values().items()}
    costs.fix_other_bytes(integers)
    assert costs.budget.cost(planes) == costs.of(integers)
    assert costs.budget.cost(planes) <= promised  # before, it is what is never exceeded


def test_a_budget_of_bits_measures_no_weights() -> None:
    _, costs = made(target_bits=3)

    def weights() -> dict[str, torch.Tensor]:
        raise AssertionError("asked for weights")

    before = costs.budget
    costs.measure_sizes(weights)
    assert costs.budget is before


@pytest.mark.parametrize("settings", [{"target_size": "100B"}, {"target_bits": 1, "min_bits": 2}])
def test_a_budget_that_nothing_meets_is_refused_before_the_search(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="cannot be met: the least that the layers and pins allow"):
        made(**settings)


def test_counting_leaves_the_network_as_it_was() -> None:
    network, costs = made(target_size="5KB")
    before = {name: value.clone() for name, value in network.net.state_dict().items()}
    costs.of(rounded(network, 2))
    assert all(torch.equal(value, before[name]) for name, value in network.net.state_dict().items())
    assert isinstance(network.model, nn.Sequential)
