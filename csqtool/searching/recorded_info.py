"""The description of a search that its finalized model contains."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from csqtool.data import DataSource
from csqtool.model_info import DataInfo, Input, MethodInfo, Metrics, ModelFactory, ModelInfo
from csqtool.searching.config import SearchConfig


def recorded_info(config: SearchConfig, data: DataSource, inputs: Sequence[Input]) -> ModelInfo:
    """Return the description; it names no factory or source if the module or data were given as objects."""
    return ModelInfo.of(
        model=None if config.model is None else ModelFactory(config.model, dict(config.model_args)),
        data=msgspec.convert({"source": data.source, **data.facts()}, DataInfo),
        inputs=inputs,
        outputs=config.keep_output or None,
        method=MethodInfo(
            name=config.method,
            target_bits=config.target_bits,
            target_size=config.target_size,
            act_bits=config.act_bits,
            epochs=config.epochs,
            finetune_epochs=config.finetune_epochs,
            seed=config.seed,
            target_bops=config.target_bops or msgspec.UNSET,
        ),
    )


def with_stand_in_metrics(info: ModelInfo, data: DataSource) -> ModelInfo:
    """Return the description with placeholder metrics, as long as measured ones, to compute the file's size."""
    return info.replace(metrics=Metrics(data.task.metric_name, math.pi / 4, math.e / 3, len(data.test)))
