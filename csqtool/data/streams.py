"""Loaders: batches that come in an order and of a size of the loader's own, one pass after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csqtool.data.datasets import Batch, as_tensor, reason, single, whole_as_int64
from csqtool.errors import CsqtoolError, DataError
from csqtool.randomness import drawing_from, hash_seed


@dataclass(frozen=True)
class Survey:
    """What one pass over a loader found.

    Attributes:
        batches: how many batches it gave.
        samples: how many samples are in them.
        finite: whether all inputs are finite.
    """

    batches: int
    samples: int
    finite: bool


class Stream:
    """A `DataLoader`, or any other object that gives its batches anew each time it is iterated.

    Batch size, order, workers and collation are the loader's own. Before each pass the random states of torch,
    numpy and Python, and torch generators that the loader or its samplers hold, are set from a seed: a loader that
    shuffles or augments gives the same batches for the same seed. The random states outside stay as they are. What
    the loader draws from elsewhere, such as numpy generators of a data set's own or workers that persist from pass
    to pass, is not repeated.

    Args:
        loader: gives (inputs, targets) with the same first axis; arrays become tensors.
        name: what messages call it.
    """

    def __init__(self, loader: Iterable[Any], name: str) -> None:
        self.loader = loader
        self.name = name
        self._survey: Survey | None = None

    def read(self, seed: int, *, epoch: int = 0) -> Iterator[Batch]:
        """Yield the batches of one pass, on the CPU.

        Args:
            seed: decides everything that the loader draws from the known random states.
            epoch: told to samplers that want to know it (``set_epoch``).

        Raises:
            DataError: the loader raised, or gave something else than a batch.
        """
        for sampler in self._holders():
            if isinstance(generator := getattr(sampler, "generator", None), torch.Generator):
                generator.manual_seed(seed)
            if callable(set_epoch := getattr(sampler, "set_epoch", None)):
                set_epoch(epoch)
        batches: Iterator[Any] | None = None
        number = 0
        while True:
            # A seed a batch, so that it does not matter what the user of the batches before drew.
            with drawing_from(hash_seed(seed, number) if number else seed):
                try:
                    batches = iter(self.loader) if batches is None else batches
                    item = next(batches)
                except StopIteration:
                    return
                except CsqtoolError:
                    raise
                except Exception as error:  # the loader is the user's code
                    raise DataError(f"{self.name}: reading batch {number + 1} raised {reason(error)}") from error
            yield self._as_batch(item, number)
            number += 1

    def told_batches(self) -> int | None:
        """Return the number of batches that the loader says a pass has, None where it has no length."""
        try:
            return len(self.loader)  # type: ignore[arg-type]
        except (TypeError, NotImplementedError):  # a DataLoader has one only if its data set has
            return None

    def batches(self) -> int:
        """Return the number of batches of a pass: the loader's length, or counted where it has none."""
        told = self.told_batches()
        return self.survey().batches if told is None else told

    def __len__(self) -> int:
        """Return the number of samples; they are counted in one pass, once."""
        return self.survey().samples

    def survey(self) -> Survey:
        """Return what one whole pass finds; it is made once."""
        if self._survey is None:
            batches = samples = 0
            finite = True
            for inputs, _ in self.read(READING_SEED):
                batches += 1
                samples += len(inputs)
                finite = finite and is_finite(inputs)
            self._survey = Survey(batches, samples, finite)
        return self._survey

    def _holders(self) -> Iterator[Any]:
        """Yield the loader and what it draws its order from."""
        yield self.loader
        for name in ("dataset", "sampler", "batch_sampler"):
            if (held := getattr(self.loader, name, None)) is not None:
                yield held
        if (inner := getattr(getattr(self.loader, "batch_sampler", None), "sampler", None)) is not None:
            yield inner

    def _as_batch(self, item: Any, number: int) -> Batch:
        where = f"{self.name}: batch {number + 1}"
        if not isinstance(item, tuple | list) or len(item) != 2:
            parts = f" of {len(item)}" if isinstance(item, list | tuple | dict) else ""
            raise DataError(f"{where} is {type(item).__name__}{parts}, not a pair (inputs, targets)")
        given, wanted = (as_tensor(values) if isinstance(values, np.ndarray) else values for values in item)
        inputs = single(given, f"{where}: inputs").cpu()
        targets = whole_as_int64(single(wanted, f"{where}: targets")).cpu()
        if not inputs.ndim or not targets.ndim or len(inputs) != len(targets) or not len(inputs):
            raise DataError(
                f"{where}: inputs {list(inputs.shape)} and targets {list(targets.shape)} are not two tensors with "
                "the same first axis, of at least one sample"
            )
        return inputs, targets


READING_SEED = hash_seed("data that are read, not trained on")


def is_finite(inputs: Tensor) -> bool:
    """Return whether every value is a finite number."""
    return bool(torch.isfinite(inputs).all())
