"""What the methods with latent weights and fixed bits share."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from csqtool.nn.latent import LatentWeight
from csqtool.nn.weights import Weight, attach
from csqtool.quantized_model import LayerIntegers
from csqtool.searching.budget import Budget, Scheme
from csqtool.searching.config import SearchConfig


class FixedBits:
    """Trains latent weights that are rounded to given planes; `kind` says how."""

    description: str
    searches = False
    softens = False
    kind: ClassVar[type[LatentWeight]]

    def __init__(
        self, weights: list[Weight], model: nn.Module, config: SearchConfig, budget: Budget, scheme: Scheme
    ) -> None:
        self.config = config
        self.latents: dict[str, LatentWeight] = {}
        for weight in weights:
            self.latents[weight.name] = self.kind(weight.parameter, scheme[weight.name], planes=config.planes)
            attach(weight, self.latents[weight.name])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return a group for the latent weights, which decay as float weights do."""
        latents = [latent.latent for latent in self.latents.values()]
        return [{"params": latents, "lr": self.config.learning_rate, "weight_decay": self.config.weight_decay}]

    def set_progress(self, share: float) -> None:
        """Do nothing: rounding is the same throughout."""

    def regularization(self) -> Tensor | None:
        """Return None: the task's loss is all."""
        return None

    def after_step(self) -> None:
        """Do nothing: there is no constraint."""

    def finish(self) -> None:
        """Do nothing: training ends complete."""

    def set_hard(self, hard: bool) -> None:
        """Do nothing: the weights are the rounded ones throughout."""

    def status(self) -> dict[str, float]:
        """Return nothing of its own."""
        return {}

    def scheme(self) -> dict[str, tuple[int, ...]]:
        """Return the planes each layer keeps."""
        return {name: latent.kept for name, latent in self.latents.items()}

    def integers(self) -> dict[str, LayerIntegers]:
        """Return each layer's q, Δ and mask."""
        return {name: latent.integers() for name, latent in self.latents.items()}
