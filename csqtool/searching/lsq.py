"""LSQ: learned step size quantization (Esser et al., ICLR 2020)."""

from __future__ import annotations

from typing import Any, ClassVar

from csqtool.nn.latent import LatentWeight, LsqWeight
from csqtool.nn.weights import Weight
from csqtool.searching.fixed import FixedBits
from csqtool.searching.options import LsqOptions


class Lsq(FixedBits):
    """Trains latent weights together with one step size a layer."""

    description = "learned step size, fixed planes (LSQ, Esser et al. 2020)"
    kind: ClassVar[type[LsqWeight]] = LsqWeight
    Options = LsqOptions
    options: LsqOptions

    def make_source(self, weight: Weight, exponents: tuple[int, ...]) -> LatentWeight:
        """Return the latent weight with its step size."""
        planes, power_of_two = self.config.planes, self.options.power_of_two_scales
        return self.kind(weight.parameter, exponents, n_planes=planes, power_of_two=power_of_two)

    def _steps(self) -> list[LsqWeight]:
        return [latent for latent in self.sources.values() if isinstance(latent, LsqWeight)]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return groups for the latent weights and the step sizes."""
        steps = [latent.scale for latent in self._steps()]
        # As with activation quantizers: a step size is orders of magnitude smaller than a weight.
        rate = 0.1 * self.config.learning_rate
        return [*super().parameter_groups(), {"params": steps, "lr": rate, "weight_decay": 0.0}]

    def after_step(self) -> None:
        """Limit the change of the step sizes, and keep them above zero."""
        for latent in self._steps():
            latent.hold_step_size()
