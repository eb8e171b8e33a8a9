"""Inputs that no test set holds."""

from __future__ import annotations

import torch
from torch import Tensor

EACH = 6  # of a kind


def synthetic_inputs(samples: Tensor) -> dict[str, Tensor]:
    """Return inputs of the range and type of test samples, by what they are; the same ones each time.

    Args:
        samples: test samples [N, …].
    """
    generator = torch.Generator().manual_seed(0)
    shape = (EACH, *samples.shape[1:])
    low, high = samples.min(), samples.max()
    if not samples.is_floating_point():
        numbers = torch.randint(int(low), int(high) + 1, shape, generator=generator)
        ends = torch.stack([torch.full(shape[1:], int(end)) for end in (low, high)])
        return {"uniform": numbers.to(samples.dtype), "constants": ends.to(samples.dtype)}
    uniform = torch.rand(shape, generator=generator)
    levels = torch.linspace(0, 1, EACH).reshape(-1, *[1] * (samples.ndim - 1))
    few = samples[torch.arange(EACH) % len(samples)]
    return {
        "uniform": low + (high - low) * uniform,
        "extremes": torch.where(uniform < 0.5, low, high),
        "zeros": torch.zeros(1, *shape[1:], dtype=samples.dtype),
        "constants": (low + (high - low) * levels).expand(shape).contiguous(),
        "noise": samples.mean() + samples.std(correction=0) * torch.randn(shape, generator=generator),
        # Beyond the range that quantizers were calibrated on: every one is driven to its ends.
        "scaled": torch.cat([few * 8, few * -8]),
    }


def resized(samples: Tensor, axis: int, size: int) -> Tensor:
    """Return samples with another size of an axis: cut, or begun again from the front."""
    return samples.index_select(axis, torch.arange(size) % samples.shape[axis])
