"""BatchNorm folded into per-channel scales, and biases on the integer grid: numpy only.

A convolution followed by BatchNorm computes w·x·γ/σ + (β − μ·γ/σ). The integers of w do not change: the scale of each
channel becomes Δ·|γ|/σ, and a negative γ flips the signs of its channel. On integer kernels the bias is an int32
multiple of s_x·s_w. A bias that is rounded to that grid is the same number in PyTorch and on these kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool.errors import FormatError
from csqtool.quantized_model import QuantizedLayer

INT32_LIMIT = 2**31 - 1
BATCH_NORM_PARTS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class BatchNorm:
    """BatchNorm of a finalized model in evaluation mode, all of shape [C]."""

    gamma: NDArray[np.float32]
    beta: NDArray[np.float32]
    mean: NDArray[np.float32]
    variance: NDArray[np.float32]
    epsilon: float

    @property
    def factor(self) -> NDArray[np.float64]:
        """γ/σ, in double precision."""
        gamma: NDArray[np.float64] = self.gamma.astype(np.float64)
        return gamma / np.sqrt(self.variance.astype(np.float64) + self.epsilon)

    def effective_bias(self, bias: NDArray[np.float32] | None) -> NDArray[np.float64]:
        """Return β + (bias − μ)·γ/σ, [C]; `bias` is the preceding layer's, None for 0."""
        before = np.zeros(len(self.gamma)) if bias is None else bias.astype(np.float64)
        return self.beta.astype(np.float64) + (before - self.mean.astype(np.float64)) * self.factor


def epsilon_to_fold(layer: QuantizedLayer, tensors: Mapping[str, NDArray[Any]]) -> float:
    """Return ε of the BatchNorm that folds into `layer`, after a check that its tensors exist and fit.

    Args:
        layer: a layer with a BatchNorm.
        tensors: the finalized model's float tensors.

    Raises:
        FormatError: the model does not record ε, or lacks a tensor of the BatchNorm; its format allows both.
    """
    if layer.batch_norm_epsilon is None:
        raise FormatError(
            f"{layer.name}: the model does not record the epsilon of its BatchNorm {layer.batch_norm}, "
            "so it cannot be folded; finalize the search again"
        )
    names = [f"{layer.batch_norm}.{part}" for part in BATCH_NORM_PARTS]
    own_bias = f"{layer.name.removesuffix('weight')}bias"
    if layer.name.endswith("weight") and own_bias in tensors:
        names.append(own_bias)
    for name in names:
        if name not in tensors:
            raise FormatError(f"{layer.name}: its BatchNorm's tensor {name} is not in the model")
        tensor = tensors[name]
        if tensor.dtype.kind != "f" or tensor.shape != layer.shape[:1]:
            found = f"{tensor.dtype}{list(tensor.shape)}"
            raise FormatError(f"{layer.name}: {name} is {found}, expected a float for each of its output channels")
    return layer.batch_norm_epsilon


def read_batch_norm(layer: QuantizedLayer, tensors: Mapping[str, NDArray[Any]]) -> BatchNorm:
    """Return the BatchNorm that folds into `layer`, from a finalized model's tensors.

    Raises:
        FormatError: see `epsilon_to_fold`.
    """
    epsilon = epsilon_to_fold(layer, tensors)
    gamma, beta, mean, variance = (
        np.asarray(tensors[f"{layer.batch_norm}.{part}"], np.float32) for part in BATCH_NORM_PARTS
    )
    return BatchNorm(gamma, beta, mean, variance, epsilon)


@dataclass(frozen=True)
class FoldedScale:
    """Per-channel form of a layer: weight = sign·q·scale.

    Attributes:
        sign: int8 [C], −1 or 1; 0 where γ/σ is 0: the channel is stored as zeros.
        scale: float32 [C], above zero.
    """

    sign: NDArray[np.int8]
    scale: NDArray[np.float32]


def fold_scale(scale: np.float32, factor: NDArray[np.float64]) -> FoldedScale:
    """Fold γ/σ into a layer's scale: Δ·|γ|/σ, rounded once to float32.

    Args:
        scale: Δ.
        factor: γ/σ, [C].

    Example:
        A layer with integers of shape [3, 2]: three output channels, the last of which BatchNorm turns off.

        >>> q = np.array([[3, -1], [2, 2], [1, 0]], np.int8)
        >>> folded = fold_scale(np.float32(0.25), factor=np.array([2.0, -0.5, 0.0]))
        >>> folded.scale.tolist()
        [0.5, 0.125, 0.25]
        >>> (folded.sign[:, None] * q).tolist()
        [[3, -1], [-2, -2], [0, 0]]
    """
    folded = (np.float64(scale) * np.abs(factor)).astype(np.float32)
    alive = folded > 0
    return FoldedScale(np.where(alive, np.sign(factor), 0).astype(np.int8), np.where(alive, folded, scale))


def bias_step(input_scale: np.float32, scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return s_x·s_w, the value of one unit of an int32 bias, in float32 as in integer kernels.

    Args:
        input_scale: s_x, the step of the activation quantizer on the layer's input.
        scale: s_w, the scale of each channel, [C].
    """
    return np.float32(input_scale) * np.asarray(scale, np.float32)


def integer_bias(bias: NDArray[np.floating], step: NDArray[np.float32]) -> NDArray[np.int32] | None:
    """Return bias / step rounded half to even; None if that exceeds int32."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        rounded = np.rint(bias.astype(np.float64) / step.astype(np.float64))
    if not np.isfinite(rounded).all() or np.abs(rounded).max(initial=0.0) > INT32_LIMIT:
        return None
    return rounded.astype(np.int32)
