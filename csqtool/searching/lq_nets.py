"""LQ-Nets: learned quantization levels (Zhang et al., ECCV 2018)."""

from __future__ import annotations

from typing import Any

from csqtool.nn.basis import BasisWeight
from csqtool.nn.weights import Weight
from csqtool.searching.declarations import SettingError
from csqtool.searching.method import BaseMethod, MethodContext
from csqtool.searching.options import LqNetsOptions


class LqNets(BaseMethod[BasisWeight]):
    """Trains latent weights on the 2^K sums ± v_1 ± … ± v_K, and the basis v by least squares."""

    description = "levels of a basis learned by least squares, fixed planes (LQ-Nets, Zhang et al. 2018)"
    Options = LqNetsOptions
    options: LqNetsOptions

    def __init__(self, context: MethodContext) -> None:
        assert isinstance(context.options, LqNetsOptions)
        most, bits = max(map(len, context.scheme.values())), context.options.level_bits
        if most >= bits:
            problem = f"must be above the {most} planes of a layer, whose levels these integers are; got {bits}"
            raise SettingError("level_bits", problem)
        super().__init__(context)

    def make_source(self, weight: Weight, exponents: tuple[int, ...]) -> BasisWeight:
        """Return the latent weight, with a basis value for each plane."""
        options = self.options
        return BasisWeight(weight.parameter, exponents, n_planes=self.config.planes, groups=options.basis,
                           level_bits=options.level_bits)  # fmt: skip

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return a group for the latent weights, with the weight decay of float weights; the basis has no gradient."""
        latents = [source.latent for source in self.sources.values()]
        return [{"params": latents, "lr": self.config.learning_rate, "weight_decay": self.config.weight_decay}]

    def after_step(self) -> None:
        """Take the least-squares step of every basis."""
        for source in self.sources.values():
            source.take_step()
