"""Traces and eigenvalues against the exact Hessian of a small network."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from csqtool.nn.hessian import hutchinson, top_eigenvalues, traces


class Small:
    """A network of two layers on 40 samples, in batches of 24 and 16, and the exact Hessian of each weight."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
        self.x, self.y = torch.randn(40, 5), torch.randint(0, 3, (40,))
        self.weights = [self.net[0].weight, self.net[2].weight]

    def losses(self) -> Iterator[tuple[Tensor, float]]:
        for part in (slice(0, 24), slice(24, 40)):  # the batches' shares add up to the whole
            yield cross_entropy(self.net(self.x[part]), self.y[part]), (part.stop - part.start) / 40

    def hessian(self, index: int) -> Tensor:
        def loss(flat: Tensor) -> Tensor:
            changed = [flat if index == i else w.detach() for i, w in enumerate(self.weights)]
            hidden = torch.tanh(self.x @ changed[0].T + self.net[0].bias.detach())
            return cross_entropy(hidden @ changed[1].T + self.net[2].bias.detach(), self.y)

        weight = self.weights[index].detach()
        return torch.autograd.functional.hessian(loss, weight).reshape(weight.numel(), -1)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_hutchinsons_estimate_is_the_exact_trace_within_its_error() -> None:
    small, generator = Small(), seeded()
    found = torch.tensor([hutchinson(small.weights, small.losses, generator) for _ in range(300)])
    for index in range(2):
        exact = small.hessian(index).trace()
        error = found[:, index].std() / 300**0.5
        assert error > 0
        assert abs(found[:, index].mean() - exact) < 4 * error
        assert error < 0.2 * abs(exact)


def test_traces_of_all_layers_at_once_are_exact_within_the_error_that_they_state() -> None:
    small = Small()
    found = traces(small.weights, small.losses, seeded(), draws=400, tolerance=0.0)
    assert found.draws == 400
    for index in range(2):
        exact = float(small.hessian(index).trace())
        assert abs(found.values[index] - exact) < 4 * found.errors[index]
        assert 0 < found.errors[index] < 0.2 * abs(exact)


def test_traces_end_once_the_mean_no_longer_moves() -> None:
    small = Small()
    told: list[int] = []
    found = traces(small.weights, small.losses, seeded(), draws=400, tolerance=0.1, told=lambda n, _: told.append(n))
    assert told == list(range(1, found.draws + 1))
    assert 2 <= found.draws < 100


def test_the_power_iteration_finds_the_eigenvalue_of_largest_magnitude() -> None:
    small = Small()
    found = list(top_eigenvalues(small.weights, small.losses, seeded(), steps=500, tolerance=1e-6))
    for index in range(2):
        eigenvalues = torch.linalg.eigvalsh(small.hessian(index).double())
        exact = float(eigenvalues[eigenvalues.abs().argmax()])
        assert found[index] == pytest.approx(exact, rel=1e-3)


def test_a_weight_with_a_linear_loss_has_trace_and_eigenvalue_zero() -> None:
    weight = torch.ones(3, requires_grad=True)

    def losses() -> Iterator[tuple[Tensor, float]]:
        yield (weight * torch.arange(3.0)).sum() + 0 * weight.square().sum(), 1.0

    assert traces([weight], losses, seeded(), draws=2, tolerance=0.0).values == (0.0,)
    assert list(top_eigenvalues([weight], losses, seeded(), steps=5, tolerance=1e-3)) == [0.0]
