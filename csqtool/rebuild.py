"""From a finalized model back to a PyTorch network: the reference of every comparison."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from csqtool.factories import build_model
from csqtool.nn.finalized_net import finalized_net
from csqtool.nn.quantized_net import QuantizedNet
from csqtool.quantized_model import QuantizedModel


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
