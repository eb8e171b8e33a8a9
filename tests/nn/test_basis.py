"""Learned bases: the least-squares step against a reference solver, and levels that are integers times one scale."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from csqtool.nn.basis import RIDGE, BasisWeight, least_squares


def test_the_least_squares_step_is_that_of_a_reference_solver() -> None:
    torch.manual_seed(0)
    codes, weights, before = torch.randn(4, 50, 3).sign(), torch.randn(4, 50), torch.rand(4, 3)
    found = least_squares(codes.double(), weights.double(), before.double()).numpy()
    for group in range(4):
        # The same as rows √δ·I with targets √δ·v below B and w.
        rows = np.concatenate([codes[group].numpy(), RIDGE**0.5 * np.eye(3)])
        targets = np.concatenate([weights[group].numpy(), RIDGE**0.5 * before[group].numpy()])
        wanted, *_ = np.linalg.lstsq(rows, targets, rcond=None)
        assert found[group] == pytest.approx(wanted, abs=1e-9)


def test_codes_that_never_differ_keep_the_basis_finite() -> None:
    same = torch.ones(1, 20, 2)
    found = least_squares(same, torch.full((1, 20), 3.0), torch.tensor([[1.0, 1.0]]))
    assert float(found.sum()) == pytest.approx(3.0, abs=1e-3)


@pytest.mark.parametrize("groups", ["layer", "channel"])
@pytest.mark.parametrize(("planes", "level_bits"), [(1, 8), (2, 4), (3, 8), (7, 8)])
def test_each_group_has_the_sums_of_its_rounded_basis_as_levels(groups: str, planes: int, level_bits: int) -> None:
    torch.manual_seed(planes)
    weight = torch.randn(5, 40) * torch.tensor([0.1, 1.0, 2.0, 0.5, 1.0]).unsqueeze(1)
    source = BasisWeight(weight, range(planes), n_planes=8, groups=groups, level_bits=level_bits)
    q, scale, mask = source.integers()
    assert mask.count("1") == planes
    assert np.abs(q.astype(int)).max() < 2 ** (level_bits - 1)
    assert np.array_equal(q.astype(np.float32) * scale, source().detach().numpy())
    m, step = source.rounded_basis()
    for channel, weights in enumerate(weight.numpy()):
        basis = m[channel if groups == "channel" else 0].numpy()
        levels = np.array(sorted({float(np.dot(signs, basis)) for signs in product((-1, 1), repeat=planes)}))
        nearest = np.abs(weights[:, None] / step.item() - levels).min(1)
        errors = np.abs(weights / step.item() - q[channel].astype(np.float32) * scale / step.item())
        assert errors == pytest.approx(nearest, abs=1e-4)


def test_after_the_first_step_the_basis_is_the_least_squares_one_and_then_a_moving_average() -> None:
    torch.manual_seed(0)
    source = BasisWeight(torch.randn(6, 30), (0, 1), n_planes=8)
    solutions = []
    for _ in range(3):
        source()
        assert source._solved is not None
        solutions.append(source._solved.clone())
        with torch.no_grad():
            source.latent.add_(torch.randn(6, 30))
        source.take_step()
        if len(solutions) == 1:
            assert torch.allclose(source.basis, solutions[0])
    wanted = sum(0.1 * 0.9 ** (2 - i) * one for i, one in enumerate(solutions)) / (1 - 0.9**3)
    assert torch.allclose(source.basis, wanted)


def test_evaluation_leaves_the_basis_alone() -> None:
    source = BasisWeight(torch.randn(6, 30), (0, 1), n_planes=8)
    before = source.basis.clone()
    with torch.no_grad():
        source()
    source.eval()
    source()
    source.take_step()
    assert torch.equal(source.basis, before)


def test_the_gradient_passes_the_rounding_unchanged() -> None:
    source = BasisWeight(torch.randn(4, 4), (0, 1), n_planes=8)
    wanted = torch.arange(16.0).reshape(4, 4)
    source().backward(wanted)
    assert source.latent.grad is not None
    assert torch.equal(source.latent.grad, wanted)


def test_weights_of_zeros_stay_zeros() -> None:
    assert not BasisWeight(torch.zeros(3, 4), (0, 1), n_planes=8).integers().q.any()
