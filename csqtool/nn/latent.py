"""Latent float weights that are quantized in every forward pass, with a straight-through estimator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from csqtool.integers import mask_string, reduced
from csqtool.nn.levels import AdditivePowers, Levels
from csqtool.nn.power_of_two import nearest_power_of_two
from csqtool.nn.weights import WeightSource
from csqtool.quantized_model import LayerIntegers

# The largest relative change of a step size in one training step. With many planes the step size is small compared
# with the noise of its gradient: at a learning rate of 0.05 and seven planes, one grew beyond all weights of its layer
# within an epoch, and all of them became zero.
LARGEST_CHANGE = 0.02


class LatentWeight(WeightSource):
    """A latent weight, rounded to the integers of given planes; as a parametrization it returns the rounded weight.

    Subclasses define in `quantized` which integers and scale the latent weight has now.

    Attributes:
        latent: the trained float weight.
        kept: the planes, ascending.
        n_planes: n, the number of planes in a mask string.
    """

    def __init__(self, weight: Tensor, kept: Sequence[int], *, n_planes: int) -> None:
        super().__init__()
        self.kept = tuple(kept)
        self.n_planes = n_planes
        self.levels = self.make_levels()
        self.latent = nn.Parameter(weight.detach().float().clone())

    def make_levels(self) -> Levels:
        """Return the integers that weights are rounded to: those of the kept planes."""
        return Levels([b - self.kept[0] for b in self.kept])

    def quantized(self) -> tuple[Tensor, Tensor]:
        """Return the integers (float32) and their scale, without gradients."""
        raise NotImplementedError  # abstract

    def forward(self, _: Tensor | None = None) -> Tensor:
        """Return the rounded weight; its gradient passes to the latent weight unchanged."""
        with torch.no_grad():
            q, scale = self.quantized()
            rounded = q * scale
        # The second term is zero, and carries the gradient.
        weight: Tensor = rounded + (self.latent - self.latent.detach())
        return weight

    @torch.no_grad()
    def integers(self) -> LayerIntegers:
        """Return q, Δ and the mask string."""
        q, scale = self.quantized()
        integers, delta = reduced(q.cpu().numpy().astype(np.int64), np.float32(scale.cpu().numpy()))
        return LayerIntegers(integers, delta, mask_string(self.kept, self.n_planes))


class _LsqRound(torch.autograd.Function):
    """Rounding with the gradients of LSQ (Esser et al. 2020, eq. 3 and 5)."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, scale: Tensor, q: Tensor, largest: int) -> Tensor:
        ctx.save_for_backward(latent, scale, q)
        ctx.largest = largest
        return q * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,) = gradients
        latent, scale, q = ctx.saved_tensors
        v = latent / scale
        inside = v.abs() <= ctx.largest
        # ∂ŵ/∂s is q − w/s inside the range and ±Q outside; 1/√(N·Q) lets s move at the weights' relative speed.
        slope = torch.where(inside, q - v, q)
        for_scale = (gradient * slope).sum() * (latent.numel() * ctx.largest) ** -0.5
        return gradient * inside, for_scale, None, None


def lsq_round(latent: Tensor, scale: Tensor, q: Tensor, largest: int) -> Tensor:
    """Return q·scale with the gradients of LSQ for the latent weight and the step size.

    Args:
        latent: the weight before rounding.
        scale: the step size, a scalar.
        q: its integers, at most `largest` in magnitude.
        largest: Q, the largest integer.
    """
    weight: Tensor = _LsqRound.apply(latent, scale, q, largest)  # type: ignore[no-untyped-call]
    return weight


