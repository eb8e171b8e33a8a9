"""LIMPQ: step sizes that training learns at each number of planes tell how sensitive a layer is (Tang et al., 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from csqtool.errors import TrainingError
from csqtool.evaluation import as_float
from csqtool.nn.latent import LARGEST_CHANGE, lsq_round
from csqtool.nn.modes import keeping_modes
from csqtool.searching.allocation import BaseAllocator, Findings, Harms, Planes
from csqtool.searching.options import LimpqOptions, Options
from csqtool.task import main_output
from csqtool.trees import Arguments

MOMENTUM = 0.9
LARGEST_GRADIENT = 1.0  # the norm of all gradients together, as in the published code
MIXED = 0  # the key of the BatchNorm parameters that train with a random mix of planes


class Limpq(BaseAllocator):
    """Harm is the learned step size of a layer at each number of planes.

    A batch goes through the network once at every uniform number of planes and once at a random mix; latent weights are
    common to all, step sizes belong to a layer and its planes, BatchNorm's factors to the planes. The gradients add up
    to one step. The network itself stays as it is.
    """

    description = "learned step sizes of all widths, trained at once, as importances (LIMPQ, Tang et al. 2022)"
    data: ClassVar[str] = "labelled"
    Options: ClassVar[type[Options]] = LimpqOptions
    harm: ClassVar[str] = "step size that training has learned"

    def scheme(self) -> Planes:
        """Return the scheme of least summed harm, and tell of step sizes as they were learned."""
        found = super().scheme()
        self.findings = Findings(self.harm, self._learned)
        return found

    def harms(self) -> Harms:
        """Return s_i(k), the step size of layer i at k planes.

        A layer's step size should rise as planes are dropped. Where it does not, training has not understood the layer:
        such a number of planes is taken only if the budget leaves nothing else, as others are worth less together.
        """
        self._learned = found = self.step_sizes()
        forbidden = 1.0 + sum(max(sizes.values()) for sizes in found.values())
        return {
            name: {k: size if size >= sizes.get(k + 1, 0.0) else forbidden for k, size in sizes.items()}
            for name, sizes in found.items()
        }

    def step_sizes(self) -> dict[str, dict[int, float]]:
        """Return the trained step size of each layer at each number of planes that it may keep.

        Raises:
            TrainingError: the loss is not finite.
        """
        options = self.given.options
        assert isinstance(options, LimpqOptions)
        training = _Training(self, options.importance_rate, options.importance_steps)
        with keeping_modes(self.given.network.net):
            self.given.network.net.train()
            batches = self.given.training_batches("importances", options.importance_steps)
            for number, (inputs, targets) in enumerate(batches, 1):
                loss = training.step(inputs, targets)
                if not math.isfinite(loss):
                    raise TrainingError("the loss of limpq's importances is not finite: lower --importance-rate")
                self.given.progress.step("importances", number, options.importance_steps, {"loss": loss})
        self.given.network.net.zero_grad(set_to_none=True)  # activation quantizers are not trained here
        return {name: {k: float(size.detach()) for k, size in sizes.items()} for name, sizes in training.sizes.items()}


class _Training:
    """What is trained: latent weights, step sizes, BatchNorm's factors for each number of planes, and the rest."""

    def __init__(self, allocator: Limpq, rate: float, steps: int) -> None:
        self.given = allocator.given
        self.choices = {name: allocator.choices(name) for name in allocator.weights}
        self.widths = range(min(one.start for one in self.choices.values()),
                            max(one.stop for one in self.choices.values()))  # fmt: skip
        self.generator = allocator.generator
        model = self.given.network.model
        norms = {
            f"{path}.{name}" if path else name
            for path, module in model.named_modules()
            if isinstance(module, _BatchNorm)
            for name, _ in module.named_parameters(recurse=False)
        }
        self.shared, self.norms = {}, {}
        for name, parameter in model.named_parameters():
            if name in norms:
                self.norms[name] = {k: _trained(parameter) for k in (MIXED, *self.widths)}
            elif parameter.is_floating_point():
                self.shared[name] = _trained(parameter)
        self.sizes = {
            name: {k: nn.Parameter(first_size(parameter.detach(), k)) for k in self.choices[name]}
            for name, parameter in allocator.weights.items()
        }
        # Statistics of batches normalize in training; the running ones go where nobody reads them.
        self.buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self.parameters = [*self.shared.values(), *(p for one in self.norms.values() for p in one.values()),
                           *(p for one in self.sizes.values() for p in one.values())]  # fmt: skip
        self.optimizer = torch.optim.SGD(self.parameters, lr=rate, momentum=MOMENTUM)
        self.annealing = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)

    def step(self, inputs: Any, targets: Any) -> float:
        """Take a step on a batch and return its mean loss."""
        self.optimizer.zero_grad()
        uniform = [{name: min(max(k, one.start), one.stop - 1) for name, one in self.choices.items()}
                   for k in self.widths]  # fmt: skip
        mixed = {name: int(torch.randint(one.start, one.stop, (1,), generator=self.generator))
                 for name, one in self.choices.items()}  # fmt: skip
        total = 0.0
        for key, planes in [*zip(self.widths, uniform, strict=True), (MIXED, mixed)]:
            loss = self._loss(planes, key, inputs, targets)
            torch.autograd.backward(loss)
            total += float(loss.detach())
        nn.utils.clip_grad_norm_([p for p in self.parameters if p.grad is not None], LARGEST_GRADIENT)
        before = {id(size): size.detach().clone() for one in self.sizes.values() for size in one.values()}
        self.optimizer.step()
        self.annealing.step()
        with torch.no_grad():
            for one in self.sizes.values():
                for size in one.values():
                    was = before[id(size)]
                    size.clamp_(was * (1 - LARGEST_CHANGE), was * (1 + LARGEST_CHANGE))
        return total / (len(uniform) + 1)

    def _loss(self, planes: Mapping[str, int], key: int, inputs: Any, targets: Any) -> Tensor:
        task, net, config = self.given.data.task, self.given.network.net, self.given.config
        values: dict[str, Tensor] = {**self.shared, **{name: one[key] for name, one in self.norms.items()}}
        for name, k in planes.items():
            latent, size, largest = self.shared[name], self.sizes[name][k], 2**k - 1
            q = torch.round(latent.detach() / size.detach()).clamp(-largest, largest)
            values[name] = lsq_round(latent, size, q, largest)
        used = {f"model.{name}": value for name, value in {**values, **self.buffers}.items()}
        given = Arguments.of(inputs)
        with torch.autocast(self.given.device.type, torch.bfloat16, enabled=config.amp == "bf16"):
            outputs = torch.func.functional_call(net, used, given.positional, given.keywords)
        loss: Tensor = task.loss(as_float(main_output(outputs, task)), targets)
        return loss


def _trained(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().clone())


def first_size(weight: Tensor, planes: int) -> Tensor:
    """Return the step size that training begins with, max|μ ± 3σ| / 2^k for k planes; a scalar."""
    mean, deviation = weight.mean(), weight.std(correction=0)
    return torch.maximum((mean - 3 * deviation).abs(), (mean + 3 * deviation).abs()).clamp(min=1e-8) / 2.0**planes
