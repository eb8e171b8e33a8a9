"""MSQ: which layers lose how many planes in a round, and that it ends at the budget."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from csqtool.data import as_source
from csqtool.searching.curvature import Curvature
from csqtool.searching.msq import Msq
from tests.support.methods import made, small_net


def msq(target: float, **settings: Any) -> Msq:
    method = made("msq", target, small_net(), **settings)
    assert isinstance(method, Msq)
    return method


def planes(method: Msq) -> tuple[int, ...]:
    return tuple(len(kept) for kept in method.scheme().values())


def with_sensitivities(method: Msq, monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    monkeypatch.setattr(method, "sensitivities", lambda _number: dict(zip(method.sources, values, strict=True)))


def test_a_sparse_layer_below_the_mean_sensitivity_loses_two_planes_and_another_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = msq(2, drop_rounds=1, odd_share=1.0)
    with_sensitivities(method, monkeypatch, 1.0, 5.0)
    method.at_step(0.75)
    assert planes(method) == (6, 7)


def test_layers_whose_bits_are_not_sparse_are_dropped_only_as_far_as_the_line_to_the_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = msq(4, drop_rounds=2, odd_share=0.0)
    with_sensitivities(method, monkeypatch, 100.0, 0.1)  # a weight: 0.125 and 0.00125
    method.at_step(0.375)
    # The small layer's two planes leave 7.8 on average, above the line's 6; then the large one loses one.
    assert planes(method) == (7, 6)
    method.at_step(0.75)
    assert planes(method) == (6, 4)


def test_no_plane_is_dropped_below_the_budget_or_a_pin(monkeypatch: pytest.MonkeyPatch) -> None:
    method = msq(5, drop_rounds=40, odd_share=1.0, pin={"2.weight": 7})
    with_sensitivities(method, monkeypatch, 1.0, 1.0)
    method.at_step(1.0)
    assert planes(method) == (4, 7)  # with 5 in the first layer the average is above 5
    assert method.regularization() is None


def test_asking_for_the_same_step_again_changes_nothing() -> None:
    method = msq(3)
    method.at_step(0.5)
    before = {name: source.state_dict() for name, source in method.sources.items()}
    copies = {name: {k: v.clone() for k, v in state.items()} for name, state in before.items()}
    assert planes(method) != (8, 8)
    method.at_step(0.5)
    for name, source in method.sources.items():
        assert all(torch.equal(value, copies[name][key]) for key, value in source.state_dict().items())


def test_the_penalty_of_all_layers_is_lambda_times_squared_steps() -> None:
    method = msq(3, lsb_strength=2.0)
    penalty = method.regularization()
    assert penalty is not None
    wanted = 0.0
    for source in method.sources.values():
        step, weight = source.scale.detach(), source.latent.detach()
        even = 2 * step * (weight / (2 * step)).round().clamp(-(source.largest // 2), source.largest // 2)
        wanted += 2.0 * float(step * (weight - even).abs().clamp(max=float(step)).sum())
    assert float(penalty.detach()) == pytest.approx(wanted, rel=1e-4)


def test_curvature_gives_the_trace_of_a_known_hessian_and_lets_processes_agree() -> None:
    net = nn.Linear(3, 1, bias=False)
    data = as_source(train=(torch.diag(torch.tensor([1.0, 2.0, 3.0])), torch.zeros(3, 1)), task="regression",
                     needs=("train",))  # fmt: skip
    told: list[list[float]] = []

    def agreed(found: list[float]) -> list[float]:
        told.append(found)
        return [7.0]

    curvature = Curvature(net, data, torch.device("cpu"), agreed)
    # The mean of (w_i·x_i)² over three samples has the second derivatives 2·x_i²/3, and no mixed ones.
    assert curvature([net.weight], count=3, draws=2, seed=0) == [7.0]
    assert told == [[pytest.approx(2 * (1 + 4 + 9) / 3)]]
