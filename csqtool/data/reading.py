"""The first samples of a data set or loader, in batches or at once: for evaluation, calibration and comparison."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import torch

from csqtool.data.data_source import Part
from csqtool.data.datasets import Batch, take
from csqtool.data.streams import READING_SEED, Stream
from csqtool.errors import DataError

EVALUATION_BATCH = 500


def batches_of(
    data: Part, *, max_samples: int | None = None, size: int = EVALUATION_BATCH, share: slice = slice(None)
) -> Iterator[Batch]:
    """Yield inputs [B, …] and targets [B, …] in order; the same ones each time.

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
    try:
        inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    except RuntimeError as error:
        raise DataError(f"{data.name}: batches do not fit together: {error}") from error
    return inputs, targets


def _cut(batches: Iterable[Batch], max_samples: int | None) -> Iterator[Batch]:
    """Yield batches up to `max_samples` samples."""
    left = max_samples
    for inputs, targets in batches:
        if left is None:
            yield inputs, targets
            continue
        yield inputs[:left], targets[:left]
        left -= len(inputs)
        if left <= 0:
            return


def never_one(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Join a batch of one sample to the next one: statistics of a batch need two."""
    waiting: Batch | None = None
    for inputs, targets in batches:
        batch = inputs, targets
        if waiting is not None:
            if waiting[0].shape[1:] == inputs.shape[1:] and waiting[1].shape[1:] == targets.shape[1:]:
                batch = torch.cat([waiting[0], inputs]), torch.cat([waiting[1], targets])
            else:
                yield waiting
        waiting = batch if len(batch[0]) == 1 else None
        if waiting is None:
            yield batch
    if waiting is not None:
        yield waiting
