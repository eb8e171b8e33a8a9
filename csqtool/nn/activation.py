"""Static activation quantizers with a learned scale (LSQ, Esser et al. 2020, without per-channel scales)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from csqtool.errors import ModelError
from csqtool.nn.kernels import Kernel
from csqtool.nn.power_of_two import nearest_power_of_two
from csqtool.quantized_model import ActivationQuantizer


def to_integers(x: Tensor, scale: Tensor, zero_point: int, largest: int) -> Tensor:
    """Return clip(round(x / scale) + zero_point, 0, largest) as float: ONNX QuantizeLinear, rounding half to even."""
    return torch.clamp(torch.round(x / scale) + zero_point, 0, largest)


# Bounds are tensors: torch would compile a variant for each new number, and none after the first few.
def _rounded(x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Fake quantization: clip(round(x / scale), low, high)·scale."""
    return torch.clamp(torch.round(x / scale), low, high) * scale


def _rounded_gradients(gradient: Tensor, x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Straight-through gradient for x; for the scale round(v) − v inside the range, the bound outside (LSQ, eq. 3)."""
    v = x / scale
    clipped = torch.clamp(v, low, high)
    inside = v == clipped
    slope = torch.where(inside, torch.round(v) - v, clipped)
    return gradient * inside, (gradient * slope).sum()


def _probe() -> tuple[Any, ...]:
    return torch.ones(64), torch.ones(()), torch.zeros(()), torch.ones(())


_rounded_kernel = Kernel(_rounded, _rounded, _probe)
_gradients_kernel = Kernel(_rounded_gradients, _rounded_gradients, lambda: (torch.ones(64), *_probe()))


def _is_channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _flat(x: Tensor, like: Tensor) -> Tensor:
    """Return the values of `x` as [N], in the memory order of `like`; a view if `x` has that order."""
    return (x.permute(0, 2, 3, 1) if _is_channels_last(like) else x).reshape(-1)


def _unflat(flat: Tensor, like: Tensor) -> Tensor:
    """Undo `_flat`: a tensor of its own in the memory of `flat`, not a view of it.

    A view that leaves an autograd function cannot be changed in place, which residual additions and activations do.
    """
    strides = torch.empty(like.shape, device="meta").stride()
    if _is_channels_last(like):
        _, channels, height, width = like.shape
        strides = (height * width * channels, 1, width * channels, channels)
    return flat.new_empty(0).set_(flat.untyped_storage(), flat.storage_offset(), like.shape, strides)


class _FakeQuantize(torch.autograd.Function):
    """Fake quantization with the straight-through estimator for x and the LSQ gradient for the scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale, low, high)
        rounded: Tensor = _rounded_kernel(_flat(x, x), scale, low, high)
        return _unflat(rounded, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,) = gradients
        x, scale, low, high = ctx.saved_tensors
        for_x, for_scale = _gradients_kernel(_flat(gradient, x), _flat(x, x), scale, low, high)
        # LSQ scales the step size's gradient by 1/√(N·Q), so that it changes as fast, relatively, as weights do.
        damping = (x[0].numel() * (high - low)) ** -0.5
        return _unflat(for_x, x), (for_scale * damping).to(scale.dtype), None, None


