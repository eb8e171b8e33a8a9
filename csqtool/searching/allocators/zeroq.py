"""ZeroQ: sensitivities on synthetic inputs that meet BatchNorm's statistics, without data (Cai et al., CVPR 2020)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from csqtool.data import batches_of
from csqtool.data.synthetic import batch_norms, meeting_statistics
from csqtool.errors import ConfigError
from csqtool.evaluation import as_float
from csqtool.nn.modes import evaluating
from csqtool.searching.allocation import BaseAllocator, Harms
from csqtool.searching.budget import uniform
from csqtool.searching.options import Options, ZeroqOptions
from csqtool.searching.scheme import round_to
from csqtool.task import main_output


class ZeroQ(BaseAllocator):
    """Harm is the divergence of the class probabilities with one layer rounded, on synthetic inputs."""

    description = (
        "divergence of the outputs on synthetic inputs that meet BatchNorm's statistics (ZeroQ, Cai et al. 2020)"
    )
    data: ClassVar[str] = "none"
    Options: ClassVar[type[Options]] = ZeroqOptions
    harm: ClassVar[str] = "Kullback–Leibler divergence of the class probabilities from the float ones, nats"

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
        norms = batch_norms(model, "zeroq")
        sample, _ = next(batches_of(given.data.train, max_samples=1))  # of which only the shape is used
        if not isinstance(sample, Tensor) or not sample.is_floating_point():
            raise ConfigError("zeroq makes inputs of one tensor of numbers; the model takes something else")
        shape = (options.synthetic_samples, *sample.shape[1:])
        start = torch.randn(shape, generator=self.generator).to(given.device)

        def told(number: int, distance: float) -> None:
            given.progress.step("synthetic", number, options.synthetic_steps, {"distance": distance})

        with evaluating(model):
            return meeting_statistics(model, norms, start, options.synthetic_steps, told)

    @torch.no_grad()
    def _probabilities(self, inputs: Tensor) -> Tensor:
        with evaluating(self.given.network.model):
            outputs = main_output(as_float(self.given.network.model(inputs)), self.given.data.task)
        return log_softmax(outputs, -1)
