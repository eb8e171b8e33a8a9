from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from csqtool.nn.latent import DorefaWeight, LatentWeight, LsqWeight, MinMaxWeight, PowersWeight
from csqtool.nn.levels import AdditivePowers


@pytest.mark.parametrize("planes", [1, 2, 3, 4])
def test_additive_powers_are_those_of_the_authors_code_times_their_denominator(planes: int) -> None:
    terms = {1: [[1]], 2: [[1 / 2, 1 / 4, 1 / 8]], 3: [[1 / 2, 1 / 4, 1 / 16], [1 / 8]],
             4: [[1 / 2, 1 / 8, 1 / 32], [1 / 4, 1 / 16, 1 / 64]]}[planes]  # fmt: skip
    wanted = {sum(one) for one in itertools.product(*[[0, *term] for term in terms])}
    assert len(wanted) == 2**planes
    values = AdditivePowers(planes).values
    magnitudes = values[values >= 0] * min(min(term) for term in terms)
    assert magnitudes.tolist() == sorted(wanted)
    assert (-values).flip(0).tolist() == values.tolist()


def test_weights_on_additive_powers_are_the_nearest_levels_times_the_step_size() -> None:
    torch.manual_seed(0)
    source = PowersWeight(torch.randn(300), (0, 1, 2), n_planes=8)
    q, scale, mask = source.integers()
    assert mask == "00000111"
    assert np.array_equal(q.astype(np.float32) * scale, source().detach().numpy())
    step = source.scale.item()
    levels = np.array([-10, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 10]) * step
    nearest = np.abs(source.latent.detach().numpy()[:, None] - levels).min(1)
    assert np.abs(source.latent.detach().numpy() - q * scale) == pytest.approx(nearest, abs=1e-5)


@pytest.mark.parametrize("kind", [LsqWeight, MinMaxWeight, DorefaWeight])
@pytest.mark.parametrize("kept", [(0,), (4, 5, 6), tuple(range(8))])
def test_integers_times_scale_are_the_weight_bit_for_bit(kind: type[LatentWeight], kept: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    source = kind(torch.randn(7, 5), kept, n_planes=8)
    q, scale, mask = source.integers()
    assert np.array_equal(q.astype(np.float32) * scale, source().detach().numpy())
    assert mask.count("1") == len(kept)
    assert np.abs(q.astype(int)).max() <= 2 ** len(kept) - 1


def test_lsq_rounds_to_planes_with_holes() -> None:
    source = LsqWeight(torch.linspace(-9, 9, 100), (0, 3), n_planes=8)
    source.scale.data.fill_(1.0)
    assert set(source.integers()[0].tolist()) == {-9, -8, -7, -1, 0, 1, 7, 8, 9}


def test_lsq_gradients_are_those_of_the_paper() -> None:
    source = LsqWeight(torch.tensor([0.2, -0.9, 5.0, -7.0]), (0, 1), n_planes=8)  # Q = 3
    source.scale.data.fill_(0.5)
    source().backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert source.latent.grad is not None
    assert source.scale.grad is not None
    assert source.latent.grad.tolist() == [1.0, 2.0, 0.0, 0.0]  # inside −Q … Q it passes, outside it stops
    # round(v) − v inside, ±Q outside, times the gradient, over √(N·Q)
    wanted = (1 * (0 - 0.4) + 2 * (-2 + 1.8) + 3 * 3 + 4 * -3) / (4 * 3) ** 0.5
    assert float(source.scale.grad) == pytest.approx(wanted, abs=1e-6)


def test_a_step_size_changes_little_in_a_step_whatever_its_gradient() -> None:
    source = LsqWeight(torch.randn(50), tuple(range(7)), n_planes=8)
    before = source.scale.item()
    source().sum().backward()
    for wrong, wanted in ((1e3, 1.02 * before), (-1e3, 0.98 * before)):
        source.scale.data.fill_(wrong)
        source.hold_step_size()
        assert source.scale.item() == pytest.approx(wanted)


def test_dorefa_has_odd_levels_only() -> None:
    torch.manual_seed(0)
    q, _ = DorefaWeight(torch.randn(400), (0, 1), n_planes=8).quantized()
    assert set(q.tolist()) == {-3.0, -1.0, 1.0, 3.0}


def test_the_min_max_grid_reaches_the_largest_weight() -> None:
    source = MinMaxWeight(torch.tensor([0.1, -2.0, 1.1]), (0, 1), n_planes=8)
    assert source().tolist() == pytest.approx([0.0, -2.0, 4 / 3])
