"""Trials: a scheme on a copy of the float network, rounded, trained for a few steps, and judged by its loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from csqtool.evaluation import as_float
from csqtool.nn.latent import LARGEST_CHANGE, lsq_round
from csqtool.nn.levels import Levels
from csqtool.nn.modes import evaluating, keeping_modes
from csqtool.searching.allocation import SchemeAllocator
from csqtool.task import main_output
from csqtool.trees import Arguments, samples

MOMENTUM = 0.9


class Trials:
    """Measures schemes; each is measured once, and the network stays as it is.

    Args:
        allocator: whose network, data and samples are used.
        rate: learning rate of the training; it falls to zero along a cosine.
    """

    def __init__(self, allocator: SchemeAllocator, rate: float) -> None:
        self._given = allocator.given
        self._weights = allocator.weights
        self._batches = allocator.batches()
        self._rate = rate
        self._sizes: dict[tuple[str, int], Tensor] = {}
        self._measured: dict[tuple[tuple[int, ...], int], float] = {}

    def loss(self, planes: Mapping[str, int], steps: int = 0) -> float:
        """Return the mean loss on the allocator's samples, infinite if it is not finite.

        Args:
            planes: of each layer.
            steps: of training with learned step sizes, from the float weights.
        """
        key = tuple(planes[name] for name in self._weights), steps
        if key not in self._measured:
            found = self._trained(planes, steps)
            self._measured[key] = found if math.isfinite(found) else math.inf
        return self._measured[key]

    def _trained(self, planes: Mapping[str, int], steps: int) -> float:
        net = self._given.network.net
        model = self._given.network.model
        values = {
            name: nn.Parameter(parameter.detach().clone(), requires_grad=parameter.is_floating_point())
            for name, parameter in model.named_parameters()
        }
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        sizes = {name: nn.Parameter(self._first_size(name, k).clone()) for name, k in planes.items()}
        with keeping_modes(net):
            net.train()
            optimizer = torch.optim.SGD([*values.values(), *sizes.values()], lr=self._rate, momentum=MOMENTUM)
            annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
            for inputs, targets in self._given.training_batches("trials", steps):
                optimizer.zero_grad()
                torch.autograd.backward(self._loss_of(values, buffers, sizes, planes, inputs, targets))
                before = [size.detach().clone() for size in sizes.values()]
                optimizer.step()
                annealing.step()
                with torch.no_grad():
                    for size, was in zip(sizes.values(), before, strict=True):
                        size.clamp_(was * (1 - LARGEST_CHANGE), was * (1 + LARGEST_CHANGE))
        net.zero_grad(set_to_none=True)
        count = sum(samples(x) for x, _ in self._batches)
        with torch.no_grad(), evaluating(net):
            return sum(float(self._loss_of(values, buffers, sizes, planes, x, y)) * samples(x) / count
                       for x, y in self._batches)  # fmt: skip

    def _first_size(self, name: str, planes: int) -> Tensor:
        if (name, planes) not in self._sizes:
            self._sizes[name, planes] = Levels(range(planes)).fit_scale(self._weights[name])
        return self._sizes[name, planes]

    def _loss_of(
        self,
        values: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        sizes: Mapping[str, Tensor],
        planes: Mapping[str, int],
        inputs: Any,
        targets: Any,
    ) -> Tensor:
        rounded = {}
        for name, k in planes.items():
            latent, size, largest = values[name], sizes[name], 2**k - 1
            q = torch.round(latent.detach() / size.detach()).clamp(-largest, largest)
            rounded[name] = lsq_round(latent, size, q, largest)
        used = {f"model.{name}": value for name, value in {**values, **rounded, **buffers}.items()}
        given = Arguments.of(inputs)
        with torch.autocast(self._given.device.type, torch.bfloat16, enabled=self._given.config.amp == "bf16"):
            outputs = torch.func.functional_call(self._given.network.net, used, given.positional, given.keywords)
        task = self._given.data.task
        loss: Tensor = task.loss(as_float(main_output(outputs, task)), targets)
        return loss
