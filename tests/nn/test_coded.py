from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from csqtool.nn.coded import CodedWeight, bisected_step


def made(weight: Tensor, step: float = 0.1, planes: int = 3) -> CodedWeight:
    return CodedWeight(weight, torch.tensor(step), planes, n_planes=8)


def numpy_bits(q: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> float:
    """Return −Σ log2 of each integer's frequency."""
    _, counts = np.unique(q, return_counts=True)
    return float(-(counts * np.log2(counts / q.size)).sum())


def test_the_rate_of_weights_on_the_grid_is_the_entropy_of_their_integers() -> None:
    torch.manual_seed(0)
    q = torch.randn(50, 40).mul(2).round().clamp(-7, 7)
    source = made(0.1 * q)
    assert float(source.rate().detach()) == pytest.approx(numpy_bits(q.numpy()), rel=1e-4)


def test_between_two_integers_the_bits_lie_on_the_line_between_theirs() -> None:
    source = made(torch.tensor([0.0] * 8 + [0.1] * 4 + [-0.2] * 4))
    bits = source.bits(torch.tensor([0.0, 0.25, 1.0, -2.0, 99.0, 7.0]))
    unseen = np.log2(16 / 0.5)
    assert bits.tolist() == pytest.approx([1.0, 1.25, 2.0, 2.0, unseen, unseen])


def test_weights_and_step_have_the_gradients_of_finite_differences() -> None:
    torch.manual_seed(1)
    source = made(torch.randn(30) * 0.2).double()
    source.rate().backward()
    assert source.latent.grad is not None
    assert source.scale.grad is not None
    tiny = 1e-7

    def rate() -> float:
        return float(source.bits(source.latent / source.scale).sum().detach())

    before = rate()
    for i in range(30):
        source.latent.data[i] += tiny
        assert (rate() - before) / tiny == pytest.approx(float(source.latent.grad[i]), rel=1e-4, abs=1e-4)
        source.latent.data[i] -= tiny
    source.scale.data += tiny
    slope = (rate() - before) / tiny
    assert slope != 0
    assert float(source.scale.grad) == pytest.approx(slope / (30 * 7) ** 0.5, rel=1e-4)  # as LSQ scales the task's


@pytest.mark.parametrize("price", [0.0, 0.05, 0.4, 1e8])
def test_rounding_takes_the_integer_with_the_smallest_sum_of_error_and_bits(price: float) -> None:
    torch.manual_seed(2)
    source = made(torch.randn(400) * 0.2)
    source.price.fill_(price)
    v = (source.latent.detach() / source.scale.detach()).double().numpy()
    counts = source.counts.double().numpy()
    lengths = -np.log2(np.maximum(counts, 0.5) / counts.sum())
    extra = np.maximum(lengths - lengths[7], 0)
    for x, chosen in zip(v, source.quantized().tolist(), strict=True):
        nearest = np.clip(np.round(x), -7, 7)
        costs = {q: (x - q) ** 2 + price * extra[int(q) + 7] for q in (nearest, nearest - np.sign(nearest), 0.0)}
        assert costs[chosen] <= min(costs.values()) + 0.02 * price + 1e-6
    if price == 0:
        assert source.quantized().tolist() == np.clip(np.round(v), -7, 7).tolist()
    if price == 1e8:
        assert not source.quantized().any()


@pytest.mark.parametrize("price", [0.0, 0.2])
def test_integers_times_scale_are_the_weight_bit_for_bit(price: float) -> None:
    torch.manual_seed(0)
    source = made(torch.randn(7, 5), 0.3, planes=4)
    source.price.fill_(price)
    q, scale, mask = source.integers()
    assert np.array_equal(q.astype(np.float32) * scale, source().detach().numpy())
    assert np.abs(q).max() < 2 ** mask.count("1")


def test_one_step_size_is_found_for_the_bits_of_all_layers_together() -> None:
    torch.manual_seed(3)
    weights = [torch.randn(3000), 0.3 * torch.randn(5000)]
    step = float(bisected_step(weights, 1.5, 15))
    bits = sum(numpy_bits(np.round(w.numpy() / np.float32(step))) for w in weights) / 8000
    assert bits == pytest.approx(1.5, abs=0.02)
    assert float(bisected_step([torch.zeros(4)], 1.5, 15)) == 1  # nothing to fit


def test_a_step_size_shrinks_by_no_more_than_its_share_of_the_limit() -> None:
    source = made(torch.randn(50))
    for shrinking, wanted in ((0.0, 0.1), (0.5, 0.099), (1.0, 0.098)):
        source.scale.data.fill_(0.1)
        source()
        source.scale.data.fill_(1e-3)
        source.after_step(shrinking)
        assert source.scale.item() == pytest.approx(wanted)
