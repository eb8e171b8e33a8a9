"""Rounding of the remaining float32 tensors to float16, which gives another finalized model."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import nn

from csqtool.data import DataSource
from csqtool.errors import ExportError
from csqtool.evaluation import evaluate
from csqtool.finalized_file import to_bytes
from csqtool.model_info import HalfOrigin
from csqtool.nn.assemble import snap_bias
from csqtool.nn.finalized_net import finalized_net
from csqtool.quantized_model import QuantizedModel
from csqtool.rebuild import rebuilt_data, rebuilt_module, rebuilt_net

MAX_METRIC_CHANGE = 0.001


def to_float16(
    model: QuantizedModel,
    *,
    near: Path | None = None,
    factory: str | nn.Module | None = None,
    data: str | DataSource | None = None,
    max_metric_change: float = MAX_METRIC_CHANGE,
) -> QuantizedModel:
    """Return `model` with every float32 tensor except scales rounded to float16, and its metric measured again.

    Tensors with values outside float16's range are not rounded. Biases of layers with quantized inputs are
    rounded to the integer grid again, because rounding changes the grid, and stay float32. The result is another
    finalized model; its `info` records under ``float16`` the original model and both metrics.

    Args:
        model: a finalized model.
        near: its file, if it has one; its folders are searched for the factory's source and the data.
        factory: the factory of the module, or the module itself; None takes the recorded factory.
        data: data whose test set is measured on; None takes the recorded ones.
        max_metric_change: how much the metric may change, in either direction.

    Raises:
        ExportError: the metric changes by more.
        InputError: the module or the data cannot be built.
    """
    rounded, before, after, samples = measured(
        model,
        lambda: dataclasses.replace(model, tensors=_rounded(model)),
        near=near, factory=factory, data=data, max_metric_change=max_metric_change,
    )  # fmt: skip
    info, metrics = model.info, model.info.metrics
    if metrics is not None:
        metrics = msgspec.structs.replace(metrics, finalized=after, samples=samples)
    origin = HalfOrigin(hashlib.sha256(to_bytes(model)).hexdigest(), before, after)
    return dataclasses.replace(rounded, info=info.replace(metrics=metrics, float16=origin))


def measured(
    model: QuantizedModel,
    rounded: Callable[[], QuantizedModel],
    *,
    near: Path | None = None,
    factory: str | nn.Module | None = None,
    data: str | DataSource | None = None,
    max_metric_change: float = MAX_METRIC_CHANGE,
) -> tuple[QuantizedModel, float, float, int]:
    """Return a rounded model, the metrics of the model and of the rounded one, and the number of samples.

    Args:
        model: a finalized model; its module and data are used.
        rounded: returns the same with rounded values; asked once module and data are there.
        near: as for `to_float16`.
        factory: as for `to_float16`.
        data: as for `to_float16`.
        max_metric_change: as for `to_float16`.

    Raises:
        ExportError: the metric changes by more.
        InputError: the module or the data cannot be built.
    """
    source = rebuilt_data(model, data=data, near=near)
    if not len(source.test):
        raise ExportError(f"float16: the test set of {source.name} is empty, so its effect cannot be measured")
    net = rebuilt_net(model, factory=factory, near=near)
    source = source.for_model(net.model)
    before = evaluate(net, source.test, source.task)
    other = rounded()
    changed = finalized_net(rebuilt_module(model, factory=factory, near=near), other)
    after = evaluate(changed, source.test, source.task)
    if not abs(after - before) <= max_metric_change:  # also if one of them is NaN
        raise ExportError(
            f"float16 changes the {source.task.metric_name} from {before:.4f} to {after:.4f}, "
            f"at most {max_metric_change:g} is allowed; pack without --float16"
        )
    return other, before, after, len(source.test)


def _rounded(model: QuantizedModel) -> dict[str, NDArray[Any]]:
    tensors: dict[str, NDArray[Any]] = {}
    for name, tensor in model.tensors.items():
        tensors[name] = tensor
        if tensor.dtype == np.float32:
            with np.errstate(over="ignore"):
                half = tensor.astype(np.float16).astype(np.float32)
            if np.array_equal(np.isfinite(half), np.isfinite(tensor)):
                tensors[name] = half
    quantizers = {a.name: a for a in model.activations}
    for layer in model.layers:
        if layer.input_quantizer is not None:
            bias = f"{layer.batch_norm}.bias" if layer.batch_norm else layer.name.removesuffix("weight") + "bias"
            if bias in tensors:
                tensors[bias] = model.tensors[bias]
            snap_bias(layer, tensors, quantizers[layer.input_quantizer])
    return tensors
