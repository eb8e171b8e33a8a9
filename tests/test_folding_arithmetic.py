from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from csqtool.folding import BatchNorm, bias_step, fold_scale, integer_bias

EPSILON = 1e-3


def batch_norm(gamma: list[float], seed: int = 0) -> BatchNorm:
    random = np.random.default_rng(seed)
    count = len(gamma)
    beta, mean = random.normal(size=(2, count)).astype(np.float32)
    variance = random.uniform(0.1, 3, count).astype(np.float32)
    return BatchNorm(np.array(gamma, np.float32), beta, mean, variance, EPSILON)


def reference(q: NDArray[np.int8], scale: np.float32, bias: NDArray[np.float32] | None, norm: BatchNorm,
              x: NDArray[np.float64]) -> NDArray[np.float64]:  # fmt: skip
    """Layer and BatchNorm one after the other, in double precision: [N, I] → [N, C]."""
    y = x @ (q.astype(np.float64) * np.float64(scale)).T + (0 if bias is None else bias.astype(np.float64))
    deviation = np.sqrt(norm.variance.astype(np.float64) + norm.epsilon)
    return (y - norm.mean) / deviation * norm.gamma + norm.beta


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("gamma", [[1.0, 0.3], [-2.0, 0.5], [0.0, -1.0], [0.0, 0.0]])
def test_a_folded_layer_computes_layer_and_batch_norm(gamma: list[float], with_bias: bool) -> None:
    norm = batch_norm(gamma)
    random = np.random.default_rng(1)
    q, x = random.integers(-7, 8, (len(gamma), 5)).astype(np.int8), random.normal(size=(20, 5))
    scale, bias = np.float32(0.013), random.normal(size=len(gamma)).astype(np.float32) if with_bias else None
    folded = fold_scale(scale, norm.factor)
    weight = (folded.sign[:, None] * q).astype(np.float64) * folded.scale.astype(np.float64)[:, None]
    found = x @ weight.T + norm.effective_bias(bias)
    assert np.allclose(found, reference(q, scale, bias, norm, x), rtol=1e-6, atol=1e-6)
    assert (folded.scale > 0).all()


def test_a_negative_gamma_flips_signs_and_a_zero_one_clears_its_channel() -> None:
    folded = fold_scale(np.float32(0.5), np.array([2.0, -2.0, 0.0, 1e-60]))
    assert folded.sign.tolist() == [1, -1, 0, 0]  # the last is 0 in float32
    assert folded.scale.tolist() == [1.0, 1.0, 0.5, 0.5]
    assert folded.sign.dtype == np.int8
    assert folded.scale.dtype == np.float32


def test_the_folded_scale_is_rounded_once() -> None:
    random = np.random.default_rng(2)
    scale, factor = np.float32(0.1), random.normal(size=1000)
    wanted = [np.float32(float(scale) * abs(value)) for value in factor.tolist()]
    assert fold_scale(scale, factor).scale.tolist() == wanted


def test_a_bias_is_rounded_half_to_even_in_steps_of_both_scales() -> None:
    step = bias_step(np.float32(0.5), np.array([0.25, 0.5, 1.0, 1.0], np.float32))
    assert step.tolist() == [0.125, 0.25, 0.5, 0.5]
    found = integer_bias(np.array([0.0625, -0.625, 0.75, -0.74], np.float32), step)
    assert found is not None
    assert found.tolist() == [0, -2, 2, -1]  # 0.5, −2.5, 1.5 and −1.48 steps
    assert found.dtype == np.int32


@pytest.mark.parametrize(
    ("bias", "step", "fits"),
    [
        (2.0**31 - 1, 1.0, True),
        (-(2.0**31) + 1, 1.0, True),
        (2.0**31, 1.0, False),
        (-(2.0**31), 1.0, False),  # the range is symmetric
        (1.0, 1e-10, False),
        (1.0, 0.0, False),
        (np.nan, 1.0, False),
    ],
)
def test_a_bias_beyond_int32_is_refused(bias: float, step: float, fits: bool) -> None:
    found = integer_bias(np.array([0.0, bias]), np.array([1.0, step], np.float32))
    assert (found is not None) == fits
    if found is not None:
        assert found.tolist() == [0, int(bias)]
