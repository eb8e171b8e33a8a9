"""Losses with one layer rounded: all measured, or, of large networks, one a layer and the others estimated from it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from csqtool.data import DataSource, batches_of
from csqtool.data.datasets import Batch
from csqtool.evaluation import LOSS_BATCH, batch_loss, heeding, measuring, training_loss
from csqtool.nn.kernels import Kernel
from csqtool.nn.replay import DivergedError, Replay
from csqtool.progress import Progress
from csqtool.searching.budget import Budget, uniform
from csqtool.searching.measured_losses import KeptLosses, MeasuredLoss, measured_anew
from csqtool.searching.network import Network
from csqtool.searching.scheme import LossProbe, round_to, rounded
from csqtool.trees import samples as samples_in

MOST_MULTIPLICATIONS = 5e13  # of all measurements; a ResNet-50's at 224 pixels, one by one, take eleven times as many
PROBES_A_LAYER = 5  # that are measured while a scheme settles, about
OTHER_PASSES = 4  # beside one a layer: of the loss, and of gradients for the estimates
LEAST_SAMPLES = 32
GRADIENT_BATCH = 16
GRADIENT_SAMPLES = 128
LEAST_RATIO = 0.1  # of the median; a layer whose measured loss does not rise at all is not harmless


def make_probe(
    network: Network,
    data: DataSource,
    device: torch.device,
    budget: Budget,
    *,
    samples: int,
    channels_last: bool,
    heed: Callable[[], None] | None,
    progress: Progress,
    kept: Path | None = None,
) -> LossProbe:
    """Return what measures the loss on training samples with one plain weight rounded.

    Args:
        network: with plain weights.
        data: training data and task.
        device: that the network is on.
        budget: which says about how many planes layers are going to keep.
        samples: the first so many are read; fewer of a large network.
        channels_last: the memory layout of images.
        heed: called before each batch; it may raise.
        progress: is told of every layer of a large network.
        kept: a file that measured losses are kept in, and found again.
    """
    large = settling_cost(network, samples) > MOST_MULTIPLICATIONS
    if large:
        samples = affordable(network, samples, passes=len(network.weights) / 2 + OTHER_PASSES)
    loss = partial(training_loss, network.net, data, device, samples=samples, channels_last=channels_last, heed=heed)
    known = KeptLosses(kept, network.net) if kept is not None else None

    def measured(what: str, measure: Callable[[], float]) -> float:
        return measure() if known is None else known(f"{what} on {samples} samples", measure)

    if not large:
        return LossProbe(network.parameters, loss, measured)

    def loss_on(batch: Batch) -> Tensor:
        return batch_loss(network.net, data.task, batch, device, channels_last=channels_last)

    def batches(size: int, most: int) -> Iterator[Batch]:
        return heeding(batches_of(data.train, max_samples=min(samples, most), size=size), heed)

    planes = max(1, round(budget.target_bits) - 1)
    progress.line(f"measuring each of {len(network.weights)} layers on {samples} samples …")
    return ScreenedProbe(network.parameters, loss, network.net, loss_on, batches, uniform(planes), progress,
                         measured=measured)  # fmt: skip


def settling_cost(network: Network, samples: int) -> float:
    """Return the multiplications of settling a scheme with all losses measured."""
    return sum(network.multiplications.values()) * samples * len(network.weights) * PROBES_A_LAYER


def affordable(network: Network, samples: int, *, passes: float) -> int:
    """Return with how many samples so many passes can be measured, at most `samples`: fewer of a large network."""
    fewer = int(MOST_MULTIPLICATIONS / passes / sum(network.multiplications.values()))
    return min(samples, max(fewer, LEAST_SAMPLES))


class ScreenedProbe(LossProbe):
    """Losses with one layer rounded, measured at one number of planes a layer and estimated at others.

    Rounding a layer raises the loss by about ½ Σ F·δ², with the squared gradients F of single samples (the diagonal of
    the empirical Fisher information, which stands for that of the Hessian) and the changes δ of the weights. That says
    how the loss falls from one number of planes to the next; how high it is in each layer is measured. A measurement
    computes only what comes after the layer, see `csqtool.nn.replay.Replay`.

    Args:
        parameters: the weights, by name.
        loss: returns the network's loss with its present weights.
        net: the network.
        loss_on: returns its loss on a batch, a scalar with a graph.
        batches: returns training batches of a size, with at most so many samples in all.
        planes: each layer is measured at these.
        progress: is told of every layer.
        score_on: returns the scalar whose squared gradients on a batch are taken, with a graph; None takes the loss.
        running_statistics: of BatchNorm, see `csqtool.evaluation.measuring`.
        measured: measures a loss, or knows it.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        loss: Callable[[], float],
        net: nn.Module,
        loss_on: Callable[[Batch], Tensor],
        batches: Callable[[int, int], Iterator[Batch]],
        planes: tuple[int, ...],
        progress: Progress,
        *,
        score_on: Callable[[Batch], Tensor] | None = None,
        running_statistics: bool = False,
        measured: MeasuredLoss = measured_anew,
    ) -> None:
        super().__init__(parameters, loss, measured)
        self._score_on = score_on or loss_on
        self._running_statistics = running_statistics
        self._net = net
        self._loss_on = loss_on
        self._batches = batches
        self._planes = planes
        self._progress = progress
        self._fisher: dict[str, Tensor] = {}
        self._ratios: dict[str, float] = {}
        self._base = 0.0

    @torch.no_grad()
    def __call__(self, name: str, exponents: tuple[int, ...]) -> float:
        """Return the loss; the weights stay as they are."""
        if not self._ratios:
            self._measure()
        return self._base + self._ratios[name] * self._estimate(name, exponents)

    @torch.no_grad()
    def _estimate(self, name: str, exponents: tuple[int, ...]) -> float:
        weight = self._parameters[name]
        return 0.5 * float((self._fisher[name] * (round_to(weight, exponents) - weight).square()).sum())

    def _measure(self) -> None:
        Kernel.choose("no", element_steps=0)  # compiled kernels cannot be watched; the next stage chooses anew
        self._fisher = self._squared_gradients()
        rises = self._rises()
        found = {name: rise / estimate for name, rise in rises.items()
                 if (estimate := self._estimate(name, self._planes)) > 0}  # fmt: skip
        least = LEAST_RATIO * max(median(found.values()), 0.0) if found else 0.0
        self._ratios = {name: max(found.get(name, 0.0), least) for name in self._parameters}

    def _squared_gradients(self) -> dict[str, Tensor]:
        """Return the mean squared gradient of a sample, like each weight.

        The squared gradient of a batch's mean loss, times its samples, has that mean where the mean gradient is zero.
        """
        parameters = list(self._parameters.values())
        total, count = [torch.zeros_like(p) for p in parameters], 0
        wanting = [p.requires_grad for p in parameters]
        try:
            for p in parameters:
                p.requires_grad_(True)
            with torch.enable_grad():
                for batch, size in self._usable(GRADIENT_BATCH, GRADIENT_SAMPLES):
                    found = torch.autograd.grad(self._score_on(batch), parameters, allow_unused=True)
                    for so_far, gradient in zip(total, found, strict=True):
                        if gradient is not None:
                            so_far.add_(size * gradient.square())
                    count += 1
        finally:
            for p, wanted in zip(parameters, wanting, strict=True):
                p.requires_grad_(wanted)
        return {name: one / max(count, 1) for name, one in zip(self._parameters, total, strict=True)}

    def _rises(self) -> dict[str, float]:
        """Return by how much the loss rises with each layer rounded, and note the loss without rounding."""
        rises = dict.fromkeys(self._parameters, 0.0)
        base, count = 0.0, 0
        with torch.no_grad():
            for batch, size in self._usable(LOSS_BATCH, sys.maxsize):
                losses = Losses(partial(self._loss_on, batch), self._parameters)
                for number, name in enumerate(losses.order, 1):
                    loss = self._measured(
                        f"{name} at {self._planes}, samples from {count}", partial(self._with_one, losses, name)
                    )
                    rises[name] += (loss - losses.value) * size
                    self._progress.step("layers", number, len(losses.order), {"loss": losses.value})
                base += losses.value * size
                count += size
        self._base = base / max(count, 1)
        return {name: rise / max(count, 1) for name, rise in rises.items()}

    def _with_one(self, losses: Losses, name: str) -> float:
        losses.begin(name)
        with rounded(self._parameters[name], self._planes):
            return losses()

    def _usable(self, size: int, most: int) -> Iterator[tuple[Batch, int]]:
        """Yield batches with their numbers of samples, in the modes for measuring."""
        with measuring(self._net, running_statistics=self._running_statistics) as needs_two:
            for batch in self._batches(size, most):
                if (found := samples_in(batch[0])) > 1 or not needs_two:
                    yield batch, found


class Losses:
    """The loss on a batch with one parameter changed at a time, best in the order in which the network uses them.

    Attributes:
        value: the loss with nothing changed.
        order: the parameters that the network uses.
    """

    def __init__(self, loss: Callable[[], Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
        self._loss = loss
        self.value = self.whole()  # what a network computes once and keeps is there when its calls are recorded
        replay = Replay(self.whole, parameters)
        self.order = replay.order
        self._replay = replay if replay.value == self.value else None

    def whole(self) -> float:
        """Return the loss with the parameters' present values, with nothing recalled."""
        return float(self._loss())

    def begin(self, name: str) -> None:
        """Prepare for another value of a parameter, while it has its own."""
        if self._replay is not None:
            try:
                self._replay.begin(name)
            except DivergedError:  # the network does not make the same calls each time
                self._replay = None

    def __call__(self) -> float:
        """Return the loss with the parameters' present values."""
        if self._replay is not None:
            try:
                return self._replay()
            except DivergedError:
                self._replay = None
        return self.whole()
