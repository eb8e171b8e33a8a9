"""Loaders: batches that come in an order and of a size of the loader's own, one pass after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from csqtool.data.datasets import Batch, as_inputs, as_targets, reason
from csqtool.data.named import Names
from csqtool.errors import CsqtoolError, DataError
from csqtool.randomness import drawing_from, hash_seed
from csqtool.trees import mapped, samples, tensors


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
        loader: gives (inputs, targets), or dicts of both by name; arrays become tensors.
        name: what messages call it.
        names: those of the model's parameters, which split dicts.
    """

    def __init__(self, loader: Iterable[Any], name: str, names: Names | None = None) -> None:
        self.loader = loader
        self.name = name
        self.names = names
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
            batches = count = 0
            finite = True
            for inputs, _ in self.read(READING_SEED):
                batches += 1
                count += samples(inputs)
                finite = finite and is_finite(inputs)
            self._survey = Survey(batches, count, finite)
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
        if isinstance(item, Mapping) and self.names is not None:
            inputs, targets = self.names.split(item, where)
        elif isinstance(item, tuple | list) and len(item) == 2:
            inputs = as_inputs(item[0], f"{where}: inputs")
            targets = as_targets(item[1], f"{where}: targets")
        else:
            parts = f" of {len(item)}" if isinstance(item, list | tuple | dict) else ""
            raise DataError(f"{where} is {type(item).__name__}{parts}, not a pair (inputs, targets)")
        inputs, targets = (mapped(part, lambda tensor: tensor.cpu()) for part in (inputs, targets))
        shapes = [list(tensor.shape) for part in (inputs, targets) for tensor in tensors(part)]
        own = [list(tensor.shape) for tensor in tensors(inputs)]
        alike = isinstance(targets, Tensor)  # a structure of targets may hold anything
        if not own or not all(own) or len({s[0] if s else 0 for s in (shapes if alike else own)}) != 1 or not own[0][0]:
            raise DataError(
                f"{where}: inputs {_listed(own)} and targets {_listed(shapes[len(own) :])} do not have the same first "
                "axis, of at least one sample"
            )
        return inputs, targets


def _listed(shapes: list[list[int]]) -> str:
    return ", ".join(map(str, shapes)) or "without tensors"


READING_SEED = hash_seed("data that are read, not trained on")


def is_finite(inputs: Any) -> bool:
    """Return whether every value of all tensors is a finite number."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors(inputs))
