"""What bit planes cost where integers are entropy-coded: fewer bits than one a weight, and not the same for all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from csqtool.nn.gates import BitGates

MOST_WEIGHTS = 1 << 16  # of a layer, from which its entropy is estimated


@dataclass(frozen=True)
class PlaneBits:
    """Bits a weight of the integers of layers with all gates as unit steps, each layer with frequencies of its own.

    Attributes:
        layers: the entropy of each layer's integers, a scalar, by parameter name.
        planes: by how much the entropy falls without a kept plane, or rises with one that is not kept, [k].
    """

    layers: Mapping[str, Tensor]
    planes: Mapping[str, Tensor]


@torch.no_grad()
def plane_bits(sources: Mapping[str, BitGates]) -> PlaneBits:
    """Return what the planes of some layers cost now.

    Of layers with more than 65,536 weights, evenly spaced ones stand for all: the entropy of 511 integers is
    estimated 0.006 bits too low then.
    """
    measured = {name: _entropies(gates) for name, gates in sources.items()}
    return PlaneBits(
        {name: found[0] for name, found in measured.items()},
        # Of two sums one is not always a function of the other: a plane of opposite signs may even save bits.
        {name: (found[1:] - found[0]).abs() for name, found in measured.items()},
    )


def _entropies(gates: BitGates) -> Tensor:
    """Return the entropy of the kept planes' sum, and of the sums with one plane added or left out, [1 + k]."""
    logits = [m.detach().flatten(1) for m in (gates.m_p, gates.m_n)]
    every = -(-logits[0].shape[1] // MOST_WEIGHTS)
    positive, negative = (m[:, ::every] >= 0 for m in logits)
    values = torch.tensor([2**b for b in gates.exponents], device=positive.device)
    parts = (positive.long() - negative.long()) * values[:, None]  # [k, n]
    kept = torch.ones_like(values, dtype=torch.bool) if gates.m_b is None else gates.m_b >= 0
    total = parts[kept].sum(0)
    others = total + torch.where(kept[:, None], -parts, parts)
    largest = int(sum(2**b for b in gates.exponents))
    index = torch.cat([total[None], others]) + largest
    counts = torch.zeros(len(index), 2 * largest + 1, device=index.device)
    counts.scatter_add_(1, index, torch.ones_like(index, dtype=counts.dtype))
    shares = counts / index.shape[1]
    entropies: Tensor = torch.special.entr(shares).sum(1) / math.log(2)
    return entropies
