"""From the user's module to a float graph in which quantized values are marker nodes."""

from __future__ import annotations

import contextlib
import io
import logging
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

import csqtool.version
import exporters
from csqtool.errors import ConfigError, ExportError, InputError
from csqtool.model_info import Input
from csqtool.nn.finalized_net import finalized_net
from csqtool.nn.markers import graph_markers
from csqtool.nn.quantized_net import QuantizedNet
from csqtool.nn.reparametrized import copied
from csqtool.nn.signature import output_names, recorded_inputs
from csqtool.quantized_model import QuantizedModel

# The lowest opset that torch.onnx.export writes without a converter; int8 per-channel QDQ needs 13.
CAPTURE_OPSET = 18
# Code in these places, and code without a file, is not the user's.
NOT_THE_USERS = (*(f"{Path(str(p.__file__)).parent}/" for p in (torch, csqtool, exporters)), "<")


def capture(model: QuantizedModel, module: Any, dynamic: tuple[int, ...]) -> ir.Model:
    """Return the graph of the finalized model, quantized values as marker nodes.

    Args:
        model: the finalized model.
        module: the user's module, freshly built.
        dynamic: axes that stay dynamic in addition to the batch.

    Raises:
        ExportError: torch cannot capture the module.
    """
    with graph_markers():
        return _capture(finalized_net(module, model), model, dynamic)


def capture_float(model: QuantizedModel, module: Any) -> ir.Model:
    """Return the float32 graph of the same network, as torch itself optimizes it."""
    with graph_markers():  # outputs become a tuple; there is no other marker in a float network
        return _capture(QuantizedNet(module.eval(), [], kept_outputs=model.info.outputs or ()), model, ())


def _capture(net: QuantizedNet, model: QuantizedModel, dynamic: tuple[int, ...]) -> ir.Model:
    """Return the graph of `net`, inputs and outputs named as the model's signature says, batch dynamic."""
    inputs = recorded_inputs(model.info)
    for path, part in net.model.named_modules():
        if isinstance(part, torch.nn.LSTM) and part.proj_size:
            raise ExportError(
                f"{path}: LSTM with projections (proj_size={part.proj_size}): ONNX's LSTM has none, and the graph that "
                "torch.onnx.export writes of it does not run; use proj_size=0 and a Linear layer"
            )
    for axis in dynamic:
        if axis > len(inputs[0].shape):
            raise ConfigError(f"axis {axis} cannot be dynamic: the input has axes 0 to {len(inputs[0].shape)}")
    # Of a copy: what a model remembers of its last input must not get into the graph.
    names = output_names(copied(net.model), inputs, net.kept_outputs)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)  # it warns about packages that are not used here
        with (
            net.captured(inputs) as sample,
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                net,
                sample,
                dynamo=True,
                opset_version=CAPTURE_OPSET,
                input_names=[i.name for i in inputs],
                output_names=names,
                dynamic_shapes={"inputs": _dynamic_shapes(inputs, dynamic)},
                external_data=False,
                optimize=True,
                verbose=False,
            )
    except InputError:
        raise
    except Exception as error:
        raise ExportError(f"torch.onnx.export cannot capture the model: {_reason(error)}") from error
    finally:
        logger.setLevel(level)
    if program is None:
        raise ExportError("torch.onnx.export returned nothing")
    captured: ir.Model = program.model
    return captured


def _dynamic_shapes(inputs: Sequence[Input], dynamic: tuple[int, ...]) -> tuple[dict[int, Any], ...]:
    """Return the dynamic axes of each input: the batch, and what was asked for.

    An axis that is dynamic in the first input is so in all that have the same size there, such as a mask's.
    """
    batch = torch.export.Dim("batch")
    axes = {axis: torch.export.Dim(f"axis_{axis}") for axis in dynamic}
    first = inputs[0].shape

    def of(one: Input) -> dict[int, Any]:
        shared = {a: d for a, d in axes.items() if a <= len(one.shape) and one.shape[a - 1] == first[a - 1]}
        return {0: batch, **shared}

    return tuple(of(one) for one in inputs)


def _reason(error: BaseException) -> str:
    """Return what stopped the capture, and where: the innermost cause and the user's line, if torch names it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    if "data-dependent" in reason:
        reason = "its control flow depends on values"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(NOT_THE_USERS)]
    if not frames:
        return reason
    return f"{reason} (in {Path(frames[-1].filename).name}, line {frames[-1].lineno}: {frames[-1].line})"