def fake_quantize(x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return clip(round(x / scale), low, high)·scale with LSQ's gradients, float32 also under autocast.

    Args:
        x: any shape.
        scale: step size, a scalar.
        low: the least integer, a float32 scalar on the device of `x`.
        high: the largest integer, the same.
    """
    with torch.autocast(x.device.type, enabled=False):
        result: Tensor = _FakeQuantize.apply(x.float(), scale, low, high)  # type: ignore[no-untyped-call]
        return result


def check_finite(name: str, values: Tensor) -> None:
    """Check the values of an activation.

    Raises:
        ModelError: says which activation holds how many values that are NaN or infinite.
    """
    count = values.numel() - int(torch.isfinite(values).sum())
    if count:
        raise ModelError(
            f"the activation {name} cannot be quantized: {count} of {values.numel()} values are NaN or infinite "
            "during calibration; check the model's weights and the inputs that it is calibrated on"
        )


# A step changes a scale by this share at most, as it does those of weights (`csqtool.nn.latent.LARGEST_CHANGE`): a step
# size is small compared with the noise of its gradient.
LARGEST_CHANGE = 0.02
# Training may make a scale this many times larger or smaller than calibration did. The integers of eight bits then all
# lie in one calibrated step, or all calibrated values in one step of theirs: the activation says nothing any more.
WIDEST = 256.0
MIN_EXPONENT = -126  # of the least power of two that is a normal float32


class ActivationFakeQuantizer(nn.Module):
    """Fake quantization of one activation, with a scale that is calibrated once and then learned.

    Attributes:
        scale: step size, float32, a trained scalar.
        calibrated: the scale as calibration chose it.
        zero_point: the integer that represents 0.0; 0 where calibration saw no negative value, fixed afterwards.
        power_of_two: whether values are rounded with the power of two next to the scale. The zero point is then 0 or
            in the middle of the range.
    """

    description = "learned step size and fixed zero point (LSQ)"
    power_of_two = False
    calibrated: Tensor
    zero_point_: Tensor
    bounds: Tensor

    def __init__(self, name: str, bits: int) -> None:
        super().__init__()
        self.name = name
        self.bits = bits
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("calibrated", torch.ones(()))
        self.register_buffer("zero_point_", torch.zeros((), dtype=torch.int64))
        # The range around 0.0, in steps: −zero_point and 2^bits − 1 − zero_point.
        self.register_buffer("bounds", torch.tensor([0.0, float(self.largest)]), persistent=False)
        self.zero_point = 0
        self._before_step = self.scale.detach().clone()

    @property
    def largest(self) -> int:
        """The largest integer, 2^bits − 1."""
        return int(2**self.bits - 1)

    @property
    def step(self) -> Tensor:
        """The step size that values are rounded with."""
        return nearest_power_of_two(self.scale) if self.power_of_two else self.scale

    def forward(self, x: Tensor) -> Tensor:
        """Return x rounded to the quantizer's grid, float32."""
        self.hold_scale()
        return fake_quantize(x, self.step, *self.bounds)

    @torch.no_grad()
    def calibrate(self, sample: Tensor) -> None:
        """Choose scale and zero point with the least squared error on `sample`.

        A constant activation other than 0 is represented up to float32 rounding. For one that is 0 everywhere any
        scale is exact: it gets the range 0 to 1, so a scale of 1 / (2^bits − 1).

        Args:
            sample: values of the activation, any shape, at least one.

        Raises:
            ModelError: values are NaN or infinite; the quantizer stays as it was.
        """
        check_finite(self.name, sample)
        sample = sample.flatten().float()
        low, high = min(float(sample.min()), 0.0), max(float(sample.max()), 0.0)
        if low == high:
            high = 1.0
        zero_point = round(-low / (high - low) * self.largest)
        if self.power_of_two and low < 0:
            zero_point = (self.largest + 1) // 2
        best, best_error = self._scales(low, high, zero_point)[-1], torch.inf
        for scale in self._scales(low, high, zero_point) if sample.any() else ():
            rounded = (to_integers(sample, scale, zero_point, self.largest) - zero_point) * scale
            error = float((rounded - sample).square().sum())
            if error < best_error:
                best, best_error = scale, error
        self.set_grid(best, zero_point)

    def set_grid(self, scale: Tensor | float, zero_point: int) -> None:
        """Make a scale, above zero, and a zero point the calibrated ones."""
        self._set_scale(scale)
        self.set_zero_point(zero_point)

    @torch.no_grad()
    def _set_scale(self, scale: Tensor | float) -> None:
        self.scale.copy_(torch.as_tensor(scale))
        self.calibrated.copy_(self.scale)
        self.hold_scale()

    def hold_scale(self) -> None:
        """Keep the scale as it is now: the change of the next training step is measured from it."""
        self._before_step = self.scale.detach().clone()

    def _scales(self, low: float, high: float, zero_point: int) -> list[Tensor]:
        """Return step sizes to choose from, the last of which covers all of a range."""
        if not self.power_of_two:
            return [self._scale_of(high - low, share) for share in torch.linspace(0.2, 1.0, 33).tolist()]
        needed = max(-low / zero_point if zero_point else 0.0, high / (self.largest - zero_point))
        exponent = max(math.ceil(math.log2(needed)), MIN_EXPONENT)
        return [torch.tensor(2.0**e) for e in range(max(exponent - 4, MIN_EXPONENT), exponent + 1)]

    def _scale_of(self, extent: float, share: float) -> Tensor:
        """Return the step size with which the integers cover `share` of a range, above zero also in float32."""
        return torch.tensor(extent * share / self.largest).clamp_(min=torch.finfo(torch.float32).tiny)

    def set_zero_point(self, zero_point: int) -> None:
        """Fix the integer that represents 0.0."""
        self.zero_point = zero_point
        self.zero_point_.fill_(zero_point)
        self.bounds.copy_(torch.tensor([-zero_point, self.largest - zero_point]))

    @torch.no_grad()
    def after_step(self) -> None:
        """Limit the last change of the scale to `LARGEST_CHANGE`, and all changes together to `WIDEST`."""
        before = self._before_step
        self.scale.clamp_(before * (1 - LARGEST_CHANGE), before * (1 + LARGEST_CHANGE))
        self.scale.clamp_(self.calibrated / WIDEST, self.calibrated * WIDEST)
        self.scale.clamp_(min=torch.finfo(torch.float32).tiny)

    def is_dead(self) -> bool:
        """Tell whether the scale is as far from the calibrated one as it may get."""
        change = float(self.scale.detach() / self.calibrated)
        return not 1.001 / WIDEST < change < WIDEST / 1.001

    def regularization(self) -> Tensor | None:
        """Return what is added to the task's loss, if anything."""
        return None

    def finalized(self) -> ActivationQuantizer:
        """Return the quantizer as numbers."""
        scale = np.float32(self.step.detach().cpu().numpy()[()])
        return ActivationQuantizer(self.name, scale, self.zero_point, self.bits)
