"""Rebuilds a finalized model's PyTorch network, the reference of every comparison, and loads its data."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from csqtool.data import DataSource, load_data
from csqtool.errors import DataError, ModelError
from csqtool.model_source import ModelSource
from csqtool.nn.finalized_net import finalized_net
from csqtool.nn.quantized_net import QuantizedNet
from csqtool.quantized_model import QuantizedModel
from csqtool.task import TASKS


def rebuilt_net(
    model: QuantizedModel, *, factory: str | nn.Module | None = None, near: Path | None = None
) -> QuantizedNet:
    """Return the finalized PyTorch network: the reference of every comparison.

    Args:
        model: the finalized model.
        factory: builds the module, instead of the one recorded in the model; or the module itself.
        near: the finalized file; its surroundings are searched for the factory's source.

    Raises:
        InputError: see `rebuilt_module`.
    """
    return finalized_net(rebuilt_module(model, factory=factory, near=near), model)


def rebuilt_module(
    model: QuantizedModel, *, factory: str | nn.Module | None = None, near: Path | None = None
) -> nn.Module:
    """Return a new module from the user's code, without the finalized values; a given module is copied.

    Args:
        model: the finalized model.
        factory: builds the module, instead of the one recorded in the model; or the module itself.
        near: the finalized file; its surroundings are searched for the factory's source.

    Raises:
        ModelError: no factory is given or recorded, or the module cannot be built or copied.
        InputError: the factory is missing.
    """
    recorded = model.info.model
    if factory is None and recorded is None:
        raise ModelError(f"{_named(near)} records no factory of its module; give --model FACTORY, or model= in Python")
    if isinstance(factory, nn.Module):
        return ModelSource.of(factory).build().cpu()
    name = factory or (recorded.factory if recorded else None)
    return ModelSource(name, recorded.args if recorded else {}, recorded=not factory).build(near=near)


def rebuilt_data(
    model: QuantizedModel, *, data: str | DataSource | None = None, near: Path | None = None
) -> DataSource:
    """Return the data that a finalized model is measured on.

    Args:
        model: the finalized model.
        data: a data source, or its name, instead of the recorded one.
        near: the finalized file; its surroundings are searched for the data.

    Raises:
        DataError: no data are given or recorded, or they cannot be read.
        InputError: the source is unknown.
    """
    if isinstance(data, DataSource):
        return data
    recorded = model.info.data
    name = data or (recorded.source if recorded else None)
    if name is None:
        raise DataError(f"{_named(near)} records no data; give --data DATA, or data= in Python")
    # A custom task is provided by the data's factory.
    task = recorded.task if recorded and recorded.task in TASKS else None
    return load_data(name, task=task, near=near, recorded=not data)


def _named(near: Path | None) -> str:
    return "the finalized model" if near is None else str(near)
