"""Latent weights that lose their least significant bits (MSQ, Han et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from csqtool.integers import mask_string, reduced
from csqtool.nn.latent import LARGEST_CHANGE, lsq_round
from csqtool.nn.levels import Levels
from csqtool.nn.weights import WeightSource
from csqtool.quantized_model import LayerIntegers


class SparsifiedWeight(WeightSource):
    """A latent weight on a symmetric grid whose lowest planes can be dropped; as a parametrization it is rounded.

    The integers of k planes are −(2^k − 1) … 2^k − 1. Those with an even integer stay where they are when the lowest
    plane is dropped, and the step size doubles: their least significant bit is zero.

    Example:
        One of four integers is odd. Its weight is half a step from the nearest even one that fits:

        >>> source = SparsifiedWeight(torch.tensor([[3.0, -2.0], [0.0, 1.5]]), range(2), n_planes=8)
        >>> _ = source.scale.data.fill_(1.0)
        >>> source.integers().q.tolist(), float(source.odd_share())
        ([[3, -2], [0, 2]], 0.25)
        >>> source.lowest_bits().tolist()
        [[1.0, 0.0], [0.0, -0.5]]

    Attributes:
        latent: the trained float weight.
        scale: the step size of the lowest plane in use, a trained scalar above zero.
        dropped: how many of the lowest planes were dropped.
        rounds: how often dropping was considered.
        n_planes: n, the number of planes in a mask string.
    """

    dropped: Tensor
    rounds: Tensor

    def __init__(self, weight: Tensor, exponents: Sequence[int], *, n_planes: int) -> None:
        super().__init__()
        self.exponents = tuple(exponents)
        self.n_planes = n_planes
        self.latent = nn.Parameter(weight.detach().float().clone())
        self.scale = nn.Parameter(self.levels(len(self.exponents)).fit_scale(weight))
        self._before_step = self.scale.detach().clone()
        self.register_buffer("dropped", torch.tensor(0))
        self.register_buffer("rounds", torch.tensor(0))

    @staticmethod
    def levels(planes: int) -> Levels:
        """Return the integers of a number of contiguous planes."""
        return Levels(range(planes))

    @property
    def kept(self) -> tuple[int, ...]:
        """The planes in use, ascending."""
        return self.exponents[int(self.dropped) :]

    @property
    def largest(self) -> int:
        """The largest integer, 2^k − 1."""
        return int(2 ** len(self.kept) - 1)

    @torch.no_grad()
    def quantized(self) -> Tensor:
        """Return the integers nearest to latent / scale, float32."""
        return torch.round(self.latent / self.scale).clamp_(-self.largest, self.largest)

    def forward(self, _: Tensor | None = None) -> Tensor:
        """Return the rounded weight, with the gradients of learned step sizes."""
        with torch.autocast(self.latent.device.type, enabled=False):
            self._before_step = self.scale.detach().clone()
            return lsq_round(self.latent, self.scale, self.quantized(), self.largest)

    def lowest_bits(self) -> Tensor:
        """Return how far each weight is from the nearest even integer, in steps, −1 … 1; the gradient is 1/scale.

        This is the difference of the weight and its rounding to one plane fewer.
        """
        scale = self.scale.detach()
        v = self.latent / scale
        even = 2 * torch.round(v.detach() / 2).clamp(-(self.largest // 2), self.largest // 2)
        distance = v - even
        # `torch.clamp` would do, but the gradient it has at its ends differs between versions of torch.
        return torch.where(distance.abs() <= 1, distance, distance.detach().sign())

    @torch.no_grad()
    def odd_share(self) -> Tensor:
        """Return the share of weights whose least significant bit is one, a scalar."""
        return (self.quantized() % 2 != 0).float().mean()

    @torch.no_grad()
    def rounding_error(self, fewer: int = 0) -> Tensor:
        """Return the squared error of rounding with so many planes fewer, a scalar."""
        levels = self.levels(len(self.kept) - fewer)
        scale = self._scale_with(fewer)
        return (levels.project(self.latent, scale) * scale - self.latent).square().sum()

    def _scale_with(self, fewer: int) -> Tensor:
        """Return the step size after dropping planes: the doubled one, or the one that fits better.

        A step of the doubled size keeps all even integers. Where the weights are not on them yet, the largest weights
        alone would determine the step.
        """
        levels, doubled = self.levels(len(self.kept) - fewer), self.scale.detach() * 2.0**fewer
        fitted = levels.fit_scale(self.latent)
        errors = [
            (levels.project(self.latent, scale) * scale - self.latent).square().sum() for scale in (doubled, fitted)
        ]
        return fitted if errors[1] < errors[0] else doubled

    @torch.no_grad()
    def drop(self, count: int) -> None:
        """Drop so many of the lowest planes; one stays at least."""
        assert count < len(self.kept)
        scale = self._scale_with(count)
        self.dropped.add_(count)
        self.scale.copy_(scale)
        self._before_step = self.scale.detach().clone()

    @torch.no_grad()
    def hold_step_size(self) -> None:
        """Limit the last change of the step size, as with LSQ, and keep it above zero."""
        before = self._before_step
        self.scale.clamp_(before * (1 - LARGEST_CHANGE), before * (1 + LARGEST_CHANGE)).clamp_(min=1e-8)

    @torch.no_grad()
    def integers(self) -> LayerIntegers:
        """Return q, Δ and the mask string."""
        q = self.quantized().cpu().numpy().astype(np.int64)
        scale = np.float32(self.scale.detach().cpu().numpy())
        return LayerIntegers(*reduced(q, scale), mask_string(self.kept, self.n_planes))
