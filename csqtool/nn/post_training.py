"""A finalized model without training: weights rounded with least squared error, activations calibrated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from csqtool.errors import ModelError
from csqtool.model_info import ModelInfo
from csqtool.nn.activation import ActivationFakeQuantizer
from csqtool.nn.assemble import quantized_model
from csqtool.nn.finalized_net import DequantizedWeight
from csqtool.nn.latent import LsqWeight
from csqtool.nn.placement import place_quantizers
from csqtool.nn.quantized_net import QuantizedNet, make_quantizers
from csqtool.nn.reparametrized import copied, fold_parametrizations
from csqtool.nn.signature import inputs_of
from csqtool.nn.sites import record
from csqtool.nn.weights import attach, excluded_weights, quantizable_weights
from csqtool.quantized_model import QuantizedModel


def post_training_model(
    module: nn.Module,
    batches: Iterable[Any],
    *,
    planes: int | Callable[[str], int] = 3,
    act_bits: int | None = 8,
    exclude: tuple[str, ...] = (),
    info: ModelInfo = ModelInfo(),  # noqa: B008 - frozen
) -> QuantizedModel:
    """Return the finalized form of a float module without training it.

    Args:
        module: a float module; it is not changed, and runs in evaluation mode.
        batches: inputs of each batch to calibrate activations on: a tensor [B, …], a tuple of positional arguments, or
            a dict of keyword arguments. The first gives the shapes.
        planes: magnitude bits of each weight, or a function of the weight's name.
        act_bits: bits of the activations that feed weights, None for float.
        exclude: patterns of the names of parameters that stay in float.
        info: what else the finalized model records.

    Raises:
        ModelError: there is no batch, or an activation is NaN or infinite.
    """
    samples = list(batches)
    if not samples:
        raise ModelError("calibration needs at least one batch")
    module = copied(module)
    fold_parametrizations(module)
    recorded = record(module, samples[0])
    placement = place_quantizers(recorded, act_bits, excluded_weights(module, recorded.weights, exclude))
    net = QuantizedNet(module, make_quantizers(placement, ActivationFakeQuantizer))
    if net.quantizers:
        net.calibrate(samples)
    integers = {}
    for weight in quantizable_weights(module, recorded.weights, exclude):
        count = planes if isinstance(planes, int) else planes(weight.name)
        found = LsqWeight(weight.parameter, range(count), n_planes=count).integers()
        integers[weight.name] = found
        attach(weight, DequantizedWeight(weight.name, torch.from_numpy(found.q), torch.tensor(found.scale)))
    shapes = ModelInfo.of(inputs=inputs_of(samples[0], module))
    return quantized_model(net, placement, integers, ModelInfo({**shapes.document, **info.document}))
