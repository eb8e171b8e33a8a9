"""The integers that a set of bit planes can represent, and the projection of weights onto them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

EXACT = 1e-10  # relative squared error; a smaller one is float32 rounding
FIT_SAMPLE = 1 << 16  # weights that the search for a scale looks at; the refinement uses all of them


class Levels:
    """The integers Σ_b c_b·2^b with c_b ∈ {−1, 0, 1} over the kept planes b.

    Example:
        Planes 0 and 2 represent nine integers. A weight is rounded to the nearest of them, times a scale:

        >>> levels = Levels((0, 2))
        >>> levels.values.tolist()
        [-5, -4, -3, -1, 0, 1, 3, 4, 5]
        >>> weight = torch.tensor([[0.52, -0.31], [0.09, 0.0]])
        >>> levels.project(weight, 0.1).int().tolist()
        [[5, -3], [1, 0]]
        >>> index = levels.nearest(weight / 0.1)
        >>> levels.digits[index].shape  # [*weight, k]
        torch.Size([2, 2, 2])
        >>> levels.digits[index][0].tolist()  # 5 = 1 + 4 and −3 = 1 − 4
        [[1, 1], [1, -1]]

    Attributes:
        exponents: the kept planes, ascending; plane b weighs 2^b.
        values: the distinct integers, ascending, int64 [L].
        digits: one way to write each of them as Σ_b c_b·2^b, int8 [L, k]; with digits of one sign where possible.
        largest: the largest integer.
    """

    def __init__(self, exponents: Sequence[int]) -> None:
        self.exponents = tuple(exponents)
        written: dict[int, tuple[int, ...]] = {}
        # Ways of one sign come first, then those with few digits; the first way to write an integer is kept.
        ways = sorted(
            product((0, 1, -1), repeat=len(self.exponents)),
            key=lambda digits: (1 in digits and -1 in digits, sum(map(abs, digits))),
        )
        for digits in ways:
            value = sum(c << b if c >= 0 else -(1 << b) for c, b in zip(digits, self.exponents, strict=True))
            written.setdefault(value, digits)
        self.digits = torch.tensor([written[value] for value in sorted(written)], dtype=torch.int8)
        self._set_values(sorted(written))

    def _set_values(self, values: Sequence[int]) -> None:
        """Take distinct integers, ascending, the negative of each among them."""
        self.values = torch.tensor(values)
        self.largest = int(self.values[-1])
        self._midpoints = (self.values[1:] + self.values[:-1]).float() / 2
        self._has_gaps = len(self.values) != 2 * self.largest + 1

    def nearest(self, x: Tensor) -> Tensor:
        """Return the index of the level nearest to each value of `x`, int64, same shape."""
        return torch.bucketize(x.contiguous(), self._midpoints.to(x.device))

    def project(self, weight: Tensor, scale: Tensor | float) -> Tensor:
        """Return the integers (float32, the weight's shape) nearest to weight / scale."""
        if not self._has_gaps:
            return torch.round(weight / scale).clamp_(-self.largest, self.largest)
        return self.values.to(weight.device)[self.nearest(weight / scale)].float()

    @torch.no_grad()
    def fit_scale(self, weight: Tensor) -> Tensor:
        """Return the scale, a positive float32 scalar, that represents `weight` with the least squared error."""
        flat = weight.detach().flatten().float()
        sample = flat[:: max(1, flat.numel() // FIT_SAMPLE)]
        largest = flat.abs().max()
        if largest == 0:
            return torch.ones_like(largest)
        best, best_error = largest / self.largest, torch.inf
        shares = torch.linspace(0.1, 1.0, 91).tolist()
        # A share above 1 leaves the largest levels unused. That pays only for weights that are on the others already.
        shares += [self.largest / value for value in self.values.tolist() if 0 < value < self.largest]
        exact = EXACT * float(sample.square().sum())
        for share in shares:
            scale = largest * share / self.largest
            error = float((self.project(sample, scale) * scale - sample).square().sum())
            if error < best_error and (share <= 1 or error <= exact):
                best, best_error = scale, error
        for _ in range(3):  # with the integers fixed, the best scale is the least-squares one
            q = self.project(flat, best)
            if not q.any():
                break
            best = (q * flat).sum() / q.square().sum()
        return best


# The magnitudes of the terms of k planes, k = 1 to 4; each level is a sum of one from each term. They are those of the
# authors' code, powers of 1/2, times the largest denominator. Six planes would need integers of ten bits.
POWER_TERMS = ((0, 1),), ((0, 1, 2, 4),), ((0, 1, 4, 8), (0, 2)), ((0, 2, 8, 32), (0, 1, 4, 16))


class AdditivePowers(Levels):
    """Signed sums of powers of two, 2^k magnitudes for k planes (APoT, Li et al. 2020, eq. 5).

    Example:
        >>> AdditivePowers(3).values.tolist()
        [-10, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 10]

    Attributes:
        exponents: 0 … k − 1: how many planes a budget counts, not the powers that occur.
        values, largest: as in `Levels`; there are no digits.
    """

    def __init__(self, planes: int) -> None:
        self.exponents = tuple(range(planes))
        magnitudes = {sum(one) for one in product(*POWER_TERMS[planes - 1])}
        self._set_values(sorted(magnitudes | {-value for value in magnitudes}))
