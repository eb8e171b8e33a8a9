"""Trees of tensors: what models take and return, and what batches consist of.

A tree is a tensor, None, or a tuple, list, mapping or dataclass of trees; anything else in one is a leaf that stays as
it is. In a batch of N samples, tensors have N samples along their first axis, and a list of N other things has one for
each sample.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Index = slice | Tensor | Sequence[int]


def children(tree: Any) -> list[tuple[str, Any]] | None:
    """Return the parts of a tree with their names: fields, keys, or positions from 0; None for a leaf."""
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return [(f.name, getattr(tree, f.name)) for f in dataclasses.fields(tree)]
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return list(zip(tree._fields, tree, strict=True))
    if isinstance(tree, Mapping):
        return [(str(key), value) for key, value in tree.items()]
    return [(str(i), value) for i, value in enumerate(tree)] if isinstance(tree, list | tuple) else None


def _with(tree: Any, parts: list[Any]) -> Any:
    """Return a tree of the same kind with other parts."""
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        names = [f.name for f in dataclasses.fields(tree)]
        return dataclasses.replace(tree, **dict(zip(names, parts, strict=True)))
    if isinstance(tree, Mapping):
        items = dict(zip(tree, parts, strict=True))
        return items if type(tree) is dict else _as_kind(type(tree), items)
    return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)


def _as_kind(kind: Any, items: dict[Any, Any]) -> Any:
    try:
        return kind(items)
    except TypeError:  # its constructor takes something else, as that of a defaultdict does
        return items


def mapped(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    """Return a tree with what `change` returns in place of each tensor."""
    if isinstance(tree, Tensor):
        return change(tree)
    parts = children(tree)
    return tree if parts is None else _with(tree, [mapped(part, change) for _, part in parts])


def tensors(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors of a tree, in order."""
    if isinstance(tree, Tensor):
        yield tree
    else:
        for _, part in children(tree) or ():
            yield from tensors(part)


def samples(inputs: Any) -> int:
    """Return the number of samples of a batch's inputs: the length of the first tensor.

    Raises:
        ValueError: there is no tensor with an axis.
    """
    first = next(tensors(inputs), None)
    if first is None or not first.ndim:
        raise ValueError("no tensor with an axis of samples")
    return len(first)


def chosen(tree: Any, index: Index, count: int) -> Any:
    """Return some samples of a batch.

    Args:
        tree: inputs, outputs or targets of `count` samples.
        index: a slice, or positions.
        count: how many samples there are. Tensors of another length belong to no single sample and stay whole.
    """
    if isinstance(tree, Tensor):
        positions = index if isinstance(index, slice | Tensor) else torch.as_tensor(index, dtype=torch.int64)
        return tree[positions] if tree.ndim and len(tree) == count else tree
    if _is_list_of_samples(tree, count):
        return tree[index] if isinstance(index, slice) else [tree[int(i)] for i in index]
    parts = children(tree)
    return tree if parts is None else _with(tree, [chosen(part, index, count) for _, part in parts])


def joined(trees: Sequence[Any], counts: Sequence[int]) -> Any:
    """Return batches as one.

    Args:
        trees: inputs, outputs or targets of each batch, all of one structure.
        counts: the number of samples of each.

    Raises:
        RuntimeError: tensors do not fit together.
        ValueError: structures differ.
    """
    first = trees[0]
    if isinstance(first, Tensor):
        return torch.cat(list(trees))
    if all(_is_list_of_samples(tree, count) for tree, count in zip(trees, counts, strict=True)):
        return [item for tree in trees for item in tree]
    parts = [children(tree) for tree in trees]
    if parts[0] is None:
        return first
    columns = zip(*([value for _, value in part or ()] for part in parts), strict=True)
    return _with(first, [joined(column, counts) for column in columns])


def _is_list_of_samples(tree: Any, count: int) -> bool:
    return (
        isinstance(tree, list | tuple)
        and len(tree) == count
        and not any(t.ndim and len(t) == count for t in tree if isinstance(t, Tensor))
    )


def shapes(tree: Any) -> Any:
    """Return a tree with the shapes of its tensors, without the axis of samples, as tuples; for comparison."""
    if isinstance(tree, Tensor):
        return tuple(tree.shape[1:])
    parts = children(tree)
    return None if parts is None else {name: shapes(part) for name, part in parts}


@dataclass(frozen=True)
class Arguments:
    """The arguments of a model's forward pass.

    Attributes:
        positional: those without a name, in order.
        keywords: the others, by name.
    """

    positional: tuple[Any, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, inputs: Any, model: nn.Module | None = None) -> Arguments:
        """Return the arguments for a batch's inputs.

        Args:
            inputs: a tensor; a tuple or list of positional arguments; or a dict of keyword arguments.
            model: the model, which decides the order of keyword arguments; None keeps that of the dict.
        """
        if isinstance(inputs, Arguments):
            return cls(inputs.positional, ordered(inputs.keywords, model))
        if isinstance(inputs, Mapping):
            return cls((), ordered(inputs, model))
        return cls(tuple(inputs)) if isinstance(inputs, list | tuple) else cls((inputs,))

    def call(self, model: Callable[..., Any]) -> Any:
        """Return what the model returns for these arguments."""
        return model(*self.positional, **self.keywords)


def call(model: nn.Module, inputs: Any) -> Any:
    """Run a model on a batch's inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments."""
    return Arguments.of(inputs).call(model)


def ordered(keywords: Mapping[str, Any], model: nn.Module | None) -> dict[str, Any]:
    """Return keyword arguments in the order of the model's parameters; others follow in their own."""
    names = [] if model is None else [name for name in parameters(model)[0] if name in keywords]
    return {name: keywords[name] for name in [*names, *(name for name in keywords if name not in names)]}


def parameters(model: nn.Module) -> tuple[list[str], bool]:
    """Return the names of the parameters of a model's forward pass, and whether it takes any other keywords, too."""
    kinds = inspect.Parameter
    found = inspect.signature(model.forward).parameters.values()
    names = [p.name for p in found if p.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD, kinds.POSITIONAL_ONLY)]
    return names, any(p.kind is kinds.VAR_KEYWORD for p in found)
