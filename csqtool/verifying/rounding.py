"""How far rounding alone can move a sample's output, measured on the PyTorch network itself.

Two correct programs differ where a value lies so near the boundary between two steps of an activation quantizer that
sums of another order fall on its other side. Here the tolerance of the layers level is played through: in each
quantizer the allowed share of a sample's values, and at least one, goes to the next step, at random and several times.

Without quantizers each number of the inputs moves by a unit in its last place, and each result of a layer by what a
float32 sum of so many products may be off by. A network that such a change moves far (a normalization of an input that
is constant, which divides noise by noise) has no output to compare more closely.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from csqtool.nn.operations import WEIGHT_OPS
from csqtool.nn.quantized_net import QuantizedNet
from csqtool.nn.signature import named_outputs
from csqtool.nn.sites import Call, SiteMode
from csqtool.trees import Arguments, chosen, mapped, samples, tensors
from csqtool.verifying.runtime import batch_size
from csqtool.verifying.tolerances import Tolerances

DRAWS = 8
MARGIN = 4  # the worst of a few draws, against the worst that can happen
EPSILON = float(np.finfo(np.float32).eps)
# How far a sum of K products is moved at most, in ε·√K of the largest result: a 128th of what the layers level allows.
SUM_ROUNDING = 0.25


@torch.no_grad()
def allowed_differences(
    net: QuantizedNet, inputs: Any, wanted: Mapping[str, NDArray[Any]], tolerances: Tolerances
) -> dict[str, NDArray[np.float64]]:
    """Return the largest difference of each sample that rounding explains, [N], by output.

    Args:
        net: the finalized network.
        inputs: those of N samples.
        wanted: the network's outputs for them, by name.
        tolerances: what the layers level allows.
    """
    flat = {name: values.reshape(len(values), -1).astype(np.float64) for name, values in wanted.items()}
    allowed: dict[str, NDArray[np.float64]] = {
        name: tolerances.outputs_float * np.maximum(1.0, np.abs(values).max(axis=1, initial=0.0))
        for name, values in flat.items()
    }
    generator = torch.Generator().manual_seed(0)
    moved = {name: np.zeros(len(values)) for name, values in flat.items()}
    count = samples(inputs)
    most = max(1, batch_size(sum(tensor.nbytes for tensor in tensors(inputs)) / count) // count)
    for start in range(0, DRAWS, most):
        draws = min(most, DRAWS - start)  # in one batch: of few samples, most of the time is not spent on numbers
        several = chosen(inputs, torch.arange(draws * count) % count, count)
        if net.quantizers:
            output = net.observed(several, _flipping(net, tolerances, generator))
        else:
            output = _rounded_anywhere(net, several, generator)
        for name, found in named_outputs(output, net.kept_outputs).items():
            difference = np.abs(found.numpy().reshape(draws, *flat[name].shape) - flat[name])
            moved[name] = np.maximum(moved[name], difference.max(axis=(0, 2), initial=0.0))
    return {name: allowed[name] + MARGIN * moved[name] for name in allowed}


def _rounded_anywhere(net: QuantizedNet, inputs: Any, generator: torch.Generator) -> Any:
    """Run a network without quantizers, its inputs and its layers' results moved by about their rounding."""
    moved = mapped(inputs, lambda values: _nudged(values, generator))
    arguments = Arguments.of(moved, net.model)
    mode = _RoundedSums(net.model, tensors(arguments), generator)
    with mode.active():
        output = arguments.call(net.model)
    return mapped(output, mode.current)


class _RoundedSums(SiteMode):
    """Moves each result of a layer, up to `SUM_ROUNDING`."""

    def __init__(self, model: nn.Module, inputs: Iterable[Tensor], generator: torch.Generator) -> None:
        super().__init__(model, inputs)
        self._generator = generator

    def on_call(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if call.kind != WEIGHT_OPS or not output.numel():
            return output
        weight = max(tensors((args[1:], kwargs)), key=Tensor.numel)
        channels = output.shape[1 if call.operation.startswith("conv") else -1]
        largest = output.abs().flatten(1).amax(dim=1).reshape(-1, *[1] * (output.ndim - 1))
        unit = SUM_ROUNDING * EPSILON * (weight.numel() / channels) ** 0.5
        return output + unit * largest * (2 * torch.rand(output.shape, generator=self._generator) - 1)


def _nudged(values: Tensor, generator: torch.Generator) -> Tensor:
    if not values.is_floating_point():
        return values
    up = torch.rand(values.shape, generator=generator) < 0.5
    return values * (1 + torch.finfo(values.dtype).eps * torch.where(up, 1.0, -1.0).to(values.dtype))


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
