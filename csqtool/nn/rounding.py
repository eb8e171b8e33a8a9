"""Rounding gates: each weight is rounded down or up, whichever serves the output (AdaRound, Nagel et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from csqtool.integers import mask_string, reduced
from csqtool.nn.levels import Levels
from csqtool.nn.weights import WeightSource
from csqtool.quantized_model import LayerIntegers

STRETCH = 1.1, -0.1  # ζ and γ: the stretched sigmoid reaches 0 and 1 (eq. 23)
ANNEALING = 20.0, 2.0  # the power of the regularization, first and last
EDGE = 0.01  # how near to 0 and 1 gates begin at most


class RoundingGates(WeightSource):
    """A weight between two neighbouring integers of contiguous planes; as a parametrization it returns the weight.

    Example:
        Gates begin soft, where the weight is; hard, a weight is rounded to the nearest.

        >>> weight = torch.tensor([[0.52, -0.31], [0.11, 0.0]])
        >>> gates = RoundingGates(weight, kept=(0, 1, 2), n_planes=8)
        >>> bool(torch.allclose(gates(), weight, atol=0.01))
        True
        >>> gates.integers().q.tolist()
        [[7, -4], [1, 0]]

    Attributes:
        logits: of the gates, the weight's shape; h = clip(σ(logit)·(ζ − γ) + γ, 0, 1) is added to the lower integer.
        lower: the lower of the two integers, float32.
        scale: the step size, a trained scalar above zero.
        kept: the planes, ascending.
        n_planes: the number of planes in a mask string.
        power: of the regularization; large ones leave soft gates alone.
        hard: gates are unit steps.
    """

    lower: Tensor

    def __init__(self, weight: Tensor, kept: Sequence[int], *, n_planes: int) -> None:
        super().__init__()
        self.kept, self.n_planes = tuple(kept), n_planes
        self.levels = Levels([b - self.kept[0] for b in self.kept])
        self.power, self.hard = ANNEALING[0], False
        with torch.no_grad():
            weight = weight.detach().float()
            scale = self.levels.fit_scale(weight)
            largest = self.levels.largest
            exact = (weight / scale).clamp(-largest, largest)
            lower = exact.floor().clamp(max=largest - 1)
            share = (exact - lower).clamp(EDGE, 1 - EDGE)
            high, low = STRETCH
            self.logits = nn.Parameter(torch.logit((share - low) / (high - low)))
            self.scale = nn.Parameter(scale)
        self.register_buffer("lower", lower)

    def gates(self) -> Tensor:
        """Return h of each weight (AdaRound, eq. 23), or where it ends."""
        high, low = STRETCH
        if self.hard:
            return (self.logits >= 0).float()
        return (torch.sigmoid(self.logits) * (high - low) + low).clamp(0, 1)

    def forward(self, _: Tensor | None = None) -> Tensor:
        """Return the weight, soft or hard."""
        with torch.autocast(self.logits.device.type, enabled=False):
            weight: Tensor = (self.lower + self.gates()) * self.scale
            return weight

    def undecided(self) -> Tensor:
        """Return Σ 1 − |2h − 1|^β, which is 0 once all gates are open or closed (AdaRound, eq. 24)."""
        total: Tensor = (1 - (2 * self.gates() - 1).abs() ** self.power).sum()
        return total

    @torch.no_grad()
    def hold_step_size(self) -> None:
        """Keep the step size above zero."""
        self.scale.clamp_(min=1e-8)

    @torch.no_grad()
    def integers(self) -> LayerIntegers:
        """Return q, Δ and the mask string with all gates as unit steps."""
        q = self.lower + (self.logits >= 0)
        integers, delta = reduced(q.cpu().numpy().astype(np.int64), np.float32(self.scale.cpu().numpy()))
        return LayerIntegers(integers, delta, mask_string(self.kept, self.n_planes))
