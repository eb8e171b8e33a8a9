"""Finalize: from a finished search to signed integers, scales and bit widths, in one self-contained file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from csqtool.factories import build_model
from csqtool.finalized_file import write_finalized
from csqtool.folding import bias_step, fold_scale, integer_bias, read_batch_norm
from csqtool.nn.net import QuantizedNet, finalized_net
from csqtool.quantized_model import ActivationQuantizer, QuantizedLayer, QuantizedModel
from csqtool.search.loop import evaluate
from csqtool.search.run import FinishedSearch, load_finished


def finalize(run: Path, output: Path) -> QuantizedModel:
    """Turn a finished search into a finalized model file.

    All gates become unit steps, biases are snapped to the integer grid of their layer where its input is
    quantized, and the network that results, which is what every export is compared with, is evaluated.

    Args:
        run: the run directory of a finished search.
        output: the ``.safetensors`` file to write.

    Returns:
        The finalized model, as written.

    Raises:
        InputError: `run` holds no finished search, or `output` cannot be written.
    """
    finished = load_finished(run)
    model = quantized_model(finished)
    module = build_model(finished.config.model, dict(finished.config.model_args), near=run / "config.json")
    metric = evaluate(finalized_net(module, model), finished.data.test, finished.data.task)
    metrics = {
        "name": finished.data.task.metric_name,
        "float": finished.summary["metric_float"],
        "finalized": metric,
        "samples": len(finished.data.test),
    }
    model = dataclasses.replace(model, info={**model.info, "metrics": metrics})
    write_finalized(model, output)
    return model


def quantized_model(finished: FinishedSearch) -> QuantizedModel:
    """Return the integers, scales and float tensors of a finished search, biases snapped."""
    module, placement = finished.net.model, finished.placement
    integers = finished.method.integers()
    tensors = {
        name: value.detach().cpu().numpy().copy()
        for name, value in module.state_dict().items()
        if "parametrizations" not in name.split(".")
    }
    activations = tuple(q.finalized() for q in finished.net.quantizers.values())
    scales = {a.name: a for a in activations}
    layers, epsilons = [], {}
    for name, (q, scale, mask) in integers.items():
        layer = QuantizedLayer(name, q, scale, mask, placement.layer_inputs.get(name), None)
        batch_norm = placement.batch_norms.get(name)
        if batch_norm is not None and _is_foldable(module.get_submodule(batch_norm)):
            epsilon = float(module.get_submodule(batch_norm).eps)  # type: ignore[arg-type]
            if _snap(layer, batch_norm, epsilon, tensors, scales.get(layer.input_quantizer or "")):
                layer = dataclasses.replace(layer, batch_norm=batch_norm)
                epsilons[batch_norm] = epsilon
        else:
            _snap(layer, None, 0.0, tensors, scales.get(layer.input_quantizer or ""))
        layers.append(layer)
    config = finished.config
    info = {
        "model": {"factory": config.model, "args": dict(config.model_args)},
        "data": {"source": config.data, **finished.data.facts()},
        "input_shape": finished.summary["input_shape"],
        "method": {
            "name": config.method,
            "target_bits": config.target_bits,
            "act_bits": config.act_bits,
            "epochs": config.epochs,
            "finetune_epochs": config.finetune_epochs,
            "seed": config.seed,
        },
        "batch_norm_epsilon": epsilons,
    }
    return QuantizedModel(tuple(layers), activations, tensors, _ties(finished.net, integers), info)


def _is_foldable(module: nn.Module) -> bool:
    """Tell whether a norm is an affine BatchNorm with running statistics."""
    return (
        isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.affine
        and module.track_running_stats
        and module.running_mean is not None
    )


def _snap(
    layer: QuantizedLayer,
    batch_norm: str | None,
    epsilon: float,
    tensors: dict[str, NDArray[Any]],
    input_quantizer: ActivationQuantizer | None,
) -> bool:
    """Move a layer's effective bias onto the grid s_x·s_w; the change goes into the bias (or BatchNorm's β).

    Returns:
        False if the grid is too fine for int32 in some channel: the layer is then better left unfolded.
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


@torch.no_grad()
def rebuilt_net(model: QuantizedModel, *, factory: str | None = None, near: Path | None = None) -> QuantizedNet:
    """Return the finalized PyTorch network: the reference of every comparison.

    Args:
        model: the finalized model.
        factory: builds the module, instead of the one recorded in the model.
        near: the finalized file; its surroundings are searched for the factory's source.

    Raises:
        InputError: the factory is missing or builds something else.
    """
    return finalized_net(rebuilt_module(model, factory=factory, near=near), model)


def rebuilt_module(model: QuantizedModel, *, factory: str | None = None, near: Path | None = None) -> nn.Module:
    """Return a fresh module of the user's code, without the finalized values."""
    recorded = model.info["model"]
    module: nn.Module = build_model(factory or recorded["factory"], recorded["args"], near=near)
    return module
