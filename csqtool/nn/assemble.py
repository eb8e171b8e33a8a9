"""From a trained network and its integers to the intermediate representation, with snapped biases."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from csqtool.folding import bias_step, fold_scale, integer_bias, read_batch_norm
from csqtool.nn.placement import Placement
from csqtool.nn.quantized_net import QuantizedNet
from csqtool.quantized_model import ActivationQuantizer, LayerIntegers, QuantizedLayer, QuantizedModel


def quantized_model(
    net: QuantizedNet,
    placement: Placement,
    integers: Mapping[str, LayerIntegers],
    info: Mapping[str, Any],
) -> QuantizedModel:
    """Return the integers, scales and float tensors of a trained network.

    Where a layer's input is quantized, its bias is snapped to the layer's integer grid.

    Args:
        net: the network, with a parametrization for each quantized parameter.
        placement: where its activations are quantized, and which BatchNorms fold.
        integers: q, Δ and mask of each layer, by the weight's name.
        info: what else the finalized file records.
    """
    module = net.model
    tensors = {
        name: value.detach().cpu().numpy().copy()
        for name, value in module.state_dict().items()
        if "parametrizations" not in name.split(".") and name not in integers
    }
    activations = tuple(q.finalized() for q in net.quantizers.values())
    scales = {a.name: a for a in activations}
    layers, epsilons = [], {}
    for name, (q, scale, mask) in integers.items():
        layer = QuantizedLayer(name, q, scale, mask, placement.layer_inputs.get(name), None)
        batch_norm = placement.batch_norms.get(name)
        if batch_norm is not None and _is_foldable(module.get_submodule(batch_norm)):
            epsilon = float(module.get_submodule(batch_norm).eps)  # type: ignore[arg-type]
            if snap_bias(layer, batch_norm, epsilon, tensors, scales.get(layer.input_quantizer or "")):
                layer = dataclasses.replace(layer, batch_norm=batch_norm)
                epsilons[batch_norm] = epsilon
        else:
            snap_bias(layer, None, 0.0, tensors, scales.get(layer.input_quantizer or ""))
        layers.append(layer)
    return QuantizedModel(
        tuple(layers), activations, tensors, _ties(net, integers), {**info, "batch_norm_epsilon": epsilons}
    )


def _is_foldable(module: nn.Module) -> bool:
    """Tell whether a module is an affine BatchNorm with running statistics."""
    return (
        isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.affine
        and module.track_running_stats
        and module.running_mean is not None
    )


def snap_bias(
    layer: QuantizedLayer,
    batch_norm: str | None,
    epsilon: float,
    tensors: dict[str, NDArray[Any]],
    input_quantizer: ActivationQuantizer | None,
) -> bool:
    """Round a layer's effective bias to multiples of s_x·s_w, by changing the bias, or β if a BatchNorm follows.

    Args:
        layer: the layer.
        batch_norm: name of the BatchNorm that folds into the layer, None without one.
        epsilon: its epsilon.
        tensors: the model's float tensors, by name; the bias or β is changed in place.
        input_quantizer: the quantizer on the layer's input. Without one there is no grid, and nothing changes.

    Returns:
        False if some channel's bias exceeds int32 in these steps. Then nothing is changed, and BatchNorm should not
        be folded.
    """
    bias_name = layer.name.removesuffix("weight") + "bias"
    bias = tensors.get(bias_name) if layer.name.endswith("weight") else None
    if input_quantizer is None or (batch_norm is None and bias is None):
        return True
    if batch_norm is None:
        assert bias is not None
        step = bias_step(input_quantizer.scale, np.full(bias.shape, layer.scale))
        steps = integer_bias(bias, step)
        if steps is not None:
            tensors[bias_name] = steps.astype(np.float32) * step
        return steps is not None
    norm = read_batch_norm(tensors, batch_norm, epsilon)
    step = bias_step(input_quantizer.scale, fold_scale(layer.scale, norm.factor).scale)
    effective = norm.effective_bias(bias)
    steps = integer_bias(effective, step)
    if steps is None:
        return False
    snapped = steps.astype(np.float64) * step.astype(np.float64)
    tensors[f"{batch_norm}.bias"] = (norm.beta + (snapped - effective)).astype(np.float32)
    return True


def _ties(net: QuantizedNet, integers: Any) -> dict[str, str]:
    """Return the other names of tied quantized parameters."""
    first: dict[int, str] = {}
    ties = {}
    for module_name, module in net.model.named_modules():
        for attribute, chain in getattr(module, "parametrizations", {}).items():
            name = f"{module_name}.{attribute}" if module_name else attribute
            source = first.setdefault(id(chain[0]), name)
            if source != name and source in integers:
                ties[name] = source
    return ties
