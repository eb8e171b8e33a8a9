"""The base of methods with latent weights and fixed bits."""

from __future__ import annotations

from typing import Any, ClassVar

from csqtool.nn.latent import LatentWeight
from csqtool.nn.weights import Weight
from csqtool.searching.method import BaseMethod


class FixedBits(BaseMethod[LatentWeight]):
    """Trains latent weights that are rounded to given planes; `kind` is the class of the latent weights."""

    kind: ClassVar[type[LatentWeight]]

    def make_source(self, weight: Weight, exponents: tuple[int, ...]) -> LatentWeight:
        """Return the latent weight."""
        return self.kind(weight.parameter, exponents, n_planes=self.config.planes)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return a group for the latent weights, with the weight decay of float weights."""
        latents = [latent.latent for latent in self.sources.values()]
        return [{"params": latents, "lr": self.config.learning_rate, "weight_decay": self.config.weight_decay}]
