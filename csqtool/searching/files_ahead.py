"""Whether the files that a search leads to can be written, asked before it trains anything."""

from __future__ import annotations

import dataclasses

import numpy as np
from torch import Tensor

from csqtool import csq
from csqtool.errors import InputError, ModelError
from csqtool.model_info import ModelInfo
from csqtool.quantized_model import LayerIntegers
from csqtool.searching.network import Network


def check_files_ahead(network: Network, info: ModelInfo) -> None:
    """Check that the finalized model of an untrained network can be written and packed.

    Args:
        network: the network, before a method is in place.
        info: what the finalized file will record.

    Raises:
        ModelError: a tensor has a name, a type or a shape that the files cannot hold, or there are too many.
    """
    for name, value in network.model.state_dict().items():
        if '"' in name:  # torch writes Python code with the names in quotes
            raise ModelError(f"{name}: torch.onnx.export cannot capture a model with quotes in a name; rename it")
        _check_dtype(name, value)
    # One zero that is seen as often as the shape wants: what matters here are names, shapes and numbers of tensors.
    stand_ins = {
        weight.name: LayerIntegers(np.broadcast_to(np.int8(0), tuple(weight.shape)), np.float32(1), "1")
        for weight in network.weights
    }
    try:
        model = network.quantized(stand_ins, info)
        aliases = {alias for weight in network.weights for alias in weight.aliases}  # will not be stored
        tensors = {name: tensor for name, tensor in model.tensors.items() if name not in aliases}
        csq.check_packable(dataclasses.replace(model, tensors=tensors))
    except InputError as error:
        raise ModelError(f"the model could be trained, but not written: {error}") from error


def _check_dtype(name: str, value: Tensor) -> None:
    try:
        value.flatten()[:0].cpu().numpy()
    except TypeError as error:
        raise ModelError(f"{name} is {value.dtype}, which files of a finalized model cannot hold") from error
