"""The first samples of a data set or loader, in batches or at once: for evaluation, calibration and comparison."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from csqtool.data.data_source import Part
from csqtool.data.datasets import Batch, take
from csqtool.data.streams import READING_SEED, Stream
from csqtool.errors import DataError
from csqtool.trees import chosen, joined, samples, shapes

EVALUATION_BATCH = 500


def batches_of(
    data: Part, *, max_samples: int | None = None, size: int = EVALUATION_BATCH, share: slice = slice(None)
) -> Iterator[Batch]:
    """Yield inputs and targets in order; the same ones each time.

    Args:
        data: a data set, or a loader.
        max_samples: stop after this many samples, None reads all.
        size: samples of a batch; a loader keeps its own batches, but never one sample alone where more follow.
        share: which of the batches to yield.

    Raises:
        DataError: samples make no batch.
    """
    if isinstance(data, Stream):
        yield from islice(_cut(never_one(data.read(READING_SEED)), max_samples), share.start, share.stop, share.step)
        return
    count = len(data) if max_samples is None else min(max_samples, len(data))
    for start in range(0, count, size)[share]:
        yield take(data, range(start, min(start + size, count)))


def first_samples(data: Part, max_samples: int | None = None) -> Batch | None:
    """Return the first samples as one batch, None where there are none.

    Args:
        data: a data set, or a loader.
        max_samples: at most this many, None all.

    Raises:
        DataError: samples do not fit into one batch.
    """
    if not isinstance(data, Stream):
        count = len(data) if max_samples is None else min(max_samples, len(data))
        return take(data, range(count)) if count else None
    batches = list(batches_of(data, max_samples=max_samples))
    if not batches:
        return None
    counts = [samples(inputs) for inputs, _ in batches]
    try:
        inputs, targets = (joined(parts, counts) for parts in zip(*batches, strict=True))
    except (RuntimeError, ValueError) as error:
        raise DataError(f"{data.name}: batches do not fit together: {error}") from error
    return inputs, targets


def _cut(batches: Iterable[Batch], max_samples: int | None) -> Iterator[Batch]:
    """Yield batches up to `max_samples` samples."""
    left = max_samples
    for inputs, targets in batches:
        if left is None:
            yield inputs, targets
            continue
        count = samples(inputs)
        yield chosen(inputs, slice(left), count), chosen(targets, slice(left), count)
        left -= count
        if left <= 0:
            return


def never_one(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Join a batch of one sample to the next one: statistics of a batch need two."""
    waiting: Batch | None = None
    for inputs, targets in batches:
        batch: Batch = inputs, targets
        if waiting is not None:
            if fit(waiting, batch):
                batch = together(waiting, batch)
            else:
                yield waiting
        waiting = batch if samples(batch[0]) == 1 else None
        if waiting is None:
            yield batch
    if waiting is not None:
        yield waiting


def fit(one: Batch, other: Batch) -> bool:
    """Return whether two batches can be joined: their tensors have the same names and shapes, but for the samples."""
    return bool(shapes(one) == shapes(other))


def together(one: Batch, other: Batch) -> Batch:
    """Return two batches as one."""
    counts = [samples(one[0]), samples(other[0])]
    return joined([one[0], other[0]], counts), joined([one[1], other[1]], counts)
