"""From the user's module to a float graph in which quantized values stand as marker nodes."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from typing import Any

import onnx_ir as ir
import torch

from csqtool.errors import ExportError
from csqtool.nn.net import finalized_net, graph_markers
from csqtool.quantized_model import QuantizedModel

# The lowest opset that torch.onnx.export writes without a converter; int8 per-channel QDQ needs 13.
CAPTURE_OPSET = 18


def capture(model: QuantizedModel, module: Any, dynamic: tuple[int, ...] = ()) -> ir.Model:
    """Return the graph of the finalized model, quantized values as marker nodes.

    Args:
        model: the finalized model.
        module: the user's module, freshly built.
        dynamic: axes that stay dynamic beside the batch.

    Raises:
        ExportError: torch cannot capture the module.
    """
    with graph_markers():
        return _capture(finalized_net(module, model), model, dynamic)


def capture_float(model: QuantizedModel, module: Any) -> ir.Model:
    """Return the float32 graph of the same network, as torch itself optimizes it."""
    return _capture(module.eval(), model, ())


def _capture(net: torch.nn.Module, model: QuantizedModel, dynamic: tuple[int, ...]) -> ir.Model:
    """Return the graph of `net`: input ``input``, output ``output``, dynamic batch."""
    sample = torch.zeros(2, *model.info["input_shape"])  # a batch of one would be specialised
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)  # it warns about packages that nothing here uses
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                net,
                (sample,),
                dynamo=True,
                opset_version=CAPTURE_OPSET,
                input_names=["input"],
                output_names=["output"],
                dynamic_shapes=(
                    {0: torch.export.Dim("batch"), **{axis: torch.export.Dim(f"axis_{axis}") for axis in dynamic}},
                ),
                external_data=False,
                optimize=True,
                verbose=False,
            )
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ExportError(f"torch.onnx.export cannot capture the model: {reason}") from error
    finally:
        logger.setLevel(level)
    if program is None:
        raise ExportError("torch.onnx.export returned nothing")
    captured: ir.Model = program.model
    return captured
