"""Rounding gates: where they begin, where they end, and what pulls them there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from csqtool.nn.rounding import RoundingGates


def gates_of(planes: int) -> tuple[Tensor, RoundingGates]:
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(4))
    return weight, RoundingGates(weight, range(planes), n_planes=8)


@pytest.mark.parametrize("planes", [1, 2, 4])
@torch.no_grad()
def test_gates_begin_at_the_weight_and_harden_to_the_nearest_integer(planes: int) -> None:
    weight, gates = gates_of(planes)
    largest = 2**planes - 1
    exact = weight / gates.scale
    inside = exact.abs() <= largest
    assert float((gates() - weight)[inside].abs().max()) <= 0.011 * float(gates.scale)
    nearest = exact.round().clamp(-largest, largest)
    apart = (exact - exact.floor() - 0.5).abs() > 0.01
    gates.hard = True
    assert torch.equal((gates() / gates.scale).round()[apart], nearest[apart])
    found = gates.integers()
    torch.testing.assert_close(torch.from_numpy(found.q).float() * float(found.scale), gates())


def test_regularization_opens_and_closes_gates_between_the_two_integers_next_to_the_weight() -> None:
    weight, gates = gates_of(2)
    before = gates.integers().q.copy()
    optimizer = torch.optim.Adam([gates.logits], lr=0.1)
    gates.power = 2.0
    for _ in range(100):
        optimizer.zero_grad()
        gates.undecided().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        assert float(gates.undecided()) < 1e-3 * weight.numel()
    assert (before == gates.integers().q).mean() > 0.98  # nothing but their start decides


def test_an_error_moves_a_weight_to_the_farther_integer() -> None:
    weight, gates = gates_of(2)
    exact = (weight / gates.scale.detach()).clamp(-3, 3)
    wanted = torch.where(exact - exact.floor() > 0.5, exact.floor(), exact.floor() + 1).clamp(max=3)
    optimizer = torch.optim.Adam([gates.logits], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        (gates() - wanted * gates.scale.detach()).square().sum().backward()
        optimizer.step()
    assert (gates.integers().q == wanted.numpy()).mean() > 0.98
