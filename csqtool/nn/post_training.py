"""A finalized model without training: weights rounded with least squared error, activations calibrated."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from csqtool.errors import ModelError
from csqtool.model_info import ModelInfo
from csqtool.nn.activation import ActivationFakeQuantizer
from csqtool.nn.assemble import quantized_model
from csqtool.nn.dataflow import place_quantizers, record
from csqtool.nn.net import DequantizedWeight, QuantizedNet
from csqtool.nn.signature import inputs_of
from csqtool.nn.weights import attach, quantizable_weights
from csqtool.quantized_model import LayerIntegers, QuantizedModel, smallest_dtype


def round_weight(weight: NDArray[np.floating], planes: int) -> LayerIntegers:
    """Return q, Δ and the mask of a weight rounded to `planes` magnitude bits with the least squared error."""
    top = (1 << planes) - 1
    largest = float(np.abs(weight).max()) or 1.0
    shares = np.linspace(0.3, 1.0, 29)

    def rounded(scale: np.float32) -> NDArray[Any]:
        clipped: NDArray[Any] = np.clip(np.rint(weight / scale), -top, top)
        return clipped

    scales = [np.float32(largest * share / top) for share in shares]
    best = min(scales, key=lambda s: float(np.square(rounded(s) * s - weight).sum()))
    return LayerIntegers(smallest_dtype(rounded(best).astype(np.int16)), best, "1" * planes)


def post_training_model(
    module: nn.Module,
    batches: Iterable[Tensor | tuple[Tensor, ...]],
    *,
    planes: int | Callable[[str], int] = 3,
    act_bits: int | None = 8,
    exclude: tuple[str, ...] = (),
    info: ModelInfo = ModelInfo(),  # noqa: B008 - frozen
) -> QuantizedModel:
    """Return the finalized form of a float module without training it.

    Args:
        module: a float module in evaluation mode; it is left as it is.
        batches: inputs [B, …], or tuples of them, to calibrate activations on; the first gives the shapes.
        planes: magnitude bits of each weight, or a function of the weight's name.
        act_bits: bits of the activations that feed weights, None for float.
        exclude: patterns of parameter names that stay in float.
        info: what else the model records.

    Raises:
        ModelError: there is no batch.
    """
    samples = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
    if not samples:
        raise ModelError("calibration needs at least one batch")
    module = copy.deepcopy(module).eval()
    placement = place_quantizers(record(module, samples[0]), act_bits)
    places = [(placement.input, 8)] if placement.input else []
    places += [(f"{name}.output", bits) for name, bits in placement.outputs.items()]
    net = QuantizedNet(module, [ActivationFakeQuantizer(name, bits) for name, bits in places]).eval()
    if places:
        net.calibrate(iter(samples))
    integers = {}
    for weight in quantizable_weights(module, exclude):
        count = planes if isinstance(planes, int) else planes(weight.name)
        found = integers[weight.name] = round_weight(weight.parameter.detach().numpy(), count)
        attach(weight, DequantizedWeight(weight.name, torch.from_numpy(found.q), torch.tensor(found.scale)))
    shapes = ModelInfo.of(inputs=inputs_of(samples[0]))
    return quantized_model(net, placement, integers, ModelInfo({**shapes.document, **info.document}))
