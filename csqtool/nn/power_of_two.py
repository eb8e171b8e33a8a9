"""Step sizes that are powers of two: a shift in hardware, where others take a multiplication."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest_power_of_two(scale: Tensor) -> Tensor:
    """Return the power of two that is nearest on a logarithmic scale; its gradient passes to `scale` unchanged.

    Args:
        scale: above zero, any shape.

    Example:
        >>> nearest_power_of_two(torch.tensor([0.25, 0.36, 5.5, 6.0])).tolist()
        [0.25, 0.5, 4.0, 8.0]
    """
    with torch.no_grad():
        mantissa, _ = torch.frexp(scale)  # 0.5 … 1
        upper = scale / mantissa  # exact
        nearest = torch.where(mantissa < 0.5**0.5, upper / 2, upper)
    # Both are at most a factor of two apart, so that difference and sum are exact.
    result: Tensor = scale + (nearest - scale).detach()
    return result
