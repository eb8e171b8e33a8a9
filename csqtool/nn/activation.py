"""Static activation quantizers with a learned scale (LSQ, Esser et al. 2020, without per-channel scales)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from csqtool.quantized_model import ActivationQuantizer


def to_integers(x: Tensor, scale: Tensor, zero_point: int, largest: int) -> Tensor:
    """Return clip(round(x / scale) + zero_point, 0, largest) as float: ONNX QuantizeLinear, rounding half to even."""
    return torch.clamp(torch.round(x / scale) + zero_point, 0, largest)


class _FakeQuantize(torch.autograd.Function):
    """Fake quantization with the straight-through estimator for x and the LSQ gradient for the scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: int, largest: int) -> Tensor:
        q = to_integers(x, scale, zero_point, largest)
        ctx.save_for_backward(x, scale)
        ctx.zero_point, ctx.largest = zero_point, largest
        return (q - zero_point) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,) = gradients
        x, scale = ctx.saved_tensors
        low, high = -ctx.zero_point, ctx.largest - ctx.zero_point
        v = x / scale
        inside = (v >= low) & (v <= high)
        # ∂x̂/∂s is round(v) − v inside the range and the clipped integer outside (LSQ, eq. 3).
        slope = torch.where(inside, torch.round(v) - v, v.clamp(low, high))
        # LSQ scales the step size's gradient by 1/√(N·Q) so that it moves at the weights' relative speed.
        damping = (x[0].numel() * ctx.largest) ** -0.5
        scale_gradient = (gradient * slope).sum() * damping
        return gradient * inside, scale_gradient.to(scale.dtype), None, None


class ActivationFakeQuantizer(nn.Module):
    """Fake quantization of one activation, with a scale that is calibrated once and then learned.

    Attributes:
        scale: step size, float32, a trained scalar.
        zero_point: 0 where the calibration saw no negative value, fixed afterwards.
    """

    zero_point_: Tensor

    def __init__(self, name: str, bits: int) -> None:
        super().__init__()
        self.name = name
        self.bits = bits
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("zero_point_", torch.zeros((), dtype=torch.int64))
        self.zero_point = 0

    @property
    def largest(self) -> int:
        """The largest integer, 2^bits − 1."""
        return int(2**self.bits - 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return x rounded to the quantizer's grid, float32."""
        with torch.autocast(x.device.type, enabled=False):
            result: Tensor = _FakeQuantize.apply(x.float(), self.scale, self.zero_point, self.largest)  # type: ignore[no-untyped-call]
            return result

    @torch.no_grad()
    def calibrate(self, sample: Tensor) -> None:
        """Choose scale and zero point with the least squared error on `sample` (any shape)."""
        sample = sample.flatten().float()
        low, high = min(float(sample.min()), 0.0), max(float(sample.max()), 0.0)
        if not np.isfinite([low, high]).all() or high == low:
            high, low = (1.0, 0.0) if high == low else (high, low)
        best = torch.inf
        for share in torch.linspace(0.2, 1.0, 33).tolist():
            scale = torch.tensor((high - low) * share / self.largest)
            zero_point = round(-low / (high - low) * self.largest)
            rounded = (to_integers(sample, scale, zero_point, self.largest) - zero_point) * scale
            error = float((rounded - sample).square().sum())
            if error < best:
                best = error
                self.scale.copy_(scale)
                self.set_zero_point(zero_point)

    def set_zero_point(self, zero_point: int) -> None:
        """Fix the integer that stands for 0.0."""
        self.zero_point = zero_point
        self.zero_point_.fill_(zero_point)

    def finalized(self) -> ActivationQuantizer:
        """Return the quantizer as numbers."""
        scale = np.float32(self.scale.detach().cpu().numpy()[()])
        return ActivationQuantizer(self.name, scale, self.zero_point, self.bits)
