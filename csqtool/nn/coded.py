"""Weights that are trained for the bytes of their entropy-coded integers."""

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

MEMORY = 0.9  # share of the running frequencies that a step keeps
UNSEEN = 0.5  # an integer that does not occur is coded as if it occurred this often
ZERO_BIAS = 1e-3  # of a bit a unit: at equal code lengths the integer nearer to zero is taken


def bisected_step(weights: Sequence[Tensor], bits: float, largest: int) -> Tensor:
    """Return the one step size at which the rounded weights have a given entropy, a float32 scalar.

    Args:
        weights: the layers' weights.
        bits: bits a weight, on average over all; each layer has frequencies of its own.
        largest: integers are −largest … largest. The step is at least what they need to reach the largest weight.
    """
    flat = [weight.detach().flatten().float() for weight in weights]
    top = max(float(weight.abs().max()) for weight in flat)
    if top == 0:
        return torch.ones((), device=flat[0].device)
    low, high = top / largest, 2 * top

    def entropy(step: float) -> float:
        found = [histogram(torch.round(weight / step), largest) for weight in flat]
        return sum(float((counts * code_lengths(counts)).sum()) for counts in found) / sum(w.numel() for w in flat)

    for _ in range(30):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if entropy(middle) > bits else (low, middle)
    return torch.tensor(high, device=flat[0].device)


def histogram(q: Tensor, largest: int) -> Tensor:
    """Return how often each integer −largest … largest occurs, float32 [2·largest + 1]."""
    index = q.flatten().long() + largest
    return torch.bincount(index, minlength=2 * largest + 1).float()


def code_lengths(counts: Tensor) -> Tensor:
    """Return the bits of each integer's code, −log2 of its frequency; same shape."""
    return -torch.log2(counts.clamp(min=UNSEEN) / counts.sum())


class CodedWeight(WeightSource):
    """A latent weight and a learned step size, as in LSQ, and the bits of its integers.

    Attributes:
        latent: the trained float weight.
        scale: the step size, a trained scalar above zero.
        largest: integers are −largest … largest.
        counts: running frequencies of the integers, [2·largest + 1].
        price: of a bit, in squared steps.
        course: bits a weight of the whole network at the start and at the end, in the network's first weight.
        n_planes: n, the number of planes in a mask string.
    """

    counts: Tensor
    course: Tensor
    price: Tensor
    _sizes: Tensor

    def __init__(self, weight: Tensor, step: Tensor, planes: int, *, n_planes: int) -> None:
        super().__init__()
        self.n_planes = n_planes
        self._range = Levels(range(planes))
        self.largest = self._range.largest
        self.latent = nn.Parameter(weight.detach().float().clone())
        self.scale = nn.Parameter(step.detach().float().clone())
        self._before_step = self.scale.detach().clone()
        device = self.latent.device  # of a search that this continues: the integers are asked for before a net is moved
        self.register_buffer("price", torch.zeros((), device=device))
        self.register_buffer("counts", histogram(self._range.project(self.latent, self.scale), self.largest))
        self.register_buffer("course", torch.zeros(2, device=device))
        self.register_buffer("_sizes", self._range.values.abs().float().to(device), persistent=False)

    @property
    def kept(self) -> tuple[int, ...]:
        """The planes that the present integers need, ascending."""
        return tuple(range(max(1, int(self.quantized().abs().max()).bit_length())))

    @torch.no_grad()
    def quantized(self) -> Tensor:
        """Return the integers, float32: rate–distortion optimized rounding of latent / scale.

        Each integer is the nearest one, the next one towards zero, or zero: whichever has the smallest sum of the
        squared error, in steps, and `price` times the bits of its code. A high price makes all of them zero. Where
        step sizes are trained with the loss, an error of one step costs about the same in every layer.
        """
        v = self.latent / self.scale
        nearest = self._range.project(self.latent, self.scale)
        lengths = code_lengths(self.counts)
        extra = self.price * ((lengths - lengths[self.largest]).clamp(min=0) + ZERO_BIAS * self._sizes)
        best, least = nearest, torch.full_like(v, torch.inf)
        for q in (nearest, nearest - nearest.sign(), torch.zeros_like(v)):
            cost = (v - q).square() + extra[q.long() + self.largest]
            best, least = torch.where(cost < least, q, best), torch.minimum(cost, least)
        return best

    def forward(self, _: Tensor | None = None) -> Tensor:
        """Return the rounded weight."""
        with torch.autocast(self.latent.device.type, enabled=False):
            self._before_step = self.scale.detach().clone()
            return lsq_round(self.latent, self.scale, self.quantized(), self.largest)

    def rate(self) -> Tensor:
        """Return the bits of all integers, a scalar: code lengths are linear between neighbouring integers.

        The gradient for the step size is multiplied by 1/√(N·Q), as LSQ does with that of the task's loss. So both
        are weighed against each other as they are.
        """
        with torch.autocast(self.latent.device.type, enabled=False):
            slower = (self.latent.numel() * self.largest) ** -0.5
            step = self.scale.detach() + (self.scale - self.scale.detach()) * slower
            return self.bits(self.latent / step).sum()

    def bits(self, v: Tensor) -> Tensor:
        """Return the code length at each value of latent / scale, interpolated between neighbouring integers."""
        v = v.clamp(-self.largest, self.largest)
        lengths = code_lengths(self.counts)
        lower = v.detach().floor().clamp(max=self.largest - 1)
        index = lower.long() + self.largest
        begin = lengths[index]
        return begin + (v - lower) * (lengths[index + 1] - begin)

    @torch.no_grad()
    def after_step(self, shrinking: float, finer: float = 1.0) -> None:
        """Limit the change of the step size, and count the new integers.

        Args:
            shrinking: the share, 0 to 1, of the usual limit by which the step size may shrink.
            finer: what the step size is multiplied by then.
        """
        before = self._before_step
        low, high = before * (1 - shrinking * LARGEST_CHANGE), before * (1 + LARGEST_CHANGE)
        self.scale.clamp_(low, high).mul_(finer).clamp_(min=1e-8)
        self.counts.lerp_(histogram(self.quantized(), self.largest), 1 - MEMORY)

    @torch.no_grad()
    def integers(self) -> LayerIntegers:
        """Return q, Δ and the mask string."""
        q = self.quantized().cpu().numpy().astype(np.int64)
        integers, delta = reduced(q, np.float32(self.scale.detach().cpu().numpy()))
        return LayerIntegers(integers, delta, mask_string(self.kept, self.n_planes))