class LsqWeight(LatentWeight):
    """Learned step size quantization of a weight (LSQ, Esser et al. 2020).

    Attributes:
        scale: the step size, a trained scalar above zero.
        power_of_two: whether weights are rounded with the power of two next to it.
    """

    def __init__(self, weight: Tensor, kept: Sequence[int], *, n_planes: int, power_of_two: bool = False) -> None:
        super().__init__(weight, kept, n_planes=n_planes)
        self.power_of_two = power_of_two
        # The paper starts from 2·mean|w|/√Q; the least squared error changes a pretrained or searched weight less.
        self.scale = nn.Parameter(self.levels.fit_scale(weight))
        self._before_step = self.scale.detach().clone()

    @property
    def step(self) -> Tensor:
        """The step size that weights are rounded with."""
        return nearest_power_of_two(self.scale) if self.power_of_two else self.scale

    def quantized(self) -> tuple[Tensor, Tensor]:
        """Return the integers nearest to latent / step."""
        step = self.step.detach()
        return self.levels.project(self.latent, step), step

    def forward(self, _: Tensor | None = None) -> Tensor:
        """Return the rounded weight."""
        with torch.autocast(self.latent.device.type, enabled=False):
            q, self._before_step = self.quantized()[0], self.scale.detach().clone()
            return lsq_round(self.latent, self.step, q, self.levels.largest)

    @torch.no_grad()
    def hold_step_size(self) -> None:
        """Limit the last change of the step size to `LARGEST_CHANGE`, and keep it above zero."""
        before = self._before_step
        self.scale.clamp_(before * (1 - LARGEST_CHANGE), before * (1 + LARGEST_CHANGE)).clamp_(min=1e-8)


class PowersWeight(LsqWeight):
    """A latent weight on signed sums of powers of two, with a learned step size (APoT, Li et al. 2020)."""

    def make_levels(self) -> Levels:
        """Return the sums of powers of two, as many magnitudes as the kept planes have."""
        return AdditivePowers(len(self.kept))


class MinMaxWeight(LatentWeight):
    """Uniform rounding between ± the largest weight, found anew in every step (STE-Uniform, Polino et al. 2018)."""

    def quantized(self) -> tuple[Tensor, Tensor]:
        """Return the integers nearest to latent / scale, where the largest weight gets the largest integer."""
        scale = self.latent.detach().abs().max().clamp(min=1e-8) / self.levels.largest
        return self.levels.project(self.latent, scale), scale


class DorefaWeight(LatentWeight):
    """DoReFa's weight: squashed by tanh, then rounded to 2^k levels without zero (Zhou et al. 2016, eq. 9).

    The levels are (2i − (2^k − 1))/(2^k − 1): every plane's digit is 1 or −1. The original drops the weight's
    magnitude, which BatchNorm makes up for. Here it is kept as a constant, so that pretrained weights and layers
    without BatchNorm work.
    """

    size: Tensor

    def __init__(self, weight: Tensor, kept: Sequence[int], *, n_planes: int) -> None:
        super().__init__(weight, kept, n_planes=n_planes)
        self.register_buffer("size", torch.ones(()))
        with torch.no_grad():
            q, scale = self.quantized()
            rounded = q * scale
            self.size.copy_((rounded * weight).sum() / rounded.square().sum().clamp(min=1e-12))

    def _squashed(self) -> Tensor:
        t = torch.tanh(self.latent)
        return t / t.detach().abs().max().clamp(min=1e-8)  # [−1, 1]

    def quantized(self) -> tuple[Tensor, Tensor]:
        """Return the odd integers 2·round(t·(2^k − 1)) − (2^k − 1) for t in [0, 1]."""
        top = self.levels.largest
        steps = torch.round((self._squashed().detach() + 1) / 2 * top)
        return 2 * steps - top, (self.size / top).clamp(min=1e-12)

    def forward(self, _: Tensor | None = None) -> Tensor:
        """Return the rounded weight; the gradient passes rounding unchanged, and tanh as usual."""
        with torch.autocast(self.latent.device.type, enabled=False):
            q, scale = self.quantized()
            squashed = self._squashed() * self.size
            weight: Tensor = (q * scale).detach() + (squashed - squashed.detach())
            return weight
