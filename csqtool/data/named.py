"""Data whose samples or batches are one dict: the model's parameters take what they name, the task the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from csqtool.data.datasets import Batch, BatchDataset, Dataset, as_inputs, as_targets, collated
from csqtool.errors import DataError
from csqtool.randomness import drawing_from, hash_seed
from csqtool.task import TARGETS
from csqtool.trees import parameters


@dataclass(frozen=True)
class Names:
    """The names by which a model takes its inputs.

    Attributes:
        parameters: those of its forward pass, in order.
        any: whether it takes any other name, too.
    """

    parameters: tuple[str, ...]
    any: bool

    @classmethod
    def of(cls, model: nn.Module) -> Names:
        """Return the names of a model's parameters."""
        names, takes_any = parameters(model)
        return cls(tuple(names), takes_any)

    def split(self, item: Mapping[str, Any], where: str) -> Batch:
        """Return inputs by name and the rest, the targets. What is called labels or targets is never an input.

        Raises:
            DataError: the model takes none of the names, or nothing is left for the task.
        """
        given = {name: value for name, value in item.items() if value is not None}
        taken = [n for n in self.parameters if n in given and n not in TARGETS]
        taken += [n for n in given if self.any and n not in taken and n not in TARGETS]
        rest = {name: value for name, value in given.items() if name not in taken}
        if not taken or not rest:
            problem = "none of them is an input" if not taken else f"the model takes all, and no {TARGETS[0]} are left"
            raise DataError(
                f"{where} has the names {', '.join(given)}: {problem}; the model takes {', '.join(self.parameters)}"
            )
        return (
            as_inputs({name: given[name] for name in taken}, f"{where}: the input"),
            as_targets(rest, f"{where}: the targets"),
        )


@dataclass(frozen=True)
class NamedDataset:
    """A map-style data set whose samples are dicts."""

    dataset: Dataset
    names: Names
    where: str

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the inputs by name, and the rest of each dict as targets."""
        return self.names.split(collated(self.dataset, indices, "dicts"), f"{self.where}: a sample")


def with_names(dataset: Dataset, names: Names, where: str) -> Dataset:
    """Return a data set whose dicts are split, if its samples are dicts; others unchanged."""
    if isinstance(dataset, BatchDataset) or not len(dataset):
        return dataset
    with drawing_from(hash_seed("the first sample")):
        try:
            first = dataset[0]
        except Exception:  # reading the first batch says what is wrong
            return dataset
    return NamedDataset(dataset, names, where) if isinstance(first, Mapping) else dataset
