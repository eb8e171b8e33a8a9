"""Finalize: from a finished search to signed integers, scales and bit widths, in one self-contained file."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from csqtool.evaluation import evaluate
from csqtool.model_info import Metrics
from csqtool.nn.finalized_net import finalized_net
from csqtool.quantized_model import QuantizedModel

if TYPE_CHECKING:
    from csqtool.searching.session import Session


def finalized_model(session: Session, metric_float: float | None) -> QuantizedModel:
    """Turn the network of a finished search into a finalized model, and evaluate it.

    All gates become unit steps, and biases are rounded to the integer grid of their layer if its input is
    quantized. The result is the reference that every export is compared with.

    Args:
        session: a finished search.
        metric_float: the float model's metric, which is recorded in the result.
    """
    session.network.harden()
    model = session.network.quantized(session.method.integers(), session.info())
    module = session.model_source.build(near=session.directory.config)
    metrics = Metrics(
        name=session.data.task.metric_name,
        float_model=metric_float,
        finalized=evaluate(finalized_net(module, model), session.data.test, session.data.task),
        samples=len(session.data.test),
    )
    return dataclasses.replace(model, info=model.info.replace(metrics=metrics))
