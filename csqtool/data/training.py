"""The batches that training goes through: of data sets in an order of ours, of loaders in their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Protocol

import torch

from csqtool.data.data_source import DataSource
from csqtool.data.datasets import Batch
from csqtool.data.reading import batches_of, fit, never_one, together
from csqtool.data.streams import Stream, is_finite
from csqtool.errors import DataError
from csqtool.randomness import epoch_order, hash_seed, seed_all
from csqtool.trees import chosen, mapped, samples


class TrainingBatches(Protocol):
    """Training data as the loop uses it: every batch is a function of (seed, stage, epoch, number) alone."""

    @property
    def count(self) -> int:
        """Batches of an epoch."""
        ...

    @property
    def samples(self) -> int:
        """Samples of the first batch."""
        ...

    def epoch(self, stage: str, epoch: int, *, first: int = 0) -> Iterator[Batch]:
        """Yield inputs and targets of an epoch's batches, from number `first` on."""
        ...

    def shares(
        self, stage: str, epoch: int, share: Callable[[int], slice], *, first: int = 0
    ) -> Iterator[tuple[Batch, int]]:
        """Yield a part of each batch of `epoch`, and how many samples the whole batch has.

        Args:
            stage: as of the method `epoch`.
            epoch: the same.
            share: which samples of a batch of so many are wanted.
            first: number of the first batch.
        """
        ...

    def in_order(self, max_samples: int, *, size: int) -> Iterator[Batch]:
        """Yield about `max_samples` samples once, augmented as in training; `size` a batch where that is not given."""
        ...


def training_batches(data: DataSource, *, batch_size: int, seed: int) -> TrainingBatches:
    """Return the training batches of `data`.

    Args:
        data: whose training set.
        batch_size: of data sets that are read by index; a loader has its own.
        seed: what order and augmentation follow from.
    """
    if isinstance(data.train, Stream):
        return StreamedBatches(data, data.train, seed)
    return IndexedBatches(data, batch_size, seed)


@dataclass(frozen=True)
class IndexedBatches:
    """Batches of a data set that is read by index, shuffled anew each epoch.

    A last batch of one sample is dropped: BatchNorm cannot train on it.
    """

    data: DataSource
    batch_size: int
    seed: int

    @property
    def count(self) -> int:
        """Batches of an epoch."""
        full, rest = divmod(len(self.data.train), self.batch_size)
        return full + (rest > 1 or full == 0)

    @property
    def samples(self) -> int:
        """Samples of the first batch."""
        return min(self.batch_size, len(self.data.train))

    def epoch(self, stage: str, epoch: int, *, first: int = 0) -> Iterator[Batch]:
        """Yield inputs and targets of an epoch's batches, from number `first` on."""
        for indices, seed in self._drawn(stage, epoch, first):
            yield self.data.training_batch(indices, seed)

    def shares(
        self, stage: str, epoch: int, share: Callable[[int], slice], *, first: int = 0
    ) -> Iterator[tuple[Batch, int]]:
        """Yield a part of each batch, see `DataSource.training_share`, and the number of samples of the whole."""
        for indices, seed in self._drawn(stage, epoch, first):
            yield self.data.training_share(indices, seed, share(len(indices))), len(indices)

    def _drawn(self, stage: str, epoch: int, first: int) -> Iterator[tuple[list[int], int]]:
        """Yield the samples of each batch, and the seed of their augmentation."""
        order = epoch_order(len(self.data.train), self.seed, stage, epoch)
        for number in range(first, self.count):
            seed = hash_seed(self.seed, stage, epoch, number)
            seed_all(seed)  # for data sets that draw from one of these
            yield order[number * self.batch_size : (number + 1) * self.batch_size].tolist(), seed

    def in_order(self, max_samples: int, *, size: int) -> Iterator[Batch]:
        """Yield the first `max_samples` samples in the data set's order, augmented, `size` a batch."""
        samples = min(len(self.data.train), max_samples)
        for start in range(0, samples, size):
            chosen = range(start, min(start + size, samples))
            yield self.data.training_batch(chosen, hash_seed(self.seed, "batch norm", start))


@dataclass(frozen=True)
class StreamedBatches:
    """Batches of a loader, as it gives them; an epoch is one pass, and `DataSource.augment` applies too.

    A batch of one sample after a larger one, such as what is left over at the end, gets the last sample of that one
    for company: BatchNorm cannot train on one sample.
    """

    data: DataSource
    stream: Stream
    seed: int

    @cached_property
    def count(self) -> int:
        """Batches of an epoch."""
        return self.stream.batches()

    @cached_property
    def samples(self) -> int:
        """Samples of the first batch."""
        return samples(next(batches_of(self.data.train))[0])

    def epoch(self, stage: str, epoch: int, *, first: int = 0) -> Iterator[Batch]:
        """Yield inputs and targets of an epoch's batches; those before number `first` are skipped.

        Raises:
            DataError: the loader gives fewer batches than it should, or inputs that are not finite.
        """
        found = 0
        batches = _with_company(self.stream.read(hash_seed(self.seed, stage, epoch), epoch=epoch))
        for number, batch in enumerate(islice(batches, self.count)):
            found = number + 1
            if number >= first:
                yield self._augmented(batch, hash_seed(self.seed, stage, epoch, number), number)
        if found < self.count:
            raise DataError(
                f"{self.stream.name} gave {found} batches in a pass, {self.count} were expected; "
                "each pass must start anew and give as many as its length says"
            )

    def shares(
        self, stage: str, epoch: int, share: Callable[[int], slice], *, first: int = 0
    ) -> Iterator[tuple[Batch, int]]:
        """Yield a part of each batch and the number of samples of the whole, all of which the loader has read."""
        for inputs, targets in self.epoch(stage, epoch, first=first):
            count = samples(inputs)
            mine = share(count)
            yield (chosen(inputs, mine, count), chosen(targets, mine, count)), count

    def in_order(self, max_samples: int, *, size: int) -> Iterator[Batch]:
        """Yield batches of one pass, augmented, until there are `max_samples` samples; `size` is the loader's."""
        seen = 0
        for number, batch in enumerate(never_one(self.stream.read(hash_seed(self.seed, "batch norm")))):
            yield self._augmented(batch, hash_seed(self.seed, "batch norm", number), number)
            seen += samples(batch[0])
            if seen >= max_samples:
                return

    def _augmented(self, batch: Batch, seed: int, number: int) -> Batch:
        inputs, targets = batch
        if not is_finite(inputs):
            raise DataError(f"{self.stream.name}: the inputs of batch {number + 1} are not finite")
        if self.data.augment is not None:
            inputs = self.data.augment(inputs, torch.Generator().manual_seed(seed))
        return inputs, targets


def _with_company(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Put the last sample of the batch before in front of a batch of one sample, if that batch had more."""
    last: Batch | None = None
    for inputs, targets in batches:
        batch: Batch = inputs, targets
        count = samples(inputs)
        if count == 1 and last is not None and fit(last, batch):
            batch = together(last, batch)
        end = slice(count - 1, count)
        last = None
        if count > 1:
            last = tuple(mapped(chosen(part, end, count), lambda t: t.clone()) for part in (inputs, targets))
        yield batch
