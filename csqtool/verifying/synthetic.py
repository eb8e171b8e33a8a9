"""Inputs that no test set holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from csqtool.trees import mapped, tensors

EACH = 6  # of a kind


def synthetic_inputs(inputs: Any) -> dict[str, Any]:
    """Return inputs of the range and type of test samples, by what they are; the same ones each time.

    Where there are several inputs, each is made from its own range, all of one kind at a time.

    Args:
        inputs: those of the test samples.
    """
    given = list(tensors(inputs))
    made = [_masks(v) if len(given) > 1 and _is_mask(v) else _synthetic(v, seed) for seed, v in enumerate(given)]
    kinds = list(dict.fromkeys(kind for one in made for kind in one))
    found = {}
    for kind in kinds:
        parts = [one.get(kind, one["uniform"]) for one in made]
        count = max(map(len, parts))
        found[kind] = _in_place_of(inputs, [part[torch.arange(count) % len(part)] for part in parts])
    return found


def _in_place_of(inputs: Any, values: list[Tensor]) -> Any:
    """Return inputs of the same structure with other tensors."""
    others = iter(values)
    return mapped(inputs, lambda _: next(others))


def _is_mask(values: Tensor) -> bool:
    return not values.is_floating_point() and int(values.min()) >= 0 and int(values.max()) <= 1


def _masks(samples: Tensor) -> dict[str, Tensor]:
    """Return the samples' own masks beside another input: which values may be 0 together follows the model's rules."""
    return {"uniform": samples[torch.arange(EACH) % len(samples)]}


def _synthetic(samples: Tensor, seed: int) -> dict[str, Tensor]:
    """Return values of the range and type of one input [N, …]."""
    generator = torch.Generator().manual_seed(seed)
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


def resized(inputs: Any, axis: int, size: int) -> Any:
    """Return inputs with another size of an axis, where they have that of the first: cut, or begun again.

    Args:
        inputs: those of the test samples.
        axis: the axis.
        size: its other size.
    """
    old = next(tensors(inputs)).shape[axis]

    def change(values: Tensor) -> Tensor:
        if values.ndim <= axis or values.shape[axis] != old:
            return values
        return values.index_select(axis, torch.arange(size) % old)

    return mapped(inputs, change)
