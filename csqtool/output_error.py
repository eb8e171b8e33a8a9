"""How far a network's outputs are from its float self's, measured again only from the layer on that changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from csqtool.data.datasets import Batch
from csqtool.evaluation import as_float
from csqtool.nn.modes import evaluating
from csqtool.progress import Progress
from csqtool.reconstruction import difference, variance
from csqtool.searching.budget import Budget, Scheme, uniform
from csqtool.searching.network import Network
from csqtool.searching.probes import Losses, ScreenedProbe
from csqtool.searching.scheme import LossProbe, rounded
from csqtool.trees import call, chosen, samples, tensors


class OutputError:
    """The squared error of a network's outputs, relative to their variance, with its parameters' present values.

    The variance is that of the float network's outputs. After `begin` a call computes only what comes after the first
    use of that parameter, see `csqtool.nn.replay.Replay`.

    Args:
        model: the network; every module keeps its mode.
        teacher: its float self.
        inputs: batches of inputs.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, teacher: nn.Module, inputs: Sequence[Any]) -> None:
        self._model = model
        with evaluating(teacher):
            self.batches: list[Batch] = [(x, as_float(call(teacher, x))) for x in inputs]
        self._losses = [Losses(partial(self.of, batch), dict(model.named_parameters())) for batch in self.batches]

    @torch.no_grad()
    def of(self, batch: Batch) -> Tensor:
        """Return the error on a batch of inputs and wanted outputs, a scalar."""
        inputs, wanted = batch
        with evaluating(self._model):
            return difference(as_float(call(self._model, inputs)), wanted)

    def begin(self, name: str) -> None:
        """Prepare for other values of a parameter and of what is used after it, while it has its own."""
        for losses in self._losses:
            losses.begin(name)

    @torch.no_grad()
    def __call__(self) -> float:
        """Return the error, a sum over the batches."""
        return sum(losses() for losses in self._losses)

    @torch.no_grad()
    def whole(self) -> float:
        """Return the error with everything computed."""
        return sum(losses.whole() for losses in self._losses)

    @property
    def order(self) -> list[str]:
        """The parameters in the order in which the network uses them first."""
        return self._losses[0].order


class SweptProbe(LossProbe):
    """Errors with one layer rounded, measured for all layers and numbers of planes in one pass from layer to layer.

    Args:
        parameters: the weights, by name.
        error: measures the network.
        most: the largest planes of each layer that are measured at once; others are when they are asked for.
        progress: is told of every layer.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], error: OutputError, most: Scheme, progress: Progress
    ) -> None:
        super().__init__(parameters, error.whole)
        self._error = error
        self._most = most
        self._progress = progress
        self._found: dict[tuple[str, tuple[int, ...]], float] = {}

    def __call__(self, name: str, exponents: tuple[int, ...]) -> float:
        """Return the error; the weight is restored."""
        if not self._found:
            self._sweep()
        if (name, exponents) not in self._found:
            self._measure(name, exponents)
        return self._found[name, exponents]

    def _sweep(self) -> None:
        places = {name: position for position, name in enumerate(self._error.order)}
        ordered = sorted(self._most, key=lambda name: places.get(name, -1))
        for number, name in enumerate(ordered, 1):
            for planes in range(1, len(self._most[name]) + 1):
                self._measure(name, uniform(planes))
            self._progress.step("layers", number, len(ordered), {})

    def _measure(self, name: str, exponents: tuple[int, ...]) -> None:
        self._error.begin(name)
        with rounded(self._parameters[name], exponents):
            self._found[name, exponents] = self._error()


def make_output_probe(
    network: Network, error: OutputError, most: Scheme, budget: Budget, progress: Progress, *, estimated: bool
) -> LossProbe:
    """Return what gives the error with one layer rounded: measured, or of a large network mostly estimated.

    Args:
        network: with plain weights in float.
        error: measures it.
        most: the largest planes of each layer that are going to be asked for.
        budget: which says about how many planes layers are going to keep.
        progress: is told of every layer.
        estimated: measure one number of planes a layer, and estimate the others.
    """
    if not estimated:
        return SweptProbe(network.parameters, error, most, progress)
    generator = torch.Generator().manual_seed(0)

    def score_on(batch: Batch) -> Tensor:
        """Return a product with random numbers, whose squared gradient has the mean Σ (∂output/∂weight)²."""
        inputs, wanted = batch
        with evaluating(network.model):
            found = as_float(call(network.model, inputs))
        products = [
            (torch.randn(other.shape, generator=generator).to(other) * one).sum()
            / (other.numel() * variance(other)).sqrt()
            for one, other in zip(tensors(found), tensors(wanted), strict=True)
            if other.is_floating_point()
        ]
        return torch.stack(products).sum()

    def pieces(size: int, most: int) -> Iterator[Batch]:
        left = most
        for inputs, wanted in error.batches:
            count = samples(inputs)
            for start in range(0, min(count, left), size):
                part = slice(start, start + size)
                yield chosen(inputs, part, count), chosen(wanted, part, count)
            left -= count

    planes = uniform(max(1, round(budget.target_bits) - 1))
    return ScreenedProbe(network.parameters, error.whole, network.model, error.of, pieces, planes, progress,
                         score_on=score_on, running_statistics=True)  # fmt: skip
