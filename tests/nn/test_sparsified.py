"""Latent weights that lose planes: what their lowest bits are, and which weights dropping leaves where they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csqtool.nn.sparsified import SparsifiedWeight


def at(values: list[float], planes: int) -> SparsifiedWeight:
    """Return weights in steps of one."""
    source = SparsifiedWeight(torch.tensor(values), range(planes), n_planes=8)
    source.scale.data.fill_(1.0)
    return source


def test_even_integers_stay_where_they_are_when_the_lowest_plane_is_dropped() -> None:
    source = at([6.0, -4.0, 2.0, 0.0, -6.0, 4.0], 3)
    before = source().detach().clone()
    source.drop(1)
    assert torch.equal(source().detach(), before)
    assert source.kept == (1, 2)
    q, scale, mask = source.integers()
    assert (q.tolist(), float(scale), mask) == ([3, -2, 1, 0, -3, 2], 2.0, "00000110")


def test_where_weights_are_not_on_even_integers_the_step_of_least_error_is_taken() -> None:
    torch.manual_seed(0)
    source = SparsifiedWeight(torch.randn(2000), range(7), n_planes=8)
    source.drop(5)
    q, scale, _ = source.integers()
    weight = source.latent.detach()
    error = float((weight - torch.from_numpy(q * scale)).square().mean())
    steps = torch.linspace(0.2, 2, 200)
    least = min(float(((weight / step).round().clamp(-3, 3) * step - weight).square().mean()) for step in steps)
    assert error < 1.02 * least  # the doubled step would leave twice as much


def test_the_lowest_bit_is_the_distance_to_the_nearest_even_integer_that_fits() -> None:
    source = at([3.0, 1.25, -0.75, 2.0, -3.0, 9.0], 2)
    bits = source.lowest_bits()
    assert bits.tolist() == [1.0, -0.75, -0.75, 0.0, -1.0, 1.0]
    bits.abs().sum().backward()
    assert source.latent.grad is not None
    # Towards the even integer; a weight far beyond the range is left to the clipping.
    assert source.latent.grad.tolist() == [1.0, -1.0, -1.0, 0.0, -1.0, 0.0]


def test_l1_alone_makes_the_lowest_bits_zero() -> None:
    torch.manual_seed(0)
    source = SparsifiedWeight(torch.randn(500), range(4), n_planes=8)
    assert float(source.odd_share()) > 0.3
    for _ in range(60):
        (gradient,) = torch.autograd.grad(source.lowest_bits().abs().sum(), [source.latent])
        source.latent.data -= 0.03 * source.scale.item() ** 2 * gradient
    assert float(source.odd_share()) < 0.02


@pytest.mark.parametrize("planes", [1, 3, 7])
def test_integers_times_scale_are_the_weight_bit_for_bit(planes: int) -> None:
    torch.manual_seed(0)
    source = SparsifiedWeight(torch.randn(7, 5), range(planes), n_planes=8)
    q, scale, mask = source.integers()
    assert np.array_equal(q.astype(np.float32) * scale, source().detach().numpy())
    assert mask.count("1") == planes
