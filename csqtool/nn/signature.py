"""A model's signature: the names, shapes and types of its inputs, and the names of its outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from csqtool.errors import DataError, ModelError
from csqtool.model_info import INPUT_DTYPES, Input, ModelInfo
from csqtool.nn.modes import evaluating
from csqtool.trees import Arguments, call, children, mapped, parameters, samples

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in INPUT_DTYPES}


def zeros(described: Input, batch: int) -> Tensor:
    """Return a batch of zeros [batch, *shape] of an input's type."""
    return torch.zeros(batch, *described.shape, dtype=DTYPES[described.dtype])


def arguments(inputs: Sequence[Input], values: Mapping[str, Tensor]) -> Arguments:
    """Return the arguments by which the model takes its inputs.

    Args:
        inputs: their descriptions, in order.
        values: a tensor [B, …] for each, by name.
    """
    positional = tuple(values[i.name] for i in inputs if not i.is_keyword)
    return Arguments(positional, {i.name: values[i.name] for i in inputs if i.is_keyword})


def example(inputs: Sequence[Input], batch: int) -> Arguments:
    """Return zeros for all inputs."""
    return arguments(inputs, {i.name: zeros(i, batch) for i in inputs})


def inputs_of(given: Any, model: nn.Module | None = None) -> list[Input]:
    """Return descriptions of the inputs that a model is called with.

    One positional input is called ``input``, several ``input_0``, ``input_1`` and so on; keyword arguments have their
    own names. Inputs that are None are left out.

    Args:
        given: a batch's inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        model: the model; it decides the order of keyword arguments, and names positional arguments after None.

    Raises:
        ModelError: an input is no tensor, or has a type that files cannot carry.
    """
    found = []
    for name, keyword, sample in _places(given, model):
        dtype = str(sample.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise ModelError(f"{name} is {dtype}; a model's inputs can be {', '.join(DTYPES)}")
        if not sample.ndim:
            raise ModelError(f"{name} is a single number; the first axis of an input is that of the samples")
        found.append(Input.described(name, tuple(sample.shape[1:]), dtype, keyword=keyword))
    return found


def named_inputs(given: Any, inputs: Sequence[Input], model: nn.Module | None = None) -> dict[str, Tensor]:
    """Return the tensors of a batch's inputs by the names that a finalized model records.

    Args:
        given: a batch's inputs, as in `inputs_of`.
        inputs: the recorded descriptions.
        model: the model.

    Raises:
        DataError: an input is missing, or the batch has others.
        ModelError: an input is no tensor.
    """
    found = {name: sample for name, _, sample in _places(given, model)}
    wanted = [i.name for i in inputs]
    if found.keys() != set(wanted):
        raise DataError(f"the samples have the inputs {', '.join(found)}; the model records {', '.join(wanted)}")
    return {name: found[name] for name in wanted}


def _places(given: Any, model: nn.Module | None) -> Iterator[tuple[str, bool, Tensor]]:
    """Yield name, whether it is a keyword, and tensor of each input that is not None."""
    arguments = Arguments.of(given, model)
    one = len(arguments.positional) == 1 and not arguments.keywords
    names = parameters(model)[0] if model is not None else []
    after_none = False
    for i, value in enumerate(arguments.positional):
        if value is None:
            after_none = True
        elif after_none and i >= len(names):
            raise ModelError(f"argument {i} comes after one that is None and has no name: give a dict of inputs")
        else:
            name = names[i] if after_none else "input" if one else f"input_{i}"
            yield name, after_none, _tensor(value, name)
    for name, value in arguments.keywords.items():
        if value is not None:
            yield name, True, _tensor(value, name)


def _tensor(value: Any, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise ModelError(f"{name} is {type(value).__name__}; each input of a model must be one tensor")
    return value


def recorded_inputs(info: ModelInfo) -> tuple[Input, ...]:
    """Return the inputs that a finalized model records.

    Raises:
        ModelError: it records none.
    """
    if info.inputs is None:
        raise ModelError("the finalized model does not record its inputs' shapes, which its graph needs")
    return info.inputs


def named_outputs(output: Any, only: Sequence[str] = ()) -> dict[str, Tensor]:
    """Return a model's output tensors by name.

    One tensor is ``output``; those of a dict, a dataclass or a named tuple have its keys, those of another tuple or
    list are ``output_0``, ``output_1`` and so on. Parts of parts follow after a point: ``features.0``. None is no
    output.

    Args:
        output: what the model returned.
        only: names of the outputs to return; what else there is may then be anything. Empty returns all.

    Raises:
        ModelError: there is no tensor, something else than a tensor, or no output of a name in `only`.
    """
    parts = dict(_parts(output))
    found = {name: value for name, value in parts.items() if isinstance(value, Tensor)}
    others = {name: value for name, value in parts.items() if name not in found}
    if only:
        if missing := [name for name in only if name not in found]:
            raise ModelError(f"the model has no output {missing[0]!r}; its outputs are {', '.join(found) or 'none'}")
        return {name: found[name] for name in only}
    if others and found:
        name, value = next(iter(others.items()))
        raise ModelError(
            f"the output {name} is {type(value).__name__}, which files cannot carry; choose the outputs to keep: "
            f"{' '.join(f'--keep-output {name}' for name in found)}"
        )
    if not found:
        raise ModelError(f"the model returns {type(output).__name__}; it must be a tensor, or a structure of tensors")
    return found


def _parts(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a model's output that are not None, with their names."""
    if tree is None:
        return
    parts = children(tree)
    if parts is None:
        yield name or "output", tree
        return
    given = [(key, value) for key, value in parts if value is not None]
    if not name and _is_plain_sequence(tree):
        given = [(f"output_{i}", value) for i, (_, value) in enumerate(given)]
    for key, value in given:
        yield from _parts(value, f"{name}.{key}" if name else key)


def _is_plain_sequence(tree: Any) -> bool:
    return isinstance(tree, list | tuple) and not hasattr(tree, "_fields")


def as_returned(like: Any, values: Mapping[str, Tensor]) -> Any:
    """Return outputs in the structure that the model returns: the inverse of `named_outputs`.

    Args:
        like: what the model returned for some samples.
        values: tensors by name; an output that is not among them becomes None.
    """
    names = iter([name for name, value in _parts(like) if isinstance(value, Tensor)])
    return mapped(like, lambda _: values.get(next(names)))


@torch.no_grad()
def batch_outputs(model: nn.Module, inputs: Any, only: Sequence[str] = ()) -> list[str]:
    """Return the names of the outputs that files of a model have.

    Args:
        model: the user's module, which is run once in evaluation mode.
        inputs: a batch's inputs.
        only: as in `named_outputs`.

    Raises:
        ModelError: the outputs cannot be named, or one has not one value or row for each sample.
    """
    with evaluating(model):
        found = named_outputs(call(model, inputs), only)
    count = samples(inputs)
    for name, value in found.items():
        if not value.ndim or len(value) != count:
            raise ModelError(
                f"the output {name} has shape {list(value.shape)} for {count} samples; the first axis of an output "
                f"must be that of the samples: choose the outputs to keep with --keep-output"
            )
    return list(found)


@torch.no_grad()
def output_names(module: nn.Module, inputs: Sequence[Input], only: Sequence[str] = ()) -> list[str]:
    """Run `module` once on zeros and return the names of its outputs.

    Args:
        module: the user's module.
        inputs: descriptions of its inputs.
        only: as in `named_outputs`.

    Raises:
        ModelError: the module fails, or its outputs cannot be named.
    """
    try:
        output = example(inputs, 2).call(module)
    except Exception as error:
        shapes = ", ".join(str([2, *i.shape]) for i in inputs)
        raise ModelError(f"the model failed on inputs of shape {shapes}: {type(error).__name__}: {error}") from error
    return list(named_outputs(output, only))
