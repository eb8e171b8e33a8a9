"""What training and verification work on: a training set, a test set and the task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from csqtool.data.arrays import ArrayDataset
from csqtool.data.datasets import Batch, BatchDataset, Dataset, SelfAugmenting, ShareAugmenting, take
from csqtool.data.named import NamedDataset, Names, with_names
from csqtool.data.preprocessing import Preprocessing
from csqtool.data.streams import READING_SEED, Stream, is_finite
from csqtool.data.synthetic import Synthetic
from csqtool.errors import ConfigError
from csqtool.randomness import drawing_from, random_states
from csqtool.task import Task, as_task, task_by_name
from csqtool.trees import chosen

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
Part = Dataset | Stream


@dataclass(frozen=True)
class NotGiven:
    """Takes the place of a set that nobody gave because it is not needed; reading it says so."""

    part: str

    def __len__(self) -> int:  # noqa: PLE0303
        self._refuse()

    def __getitem__(self, index: int, /) -> Batch:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ConfigError(f"this needs {'training' if self.part == 'train' else 'test'} data; give {self.part}=…")


@dataclass(frozen=True)
class DataSource:
    """Training and test sets, the task, and the training set's augmentation.

    `augment(inputs, generator)` changes a batch of inputs; all its randomness comes from the generator.

    Attributes:
        name: what messages call the data.
        train, test: data sets, or `Stream` for loaders.
        source: the name that the data are loaded by, None for data that were handed over as objects.
    """

    name: str
    train: Part
    test: Part
    task: Task
    augment: Augmentation | None = None
    source: str | None = None

    def part_name(self, part: str) -> str:
        """Return what messages call `train` or `test`."""
        return part if self.name == OBJECTS else f"the {'training' if part == 'train' else 'test'} set of {self.name}"

    def with_task(self, task: str | Task | None) -> DataSource:
        """Return these data for the task that was asked for: an object takes the place of their own, a name names it.

        Raises:
            ConfigError: the name is another task's, or the object is no task.
        """
        if task is None:
            return self
        if not isinstance(task, str):
            return replace(self, task=as_task(task))
        if task_by_name(task).name != self.task.name:
            raise ConfigError(f"{self.source or self.name} is data for {self.task.name}, not for {task}")
        return self

    def for_model(self, model: nn.Module) -> DataSource:
        """Return these data as the model takes them: dicts are split by the names of its parameters.

        Raises:
            InputError: no data were given, and none can be made for this model.
        """
        names = Names.of(model)

        parts = (self.train, self.test)
        made = {one: one.made_for(model, self.task) for one in parts if isinstance(one, Synthetic)}  # equal ones once

        def part(name: str) -> Part:
            own = getattr(self, name)
            if isinstance(own, Synthetic):
                return made[own]
            if isinstance(own, Stream):
                return Stream(own.loader, own.name, names)
            return own if isinstance(own, NotGiven) else with_names(own, names, self.part_name(name))

        return replace(self, train=part("train"), test=part("test"))

    def problem(self) -> str | None:
        """Return why nothing can be trained or compared on these data, or None.

        Of a training loader that tells its length only the first batch is read: the others are looked at when they
        are trained on. Other loaders are read once, which counts their samples too.
        """
        for part, dataset in (("train", self.train), ("test", self.test)):
            if isinstance(dataset, NotGiven):
                continue
            empty, finite = _empty_and_finite(dataset, whole=part == "test")
            if empty:
                return f"{self.part_name(part)} is empty"
            if not finite:
                return f"{self.part_name(part)} holds inputs that are not finite"
        return None

    def training_batch(self, indices: Sequence[int], seed: int) -> Batch:
        """Return inputs and targets of a training batch, augmented: a function of indices and `seed` alone.

        The training set must be one that is read by index.
        """
        assert not isinstance(self.train, Stream)
        generator = torch.Generator().manual_seed(seed)
        if isinstance(self.train, SelfAugmenting):
            inputs, targets = self.train.augmented_batch(indices, generator)
        else:
            inputs, targets = take(self.train, indices)
        return (self.augment(inputs, generator) if self.augment else inputs), targets

    def training_share(self, indices: Sequence[int], seed: int, share: slice) -> Batch:
        """Return the samples `share` of the training batch that `training_batch` returns.

        No others are read where that gives the same samples: of sets that say so, and of those that are read sample by
        sample and draw nothing at random. What draws, or makes or augments a batch as a whole, needs all of it.
        """
        count = len(indices)
        if len(range(count)[share]) < count and self.augment is None:
            if isinstance(self.train, ShareAugmenting):
                return self.train.augmented_share(indices, torch.Generator().manual_seed(seed), share)
            by_sample = isinstance(self.train, NamedDataset) or not isinstance(
                self.train, BatchDataset | SelfAugmenting
            )
            if by_sample and not isinstance(self.train, Stream) and not self._reading_draws:
                return take(self.train, indices[share])
        inputs, targets = self.training_batch(indices, seed)
        return chosen(inputs, share, count), chosen(targets, share, count)

    @cached_property
    def _reading_draws(self) -> bool:
        """Whether reading the first training sample changes a random state."""
        assert not isinstance(self.train, Stream)
        with drawing_from(0):
            before = random_states()
            take(self.train, [0])
            return random_states() != before

    def facts(self) -> dict[str, Any]:
        """Return what a finalized model records of its data: the task, and the preprocessing where it is known."""
        preprocessing = getattr(self.test, "preprocessing", None)
        known = {"preprocessing": preprocessing.to_json()} if isinstance(preprocessing, Preprocessing) else {}
        return {"task": self.task.name, **known}


OBJECTS = "the given data"


def _empty_and_finite(dataset: Part, *, whole: bool) -> tuple[bool, bool]:
    """Return whether there are no samples, and whether the inputs are finite as far as that can be told cheaply."""
    if isinstance(dataset, ArrayDataset):
        return len(dataset) == 0, is_finite(dataset.inputs)
    if not isinstance(dataset, Stream):
        return len(dataset) == 0, True
    if whole or dataset.told_batches() is None:
        survey = dataset.survey()
        return survey.samples == 0, survey.finite
    first = next(dataset.read(READING_SEED), None)
    return first is None, first is None or is_finite(first[0])
