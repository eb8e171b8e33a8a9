"""Traces of the loss's Hessian while a method trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from csqtool.data import DataSource, batches_of
from csqtool.evaluation import as_float, laid_out
from csqtool.nn.hessian import traces
from csqtool.nn.modes import evaluating
from csqtool.task import main_output
from csqtool.trees import call, mapped, samples

BATCH = 128


class Curvature:
    """Estimates traces of a model's Hessian on training samples; the same in all processes.

    Args:
        model: without activation quantizers, whose rounding has no second derivative.
        data: training data and task.
        device: that the model is on when it is asked.
        agreed: returns what the first of several processes found.
    """

    def __init__(
        self, model: nn.Module, data: DataSource, device: torch.device, agreed: Callable[[list[float]], list[float]]
    ) -> None:
        self._model = model
        self._data = data
        self._device = device
        self._agreed = agreed

    def __call__(self, parameters: Sequence[Tensor], *, count: int, draws: int, seed: int) -> list[float]:
        """Return the trace of each parameter's block, by Hutchinson's method with so many draws.

        Args:
            parameters: of the blocks.
            count: the first so many training samples are read.
            draws: random vectors, at least two.
            seed: of their signs.
        """
        generator = torch.Generator().manual_seed(seed)
        batches = [
            (laid_out(x, self._device, channels_last=False), mapped(y, lambda t: t.to(self._device)))
            for x, y in batches_of(self._data.train, max_samples=count, size=BATCH)
        ]
        with torch.enable_grad(), evaluating(self._model):
            found = traces(parameters, lambda: self._losses(batches), generator, draws=draws, tolerance=0.0)
        return self._agreed(list(found.values))

    def _losses(self, batches: Sequence[tuple[Any, Any]]) -> Iterator[tuple[Tensor, float]]:
        total = sum(samples(x) for x, _ in batches)
        for x, y in batches:
            with sdpa_kernel(SDPBackend.MATH):
                outputs = main_output(as_float(call(self._model, x)), self._data.task)
            yield self._data.task.loss(outputs, y), samples(x) / total
