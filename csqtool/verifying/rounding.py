"""How far rounding alone can move a sample's output, measured on the PyTorch network itself.

Two correct programs differ where a value lies so near the boundary between two steps of an activation quantizer that
sums of another order fall on its other side. Here the tolerance of the layers level is played through: in each
quantizer the allowed share of a sample's values, and at least one, goes to the next step, at random and several times.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csqtool.nn.quantized_net import QuantizedNet
from csqtool.verifying.tolerances import Tolerances

DRAWS = 8
MARGIN = 4  # the worst of a few draws, against the worst that can happen


@torch.no_grad()
def allowed_differences(
    net: QuantizedNet, inputs: Tensor, wanted: NDArray[Any], tolerances: Tolerances
) -> NDArray[np.float64]:
    """Return the largest difference of each sample's outputs that rounding explains, [N].

    Args:
        net: the finalized network.
        inputs: samples [N, …].
        wanted: the network's outputs for them.
        tolerances: what the layers level allows.
    """
    flat = wanted.reshape(len(wanted), -1).astype(np.float64)
    allowed: NDArray[np.float64] = tolerances.outputs_float * np.maximum(1.0, np.abs(flat).max(axis=1, initial=0.0))
    if not net.quantizers:
        return allowed
    generator = torch.Generator().manual_seed(0)
    moved = np.zeros(len(flat))
    for _ in range(DRAWS):
        found = net.observed(inputs, _flipping(net, tolerances, generator)).numpy().reshape(flat.shape)
        moved = np.maximum(moved, np.abs(found - flat).max(axis=1, initial=0.0))
    return allowed + MARGIN * moved


def _flipping(net: QuantizedNet, tolerances: Tolerances, generator: torch.Generator) -> Any:
    quantizers = net.quantizers

    def observe(name: str, value: Tensor) -> Tensor:
        quantizer = quantizers[name]
        rounded = quantizer(value)
        chances = torch.rand(value.shape, generator=generator)
        flat = chances.reshape(len(value), -1)
        flipped = ((flat < tolerances.layer_share) | (flat == flat.amin(dim=1, keepdim=True))).reshape(value.shape)
        direction = torch.where(torch.rand(value.shape, generator=generator) < 0.5, -1.0, 1.0)
        low, high = quantizer.bounds * quantizer.scale
        steps = max(tolerances.layer_steps, 1.0) * quantizer.scale
        moved: Tensor = torch.clamp(rounded + flipped * direction * steps, low, high)
        return moved

    return observe
