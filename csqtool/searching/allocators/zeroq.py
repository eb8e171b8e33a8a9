"""ZeroQ: sensitivities on synthetic inputs that meet BatchNorm's statistics, without data (Cai et al., CVPR 2020)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax
from torch.nn.modules.batchnorm import _BatchNorm

from csqtool.data import batches_of
from csqtool.errors import ConfigError
from csqtool.evaluation import as_float
from csqtool.nn.modes import evaluating
from csqtool.searching.allocation import BaseAllocator, Harms
from csqtool.searching.budget import uniform
from csqtool.searching.options import Options, ZeroqOptions
from csqtool.searching.scheme import round_to
from csqtool.task import main_output

RATE = 0.5  # of Adam, as in the published code; divided by ten after PATIENCE steps without a lower distance
PATIENCE = 100


class ZeroQ(BaseAllocator):
    """Harm is the divergence of the class probabilities with one layer rounded, on synthetic inputs."""

    description = (
        "divergence of the outputs on synthetic inputs that meet BatchNorm's statistics (ZeroQ, Cai et al. 2020)"
    )
    data: ClassVar[str] = "none"
    Options: ClassVar[type[Options]] = ZeroqOptions

    def harms(self) -> Harms:
        """Return the mean KL(float ‖ layer i at k planes) on the synthetic inputs."""
        task = self.given.data.task
        if not task.labels:
            raise ConfigError(f"zeroq compares class probabilities, and the task {task.name} has none: choose another")
        inputs = self.synthetic()
        wanted = self._probabilities(inputs)
        found: dict[str, dict[int, float]] = {}
        for number, (name, weight) in enumerate(self.weights.items(), 1):
            before = weight.data
            found[name] = {}
            try:
                for k in self.choices(name):
                    weight.data = round_to(before, uniform(k))
                    rounded = self._probabilities(inputs)
                    found[name][k] = float(kl_div(rounded, wanted, reduction="batchmean", log_target=True))
            finally:
                weight.data = before
            self.given.progress.step("divergences", number, len(self.weights), {})
        return found

    def synthetic(self) -> Tensor:
        """Return inputs whose statistics at each BatchNorm are its own, of the shape of the data's samples.

        Raises:
            ConfigError: there is no BatchNorm, or the model takes something else than one tensor of numbers.
        """
        given, options = self.given, self.given.options
        assert isinstance(options, ZeroqOptions)
        model = given.network.model
        norms = [one for one in model.modules() if isinstance(one, _BatchNorm) and one.running_mean is not None]
        if not norms:
            raise ConfigError("zeroq needs BatchNorm layers, whose statistics its inputs meet; the model has none")
        sample, _ = next(batches_of(given.data.train, max_samples=1))  # of which only the shape is used
        if not isinstance(sample, Tensor) or not sample.is_floating_point():
            raise ConfigError("zeroq makes inputs of one tensor of numbers; the model takes something else")
        shape = (options.synthetic_samples, *sample.shape[1:])
        inputs = torch.randn(shape, generator=self.generator).to(given.device).requires_grad_(True)
        optimizer = torch.optim.Adam([inputs], lr=RATE)
        falling = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=PATIENCE, min_lr=1e-4)
        best, least = inputs.detach().clone(), float("inf")
        with evaluating(model), seen(norms) as at:
            for number in range(1, options.synthetic_steps + 1):
                at.clear()
                model(inputs)
                distance = statistics_distance(at) + _distance(inputs, torch.zeros(()), torch.ones(()))
                if float(distance.detach()) < least:
                    best, least = inputs.detach().clone(), float(distance.detach())
                (inputs.grad,) = torch.autograd.grad(distance, [inputs])
                optimizer.step()
                falling.step(float(distance.detach()))
                given.progress.step("synthetic", number, options.synthetic_steps, {"distance": least})
        return best

    @torch.no_grad()
    def _probabilities(self, inputs: Tensor) -> Tensor:
        with evaluating(self.given.network.model):
            outputs = main_output(as_float(self.given.network.model(inputs)), self.given.data.task)
        return log_softmax(outputs, -1)


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
