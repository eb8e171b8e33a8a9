"""BSQ: bit-level sparsity for mixed precision (Yang et al., ICLR 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from csqtool.integers import mask_string, reduced
from csqtool.nn.levels import Levels
from csqtool.nn.weights import Weight, WeightSource
from csqtool.quantized_model import LayerIntegers
from csqtool.searching.method import BaseMethod, MethodContext
from csqtool.searching.options import BsqOptions

MAX_BIT = 2.0  # a trained bit may grow above 1, and then carries into the next plane when it is requantized
REQUANTIZE_EVERY = 2 / 7  # share of the training: the authors requantize every 100 of 350 epochs


class BitWeight(WeightSource):
    """A weight as trained bits p, n in [0, 2] per plane, rounded with a straight-through estimator.

    Attributes:
        p, n: positive and negative bits, [k, *weight].
        s: scale, a trained scalar.
        exponents: the initial planes, ascending.
        first, last: the planes in use, as indices of `exponents`; the others are zero and stay zero.
        rounds: how often the weight was requantized.
    """

    first: Tensor
    last: Tensor
    rounds: Tensor

    def __init__(self, weight: Tensor, exponents: Sequence[int], *, n_planes: int) -> None:
        super().__init__()
        self.exponents = tuple(exponents)
        self.n_planes = n_planes
        with torch.no_grad():
            weight = weight.detach().float()
            levels = Levels(self.exponents)
            unit = weight.abs().max().clamp(min=1e-8) / levels.largest
            digits = levels.digits.to(weight.device)[levels.nearest(weight / unit)].movedim(-1, 0)  # (k, *weight)
            self.p = nn.Parameter((digits > 0).float().contiguous())
            self.n = nn.Parameter((digits < 0).float().contiguous())
            self.s = nn.Parameter(unit * (2**n_planes - 1))
        self.register_buffer("first", torch.tensor(0))
        self.register_buffer("last", torch.tensor(len(self.exponents) - 1))
        self.register_buffer("rounds", torch.tensor(0))

    @property
    def kept(self) -> tuple[int, ...]:
        """The planes in use."""
        return self.exponents[int(self.first) : int(self.last) + 1]

    def _sum(self) -> Tensor:
        """Σ_b (p_b − n_b)·2^b over the planes in use, float."""
        used = slice(int(self.first), int(self.last) + 1)
        weights = torch.tensor([2.0**b for b in self.kept], device=self.s.device)
        total: Tensor = torch.tensordot(weights, self.p[used] - self.n[used], dims=1)
        return total

    def _rounded(self, total: Tensor) -> Tensor:
        step, top = 2.0 ** self.kept[0], sum(2.0**b for b in self.exponents)
        return (torch.round(total / step) * step).clamp(-top, top)

    def forward(self, _: Tensor | None = None) -> Tensor:
        """Return round(Σ_b (p_b − n_b)·2^b)·s/(2^n − 1) (BSQ, eq. 6)."""
        with torch.autocast(self.s.device.type, enabled=False):
            total = self._sum()
            weight: Tensor = (total + (self._rounded(total) - total).detach()) * (self.s / (2**self.n_planes - 1))
            return weight

    def plane_norms(self) -> Tensor:
        """Σ_b √(1e-8 + ‖[p_b; n_b]‖²) over the planes in use: the group lasso of BSQ, eq. 4."""
        used = slice(int(self.first), int(self.last) + 1)
        squares = self.p[used].flatten(1).square().sum(1) + self.n[used].flatten(1).square().sum(1)
        return (1e-8 + squares).sqrt().sum()

    @torch.no_grad()
    def requantize(self, at_least: int) -> None:
        """Split the rounded weight into bits again and drop empty planes at both ends; keep `at_least` planes."""
        q = self._rounded(self._sum())
        magnitude = q.abs().to(torch.int64)
        bits = torch.stack([(magnitude >> b) & 1 for b in self.exponents]).float()  # (k, *weight)
        self.p.copy_(bits * (q > 0))
        self.n.copy_(bits * (q < 0))
        used = torch.nonzero(bits.flatten(1).any(1)).flatten().tolist()
        first, last = (used[0], used[-1]) if used else (0, 0)
        while last - first + 1 < at_least:
            first, last = (first - 1, last) if first > 0 else (first, last + 1)
        self.first.fill_(first)
        self.last.fill_(last)

    @torch.no_grad()
    def integers(self) -> LayerIntegers:
        """Return q, Δ and the mask string."""
        q = self._rounded(self._sum()).cpu().numpy().astype(np.int64)
        scale = np.float32((self.s / (2**self.n_planes - 1)).cpu().numpy())
        return LayerIntegers(*reduced(q, scale), mask_string(self.kept, self.n_planes))


class Bsq(BaseMethod[BitWeight]):
    """Trains bits with a group lasso over planes, and drops planes that become empty."""

    description = "bit-level sparsity by group lasso over bit planes (BSQ, Yang et al. 2021)"
    searches = True
    Options = BsqOptions
    options: BsqOptions

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self._free = [name for name in self.sources if self.budget.min_planes[name] < self.budget.max_planes[name]]

    def make_source(self, weight: Weight, exponents: tuple[int, ...]) -> BitWeight:
        """Return trained bits over the given planes."""
        return BitWeight(weight.parameter, exponents, n_planes=self.config.planes)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return a group for the bits and scales, without weight decay."""
        parameters = [x for bits in self.sources.values() for x in (bits.p, bits.n, bits.s)]
        return [{"params": parameters, "lr": self.config.learning_rate, "weight_decay": 0.0}]

    def at_epoch(self, share: float) -> None:
        """Requantize after every two sevenths of the training."""
        due = int(share / REQUANTIZE_EVERY + 1e-9)
        for name in self._free:
            if due > int(self.sources[name].rounds):
                self.sources[name].requantize(self.budget.min_planes[name])
                self.sources[name].rounds.fill_(due)

    def regularization(self) -> Tensor | None:
        """Strength·Σ_layers numel·n·Σ_b ‖plane b‖ / Σ numel (BSQ, eq. 5)."""
        if not self._free:
            return None
        total = sum(self.budget.elements.values())
        shares = {name: self.budget.elements[name] * self.config.planes / total for name in self._free}
        terms = [share * self.sources[name].plane_norms() for name, share in shares.items()]
        return self.options.strength * torch.stack(terms).sum()

    @torch.no_grad()
    def after_step(self) -> None:
        """Clamp the bits to [0, 2]."""
        for bits in self.sources.values():
            bits.p.clamp_(0, MAX_BIT)
            bits.n.clamp_(0, MAX_BIT)

    def finish(self) -> None:
        """Requantize a last time, so that all bits are zeros and ones."""
        for name, bits in self.sources.items():
            bits.requantize(self.budget.min_planes[name])

    def status(self) -> dict[str, float]:
        """Return the average precision."""
        return {"bits": self.budget.average({name: len(bits.kept) for name, bits in self.sources.items()})}
