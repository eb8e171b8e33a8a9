"""Latent weights on levels of a learned basis (LQ-Nets, Zhang et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from csqtool.integers import mask_string, reduced
from csqtool.nn.weights import WeightSource
from csqtool.quantized_model import LayerIntegers

MEMORY = 0.9  # of the moving average of the basis (LQ-Nets, section 3.3)
RIDGE = 1e-4  # keeps a code that never differs from another from making the least-squares step singular
STARTING_STEPS = 10  # of codes and basis in turn, from the float weights


def least_squares(codes: Tensor, weights: Tensor, before: Tensor) -> Tensor:
    """Return v* = (BᵀB + δI)⁻¹(Bᵀw + δv), the basis of least squared error for given codes (LQ-Nets, eq. 7).

    Args:
        codes: B, ±1, [G, N, K] for G groups of N weights.
        weights: w, [G, N].
        before: v, the basis that a code without influence keeps, [G, K].
    """
    gram = codes.transpose(1, 2) @ codes + RIDGE * torch.eye(codes.shape[2], device=codes.device)  # (G, K, K)
    moments = (codes.transpose(1, 2) @ weights.unsqueeze(2)).squeeze(2) + RIDGE * before  # (G, K)
    solved: Tensor = torch.linalg.solve(gram, moments)
    return solved


class BasisWeight(WeightSource):
    """A latent weight, rounded to the sums ± v_1 ± … ± v_K of a basis; as a parametrization it returns the rounded one.

    The basis is rounded to integers m_j times one step size for the layer. So every level is an integer times a scale,
    as everywhere in csqtool, and files and integer kernels need no table.

    Example:
        Two basis values give four levels. These weights lie on ±3 ± 1, in units of 0.1:

        >>> weight = torch.tensor([[0.2, -0.4], [0.4, -0.2]])
        >>> source = BasisWeight(weight, (0, 1), n_planes=8, groups="layer", level_bits=4)
        >>> sorted(set(source.integers().q.flatten().tolist()))
        [-7, -3, 3, 7]

    Attributes:
        latent: the trained float weight.
        kept: the planes that the budget counts, one for each basis value, ascending.
        moving: the moving average of the basis times 1 − 0.9^count, [G, K]; G is the number of channels, or 1.
        initial: the basis before the first step, [G, K].
        count: how many steps the average has seen.
        n_planes: n, the number of planes in a mask string.
    """

    moving: Tensor
    initial: Tensor
    count: Tensor
    codes: Tensor

    def __init__(
        self, weight: Tensor, kept: Sequence[int], *, n_planes: int, groups: str = "layer", level_bits: int = 8
    ) -> None:
        super().__init__()
        self.kept = tuple(kept)
        self.n_planes = n_planes
        self.largest = 2 ** (level_bits - 1) - 1
        self.latent = nn.Parameter(weight.detach().float().clone())
        self._groups = weight.shape[0] if groups == "channel" else 1
        device, planes = self.latent.device, len(self.kept)
        codes = torch.tensor(list(product((-1.0, 1.0), repeat=planes)), device=device)  # (2^K, K)
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("moving", torch.zeros(self._groups, planes, device=device))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("initial", self._fitted())
        self._solved: Tensor | None = None

    @torch.no_grad()
    def _grouped(self) -> Tensor:
        """Return the latent weights as [G, N]."""
        return self.latent.detach().reshape(self._groups, -1)

    @torch.no_grad()
    def _fitted(self) -> Tensor:
        """Return the basis that codes and least squares in turn lead to, from powers of two."""
        weights, planes = self._grouped(), len(self.kept)
        powers = 2.0 ** torch.arange(planes, device=weights.device)
        # The mean magnitude of the levels, 2^(K−1), becomes that of the weights.
        basis: Tensor = powers * weights.abs().mean(1, keepdim=True) / 2 ** (planes - 1)
        for _ in range(STARTING_STEPS):
            codes = self.codes[self._nearest(basis, weights)]
            basis = least_squares(codes, weights, basis).abs()
        return basis

    @property
    def basis(self) -> Tensor:
        """The basis v before rounding: the zero-debiased moving average, [G, K]."""
        average: Tensor = self.moving / (1 - MEMORY ** int(self.count)) if self.count else self.initial
        return average

    @torch.no_grad()
    def rounded_basis(self) -> tuple[Tensor, Tensor]:
        """Return m, float32 integers [G, K] whose sums are at most `largest`, and the step size Δ."""
        basis = self.basis
        step = basis.sum(1).max().clamp(min=1e-8) / self.largest
        m = torch.round(basis / step)
        while float(m.sum(1).max()) > self.largest:  # several were rounded up
            step = step * (m.sum(1).max() / self.largest)
            m = torch.round(basis / step)
        return m, step

    def _nearest(self, basis: Tensor, weights: Tensor) -> Tensor:
        """Return the index of the code of each weight's nearest level, [G, N]."""
        levels, order = (basis @ self.codes.T).sort(1)  # (G, 2^K)
        places = torch.searchsorted((levels[:, 1:] + levels[:, :-1]) / 2, weights.contiguous())
        return order.gather(1, places)

    @torch.no_grad()
    def quantized(self) -> tuple[Tensor, Tensor]:
        """Return the integers (float32) and their scale."""
        m, step = self.rounded_basis()
        index = self._nearest(m, self._grouped() / step)
        return (m @ self.codes.T).gather(1, index).reshape(self.latent.shape), step

    def forward(self, _: Tensor | None = None) -> Tensor:
        """Return the rounded weight; its gradient passes to the latent weight unchanged.

        In training, the least-squares step is computed for the codes of this pass; `take_step` takes it.
        """
        with torch.autocast(self.latent.device.type, enabled=False):
            learns = self.training and torch.is_grad_enabled()
            with torch.no_grad():
                m, step = self.rounded_basis()
                weights = self._grouped()
                index = self._nearest(m, weights / step)
                rounded = (m @ self.codes.T).gather(1, index).reshape(self.latent.shape) * step
                if learns:
                    self._solved = least_squares(self.codes[index], weights, self.basis).abs()
            weight: Tensor = rounded + (self.latent - self.latent.detach())
            return weight

    @torch.no_grad()
    def take_step(self) -> None:
        """Move the average of bases towards that of the last forward pass; the first step goes all the way."""
        if self._solved is not None:
            self.moving.lerp_(self._solved, 1 - MEMORY)
            self.count.add_(1)
            self._solved = None

    @torch.no_grad()
    def integers(self) -> LayerIntegers:
        """Return q, Δ and the mask string."""
        q, scale = self.quantized()
        integers, delta = reduced(q.cpu().numpy().astype(np.int64), np.float32(scale.cpu().numpy()))
        return LayerIntegers(integers, delta, mask_string(self.kept, self.n_planes))
