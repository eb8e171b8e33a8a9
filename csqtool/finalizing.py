"""Finalize: from a finished search to signed integers, scales and bit widths, in one self-contained file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from csqtool.evaluation import evaluate
from csqtool.factories import build_model
from csqtool.finalized_file import write_finalized
from csqtool.nn.assemble import quantized_model
from csqtool.nn.finalized_net import finalized_net
from csqtool.quantized_model import QuantizedModel
from csqtool.searching.runs import load_finished


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
    session = finished.session
    assert session.method is not None
    model = quantized_model(session.net, session.placement, session.method.integers(), session.info())
    module = build_model(session.config.model, dict(session.config.model_args), near=run / "config.json")
    metrics = {
        "name": session.data.task.metric_name,
        "float": finished.summary["metric_float"],
        "finalized": evaluate(finalized_net(module, model), session.data.test, session.data.task),
        "samples": len(session.data.test),
    }
    model = dataclasses.replace(model, info={**model.info, "metrics": metrics})
    write_finalized(model, output)
    return model
