"""A model's signature: the names, shapes and types of its inputs, and the names of its outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from csqtool.errors import ModelError
from csqtool.model_info import INPUT_DTYPES, Input, ModelInfo

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in INPUT_DTYPES}


def zeros(described: Input, batch: int) -> Tensor:
    """Return a batch of zeros [batch, *shape] of an input's type."""
    return torch.zeros(batch, *described.shape, dtype=DTYPES[described.dtype])


def inputs_of(samples: Sequence[Tensor]) -> list[Input]:
    """Return the inputs that a model was called with, in order: ``input``, or ``input_0``, ``input_1`` and so on.

    Raises:
        ModelError: an input has a type that files cannot carry.
    """
    names = ["input"] if len(samples) == 1 else [f"input_{i}" for i in range(len(samples))]
    found = []
    for name, sample in zip(names, samples, strict=True):
        dtype = str(sample.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise ModelError(f"{name} is {dtype}; a model's inputs can be {', '.join(DTYPES)}")
        found.append(Input(name, tuple(sample.shape[1:]), dtype))
    return found


def recorded_inputs(info: ModelInfo) -> tuple[Input, ...]:
    """Return the inputs that a finalized model records.

    Raises:
        ModelError: it records none.
    """
    if info.inputs is None:
        raise ModelError("the finalized model does not record its inputs' shapes, which its graph needs")
    return info.inputs


def named_outputs(output: Any) -> dict[str, Tensor]:
    """Return a model's output tensors by name: ``output``, a dict's keys, or ``output_0``, ``output_1`` and so on.

    Raises:
        ModelError: an output is neither a tensor nor a flat dict, tuple or list of tensors.
    """
    if isinstance(output, Tensor):
        return {"output": output}
    if isinstance(output, Mapping):
        named = {str(key): value for key, value in output.items() if value is not None}
    elif isinstance(output, tuple | list):
        named = {f"output_{i}": value for i, value in enumerate(v for v in output if v is not None)}
    else:
        named = {}
    if not named or not all(isinstance(value, Tensor) for value in named.values()):
        raise ModelError(f"the model returns {type(output).__name__}; it must be a tensor, or a dict or tuple of them")
    return named


@torch.no_grad()
def output_names(module: nn.Module, inputs: Sequence[Input]) -> list[str]:
    """Run `module` once on zeros and return the names of its outputs.

    Raises:
        ModelError: the module fails, or its outputs cannot be named.
    """
    try:
        output = module(*(zeros(i, 2) for i in inputs))
    except Exception as error:
        shapes = ", ".join(str([2, *i.shape]) for i in inputs)
        raise ModelError(f"the model failed on inputs of shape {shapes}: {type(error).__name__}: {error}") from error
    return list(named_outputs(output))
