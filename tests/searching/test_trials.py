"""Trials of whole schemes, and haq: its episodes, and what its agent finds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from csqtool.errors import ConfigError
from csqtool.searching import allocation as allocation_module
from csqtool.searching.allocators.haq import Haq, LayerByLayer, features, within
from csqtool.searching.allocators.hawq_v3 import HawqV3
from csqtool.searching.budget import Budget
from csqtool.searching.scheme import round_to
from csqtool.searching.trials import Trials
from tests.support.allocations import given

NAMES = ("0.weight", "3.weight", "5.weight")


def budget(limit: float, layers: int = 5) -> Budget:
    names = [f"l{i}" for i in range(layers)]
    return Budget(dict.fromkeys(names, 10), dict.fromkeys(names, 1), dict.fromkeys(names, 7), limit)


def test_a_trial_without_steps_is_the_loss_of_the_rounded_network_by_hand() -> None:
    allocation, net, x, y = given("hawq-v3")
    planes = dict(zip(NAMES, (2, 1, 3), strict=True))
    found = Trials(HawqV3(allocation), 0.01).loss(planes)
    rounded = {name: round_to(net.get_parameter(name).detach(), tuple(range(k))) for name, k in planes.items()}
    with torch.no_grad():
        expected = float(cross_entropy(torch.func.functional_call(net, rounded, (x,)), y))
    assert found == pytest.approx(expected, rel=1e-5)


def test_training_lowers_the_loss_of_a_trial_is_repeatable_and_leaves_the_network_as_it_was() -> None:
    allocation, _, _, _ = given("hawq-v3", act_bits=8, batch_size=30)
    allocation.network.net.calibrate(x for x, _ in [(torch.randn(32, 6), 0)])
    before = {name: value.clone() for name, value in allocation.network.net.state_dict().items()}
    ones = dict.fromkeys(NAMES, 1)
    first, again = Trials(HawqV3(allocation), 0.02), Trials(HawqV3(allocation), 0.02)
    assert first.loss(ones, 30) < 0.8 * first.loss(ones)
    assert first.loss(ones, 30) == again.loss(ones, 30)
    assert all(torch.equal(value, before[name]) for name, value in allocation.network.net.state_dict().items())


def test_actions_become_planes_and_lose_them_from_the_last_layer_to_the_first_until_they_fit() -> None:
    assert list(within([0.0, 0.07, 0.5, 0.93, 1.0], budget(7.0)).values()) == [1, 1, 4, 7, 7]
    # From 4 planes everywhere to 16 of 20: the last four layers lose one each.
    assert list(within([0.5] * 5, budget(3.2)).values()) == [4, 3, 3, 3, 3]
    # To 9: twice all of them, then the last one.
    assert list(within([0.5] * 5, budget(1.8)).values()) == [2, 2, 2, 2, 1]
    assert list(within([1.0] * 5, budget(1.0)).values()) == [1, 1, 1, 1, 1]


def test_an_episode_is_rewarded_at_its_end_and_the_best_scheme_is_kept() -> None:
    layers = LayerByLayer(
        np.eye(3, 8, dtype=np.float32), budget(7.0, 3), lambda planes: -abs(sum(planes.values()) - 12)
    )
    assert layers.reset().tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0.5]
    for actions, reward in (((0.5, 0.5, 0.5), 0.0), ((1.0, 1.0, 1.0), -9.0)):
        layers.reset()
        steps = [layers.step(action) for action in actions]
        assert [one[1:] for one in steps] == [(0.0, False), (0.0, False), (reward, True)]
        assert steps[0][0][-1] == np.float32(actions[0])
    assert list(layers.best.values()) == [4, 4, 4]
    assert layers.episodes == 2


def test_the_agent_sees_columns_from_zero_to_one() -> None:
    allocation, _, _, _ = given("hawq-v3")
    found = features(allocation.network)
    assert found.shape == (3, 8)
    assert found[:, 5].tolist() == pytest.approx([0.6, 1.0, 0.0])  # 48, 64 and 24 weights
    assert found.min() == 0
    assert found.max() == 1


@pytest.mark.parametrize(("name", "package"), [("gp", "botorch"), ("haq", "stable-baselines3")])
def test_a_missing_library_is_named_before_anything_is_trained(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocation_module, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=rf"{name} needs {package}: pip install 'csqtool\[{name}\]'"):
        given(name)


@pytest.mark.slow
def test_what_the_agent_finds_is_near_the_best_of_all_schemes() -> None:
    pytest.importorskip("stable_baselines3")
    allocation, _, _, _ = given("haq", target_bits=1.7, max_bits=4, haq_episodes=120)
    allocator = Haq(allocation)
    found = {name: len(planes) for name, planes in allocator.scheme().items()}
    trials = Trials(allocator, 0.005)
    within_room = [dict(zip(NAMES, one, strict=True)) for one in itertools.product(range(1, 5), repeat=3)
                   if one[0] * 48 + one[1] * 64 + one[2] * 24 <= 1.7 * 136]  # fmt: skip
    losses = sorted(map(trials.loss, within_room))
    assert trials.loss(found) <= losses[len(losses) // 4]
