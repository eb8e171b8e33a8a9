"""Inputs made from a network's BatchNorm statistics, for users who have no data (ZeroQ, Cai et al., CVPR 2020)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from csqtool.data.arrays import ArrayDataset
from csqtool.data.datasets import Batch
from csqtool.errors import ConfigError, ModelError
from csqtool.nn.modes import evaluating
from csqtool.task import Task, as_task, main_output

RATE = 0.5  # of Adam, as in the published code; divided by ten after PATIENCE steps without a lower distance
PATIENCE = 100
BATCH = 64  # inputs whose statistics are compared together
LARGEST = 1 << 24  # values of an input
EXAMPLE = "none:3x32x32"


@dataclass(frozen=True)
class Synthetic:
    """A data set that is made as soon as the network is known, see `made_for`.

    Attributes:
        shape: of an input.
        samples: how many inputs are made.
        steps: of Adam, for each batch of 64.
    """

    shape: tuple[int, ...]
    samples: int = 128
    steps: int = 200

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int, /) -> Batch:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ConfigError("inputs without data are made from a network's BatchNorm, and there is no network here")

    def limited(self, samples: int) -> Synthetic:
        """Return the same data set with at most so many samples."""
        return replace(self, samples=min(samples, self.samples))

    def made_for(self, model: nn.Module, task: Task) -> ArrayDataset:
        """Return inputs of a network, labelled with its own classes; equal weights give equal inputs.

        Raises:
            ConfigError: the model has no BatchNorm, or only untrained ones.
            ModelError: it does not take such inputs, or returns something else than class scores [N, C].
        """
        norms = batch_norms(model, "none")
        if all(not one.running_mean.any() and bool((one.running_var == 1).all()) for one in norms):  # type: ignore[union-attr]
            raise ConfigError("BatchNorm's statistics are those of an untrained network, from which no inputs can be "
                              "made; give trained weights")  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        device = next(model.parameters()).device
        inputs, labels = [], []
        with evaluating(model):
            for first in range(0, self.samples, BATCH):
                count = min(BATCH, self.samples - first)
                start = torch.randn((count, *self.shape), generator=generator).to(device)
                try:
                    inputs.append(meeting_statistics(model, norms, start, self.steps))
                    with torch.no_grad():
                        outputs = main_output(model(inputs[-1]), task)
                except Exception as error:
                    shape = "x".join(map(str, self.shape))
                    raise ModelError(f"the model failed on an input of shape {shape}: {error}") from error
                if not isinstance(outputs, Tensor) or outputs.ndim != 2:
                    raise ModelError("without data, inputs are labelled by class scores [N, C]; the model returns none")
                labels.append(outputs.argmax(1))
        return ArrayDataset(torch.cat(inputs).cpu(), torch.cat(labels).cpu())


def parse_shape(spec: str) -> tuple[int, ...]:
    """Return the shape of an input from ``none:3x32x32``.

    Raises:
        ConfigError: there is none.
    """
    text = spec.partition(":")[2]
    if not re.fullmatch(r"[1-9]\d{0,7}(x[1-9]\d{0,7}){0,4}", text):
        raise ConfigError(f"{spec!r}: none needs the shape of an input without the batch, such as {EXAMPLE}")
    shape = tuple(map(int, text.split("x")))
    if torch.Size(shape).numel() > LARGEST:
        raise ConfigError(f"{spec!r}: an input of {torch.Size(shape).numel():,} values is larger than {LARGEST:,}")
    return shape


def checked_task(task: str | Task | None) -> Task:
    """Return the task, which must be classification: the network's classes take the place of labels.

    Raises:
        ConfigError: it is another one.
    """
    found = as_task(task)
    if found.name != "classification":
        raise ConfigError(f"without data a network can label inputs with classes only, not for {found.name}")
    return found


def batch_norms(model: nn.Module, what: str) -> list[_BatchNorm]:
    """Return the BatchNorm layers that have statistics.

    Raises:
        ConfigError: there are none; `what` needs them.
    """
    norms = [one for one in model.modules() if isinstance(one, _BatchNorm) and one.running_mean is not None]
    if not norms:
        raise ConfigError(f"{what} needs BatchNorm layers, whose statistics its inputs meet; the model has none")
    return norms


def meeting_statistics(
    model: nn.Module,
    norms: Sequence[_BatchNorm],
    start: Tensor,
    steps: int,
    told: Callable[[int, float], None] = lambda _number, _distance: None,
) -> Tensor:
    """Return inputs whose statistics at each BatchNorm come near to its own; the input's own are drawn to 0 and 1.

    Args:
        model: in evaluation mode; its parameters get no gradients.
        norms: its BatchNorm layers.
        start: inputs to begin with [N, …].
        steps: of Adam.
        told: called with the number of every step and the least distance so far.
    """
    inputs = start.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([inputs], lr=RATE)
    falling = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=PATIENCE, min_lr=1e-4)
    best, least = inputs.detach().clone(), float("inf")
    with torch.enable_grad(), seen(norms) as at:
        for number in range(1, steps + 1):
            at.clear()
            model(inputs)
            distance = statistics_distance(at) + _distance(inputs, torch.zeros(()), torch.ones(()))
            if float(distance.detach()) < least:
                best, least = inputs.detach().clone(), float(distance.detach())
            (inputs.grad,) = torch.autograd.grad(distance, [inputs])
            optimizer.step()
            falling.step(float(distance.detach()))
            told(number, least)
    return best


@contextmanager
def seen(norms: Sequence[_BatchNorm]) -> Iterator[list[tuple[_BatchNorm, Tensor]]]:
    """Yield a list to which every call of a BatchNorm adds itself and its input, until the block ends."""
    found: list[tuple[_BatchNorm, Tensor]] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, _BatchNorm)
        found.append((module, inputs[0]))

    handles = [norm.register_forward_pre_hook(keep) for norm in norms]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def statistics_distance(at: Sequence[tuple[_BatchNorm, Tensor]]) -> Tensor:
    """Return Σ ‖μ̂ − μ‖² + ‖σ̂ − σ‖² over BatchNorms and their inputs, each a mean over channels; a scalar.

    Shares of the channel's variance are counted, so that no layer outweighs the others by its scale.
    """
    distances = []
    for norm, inputs in at:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        distances.append(_distance(inputs, norm.running_mean, (norm.running_var + norm.eps).sqrt()))
    return torch.stack(distances).sum()


def _distance(inputs: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    # (N, C, …) → statistics of each channel over all samples and places
    axes = [axis for axis in range(inputs.ndim) if axis != 1]
    found_mean, found_deviation = inputs.mean(axes), inputs.var(axes, correction=0).add(1e-12).sqrt()
    mean, deviation = mean.to(inputs), deviation.to(inputs)
    return (((found_mean - mean) / deviation).square() + ((found_deviation - deviation) / deviation).square()).mean()
