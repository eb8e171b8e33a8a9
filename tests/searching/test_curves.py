"""The allocator gp: its curves, and what it finds where the best scheme is known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from csqtool.searching.allocation import cheapest
from csqtool.searching.allocators.gp import SHARES, Gp, best_curve, most_told, on_curve
from csqtool.searching.budget import Budget
from csqtool.searching.trials import Trials
from tests.support.allocations import given


def budget(limit: float, layers: int = 5) -> Budget:
    names = [f"l{i}" for i in range(layers)]
    return Budget(dict.fromkeys(names, 10), dict.fromkeys(names, 1), dict.fromkeys(names, 7), limit)


def test_a_curve_is_that_of_bernstein_s_polynomials_and_its_shift_the_largest_that_fits() -> None:
    controls = [0.9, 0.1, 0.4]
    t = np.linspace(0, 1, 5)
    levels = 7 * (0.9 * (1 - t) ** 2 + 2 * 0.1 * t * (1 - t) + 0.4 * t**2)
    all_shifts = np.clip(np.floor(levels + np.linspace(-8, 8, 16001)[:, None]), 1, 7)  # (shifts, layers)
    for limit in (1.0, 1.6, 2.4, 3.8, 5.0, 7.0):
        fitting = all_shifts[all_shifts.sum(1) <= 5 * limit + 1e-9]
        best = fitting[fitting.sum(1).argmax()]
        assert list(on_curve(controls, budget(limit)).values()) == best.tolist()


def test_a_curve_of_one_control_and_one_layer_has_the_planes_of_the_budget() -> None:
    assert on_curve([0.3], budget(3.5, 1)) == {"l0": 3}
    small = Budget({"a": 800, "b": 80}, {"a": 1, "b": 2}, {"a": 7, "b": 7}, 100, "bytes", reaches_zero=True)
    assert on_curve([0.9, 0.2], small) == {"a": 1, "b": 2}  # a size that nothing meets before training


def test_few_curves_need_no_model_and_the_best_is_one_that_was_trained_longest() -> None:
    shares = []

    def loss(planes: Mapping[str, int], share: int) -> float:
        shares.append(share)
        return math.inf if planes["l0"] < 3 else float(planes["l4"]) + (100 if share == SHARES[-1] else 0)

    told: list[float] = []
    found = best_curve(budget(3.0), loss, curves=5, controls=2, generator=torch.Generator().manual_seed(0),
                       told=lambda _, least: told.append(least))  # fmt: skip
    assert shares == [10, 2, 1, 0, 10]
    assert told[-1] == 100 + found["l4"]
    assert found["l0"] >= 3


class Joint:
    """A model of one curve: tasks with known correlations to the last one, of deviation 1 and without noise."""

    def __init__(self, correlations: list[float]) -> None:
        self.correlations = correlations
        self.likelihood = type("Likelihood", (), {"noise": torch.zeros(1)})

    def posterior(self, x: torch.Tensor) -> object:
        shared = self.correlations[int(x[0, -1])]
        return type("Posterior", (), {"covariance_matrix": torch.tensor([[1.0, shared], [shared, 1.0]])})


def test_a_task_is_chosen_by_what_it_tells_for_its_cost() -> None:
    controls = torch.tensor([0.5, 0.5], dtype=torch.float64)
    # −log(1 − ρ²)/2 over training and one, by hand: 0.05, 0.51, 0.28 and 1.26 (ρ² is at most 1 − 1e-12).
    assert most_told(Joint([0.3, 0.9327, 0.9, 1.0]), controls) == 3
    assert most_told(Joint([0.3, 0.99999, 0.9, 0.99]), controls) == 1  # 0.05, 2.7, 0.28, 0.18
    assert most_told(Joint([0.9, 0.9, 0.9, 0.9]), controls) == 0


@pytest.mark.slow
def test_the_curve_of_a_loss_whose_best_scheme_is_known_is_found_and_better_than_drawn_ones() -> None:
    pytest.importorskip("botorch")
    layers, limit = 9, 3.0
    # Harms that fall by 4 from layer to layer make a straight fall of the planes the best of all schemes.
    harms = {f"l{i}": {k: 4.0 ** (-0.5 * i - k) for k in range(1, 8)} for i in range(layers)}
    best = {name: len(planes) for name, planes in cheapest(harms, budget(limit, layers)).items()}
    tried: list[float] = []

    def loss(planes: Mapping[str, int], share: int) -> float:
        found = math.log(sum(harms[name][k] for name, k in planes.items()))
        tried.append(found)
        return found + 0.3 / (1 + share) * math.sin(sum(planes.values()) + planes["l0"])  # short trainings mislead

    generator = torch.Generator().manual_seed(0)
    found = best_curve(budget(limit, layers), loss, curves=30, controls=2, generator=generator, told=lambda *_: None)
    least = math.log(sum(harms[name][k] for name, k in best.items()))
    assert loss(found, 10**9) <= least + 0.05
    assert np.mean(tried[8:-1]) < np.mean(tried[:8]) - 0.3  # it tries better curves than those drawn at first


@pytest.mark.slow
def test_what_gp_finds_is_near_the_best_of_all_schemes() -> None:
    pytest.importorskip("botorch")
    allocation, _, _, _ = given("gp", target_bits=1.7, max_bits=4, gp_curves=40, gp_steps=2)
    allocator = Gp(allocation)
    found = {name: len(planes) for name, planes in allocator.scheme().items()}
    trials = Trials(allocator, 0.005)
    sizes = {"0.weight": 48, "3.weight": 64, "5.weight": 24}
    all_schemes = (dict(zip(sizes, one, strict=True)) for one in itertools.product(range(1, 5), repeat=3))
    within_room = [one for one in all_schemes if sum(sizes[name] * k for name, k in one.items()) <= 1.7 * 136]
    losses = sorted(trials.loss(one, 20) for one in within_room)
    assert trials.loss(found, 20) <= losses[len(losses) // 4]
