"""From a trained network and its integers to the intermediate representation, with snapped biases."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from csqtool.errors import ModelError
from csqtool.finalized_file import EPSILON_KEY
from csqtool.folding import bias_step, fold_scale, integer_bias, read_batch_norm
from csqtool.model_info import ModelInfo
from csqtool.nn.placement import Placement
from csqtool.nn.quantized_net import QuantizedNet
from csqtool.quantized_model import ActivationQuantizer, LayerIntegers, QuantizedLayer, QuantizedModel


def quantized_model(
    net: QuantizedNet,
    placement: Placement,
    integers: Mapping[str, LayerIntegers],
    info: ModelInfo,
) -> QuantizedModel:
    """Return the integers, scales and float tensors of a trained network.

    Where a layer's input is quantized, its bias is snapped to the layer's integer grid.

    Args:
        net: the network, with a parametrization for each quantized parameter.
        placement: where its activations are quantized, and which BatchNorms fold.
        integers: q, Δ and mask of each layer, by the weight's name.
        info: what else the finalized file records.

    Raises:
        ModelError: a parameter, or a statistic of BatchNorm, is NaN or infinite.
    """
    module = net.model
    _check_finite(module)
    tensors = {
        name: value.detach().cpu().numpy().copy()
        for name, value in module.state_dict().items()
        if "parametrizations" not in name.split(".") and name not in integers
    }
    activations = tuple(q.finalized() for q in net.quantizers.values())
    scales = {a.name: a for a in activations}
    shared = _other_names(module)
    layers = []
    for name, (q, scale, mask) in integers.items():
        layer = QuantizedLayer(name, q, scale, mask, placement.layer_inputs.get(name))
        batch_norm = placement.batch_norms.get(name)
        if batch_norm is not None and _is_foldable(norm := module.get_submodule(batch_norm)):
            layer = dataclasses.replace(layer, batch_norm=batch_norm, batch_norm_epsilon=norm.eps)
        if not snap_bias(layer, tensors, scales.get(layer.input_quantizer or "")):
            layer = dataclasses.replace(layer, batch_norm=None, batch_norm_epsilon=None)
        layers.append(layer)
        for changed in (f"{name.removesuffix('weight')}bias", f"{batch_norm}.bias"):
            tensors.update((alias, tensors[changed]) for alias in shared.get(changed, ()) if changed in tensors)
    # The key has its place in the document also where nothing folds.
    epsilons = {layer.batch_norm: layer.batch_norm_epsilon for layer in layers if layer.batch_norm is not None}
    info = ModelInfo({**info.document, EPSILON_KEY: epsilons})
    return QuantizedModel(tuple(layers), activations, tensors, _ties(net, integers), info)


def _check_finite(module: nn.Module) -> None:
    """Check what training changes. Other buffers may be infinite on purpose, as masks of attention are."""
    changed: dict[str, torch.Tensor] = dict(module.named_parameters())
    for path, norm in module.named_modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            changed |= {f"{path}.{name}": value for name, value in norm.named_buffers()}
    for name, value in changed.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ModelError(
                f"{name} holds values that are NaN or infinite: training diverged; lower the learning rate"
            )


def _is_foldable(module: nn.Module) -> TypeGuard[nn.modules.batchnorm._BatchNorm]:
    """Return whether a module is an affine BatchNorm with running statistics."""
    return (
        isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.affine
        and module.track_running_stats
        and module.running_mean is not None
    )


def snap_bias(
    layer: QuantizedLayer, tensors: dict[str, NDArray[Any]], input_quantizer: ActivationQuantizer | None
) -> bool:
    """Round a layer's effective bias to multiples of s_x·s_w, by changing the bias, or β if a BatchNorm follows.

    Args:
        layer: the layer.
        tensors: the model's float tensors, by name; the bias or β is changed in place.
        input_quantizer: the quantizer on the layer's input. Without one there is no grid, and nothing changes.

    Returns:
        False if some channel's bias exceeds int32 in these steps. Then nothing is changed, and BatchNorm should not
        be folded.

    Raises:
        FormatError: the layer's BatchNorm cannot be folded, see `csqtool.folding.epsilon_to_fold`.
    """
    bias_name = layer.name.removesuffix("weight") + "bias"
    bias = tensors.get(bias_name) if layer.name.endswith("weight") else None
    if input_quantizer is None or (layer.batch_norm is None and bias is None):
        return True
    if layer.batch_norm is None:
        assert bias is not None
        step = bias_step(input_quantizer.scale, np.full(bias.shape, layer.scale))
        steps = integer_bias(bias, step)
        if steps is not None:
            tensors[bias_name] = steps.astype(np.float32) * step
        return steps is not None
    norm = read_batch_norm(layer, tensors)
    step = bias_step(input_quantizer.scale, fold_scale(layer.scale, norm.factor).scale)
    effective = norm.effective_bias(bias)
    steps = integer_bias(effective, step)
    if steps is None:
        return False
    snapped = steps.astype(np.float64) * step.astype(np.float64)
    tensors[f"{layer.batch_norm}.bias"] = (norm.beta + (snapped - effective)).astype(np.float32)
    return True


def _other_names(module: nn.Module) -> dict[str, list[str]]:
    """Return the other names of each parameter that has several: of tied ones, and of modules under two names."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: same for same in names.values() if len(same) > 1 for name in same}


def _ties(net: QuantizedNet, integers: Any) -> dict[str, str]:
    """Return the other names of tied quantized parameters."""
    first: dict[int, str] = {}
    ties = {}
    for module_name, module in net.model.named_modules(remove_duplicate=False):
        for attribute, chain in getattr(module, "parametrizations", {}).items():
            name = f"{module_name}.{attribute}" if module_name else attribute
            source = first.setdefault(id(chain[0]), name)
            if source != name and source in integers:
                ties[name] = source
    return ties
