"""MSQ: memory-efficient bit sparsification, by the least significant bits of latent weights (Han et al., ICCV 2025)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from csqtool.nn.sparsified import SparsifiedWeight
from csqtool.nn.weights import Weight
from csqtool.randomness import hash_seed
from csqtool.searching.budget import uniform
from csqtool.searching.method import BaseMethod, MethodContext, groups_with_steps
from csqtool.searching.options import MsqOptions

AT_ONCE = 2  # planes that an insensitive layer loses in a round
DROPPING = 0.75  # the share of the training in which planes are dropped; the rest is left to heal


class Msq(BaseMethod[SparsifiedWeight]):
    """Trains latent weights with L1 on their least significant bits, and drops these bits.

    In every round, each layer in which few enough integers are odd loses a plane; two if its sensitivity
    Ω = Tr(H)/n · ‖Q(W) − W‖² is below the layers' mean. A short training cannot make bits sparse everywhere: so many
    layers of least Ω per weight lose theirs, too, that the average precision falls along a line to the budget's.
    """

    description = "least significant bits of latent weights made sparse and dropped (MSQ, Han et al. 2025)"
    searches = True
    Options = MsqOptions
    options: MsqOptions

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self._curvature = context.curvature

    def make_source(self, weight: Weight, exponents: tuple[int, ...]) -> SparsifiedWeight:
        """Return the latent weight; it may be on all of the given planes."""
        return SparsifiedWeight(weight.parameter, exponents, n_planes=self.config.planes)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return groups for the latent weights and the step sizes, with the rates of LSQ."""
        return groups_with_steps(self.sources.values(), self.config)

    def at_step(self, share: float) -> None:
        """Drop planes in the rounds that are due, evenly spread over the first part of the training."""
        rounds = self.options.drop_rounds
        due = min(int(share / DROPPING * rounds + 1e-9), rounds)
        for number in range(int(next(iter(self.sources.values())).rounds), due):
            self._drop(number)
            for source in self.sources.values():
                source.rounds.fill_(number + 1)

    def regularization(self) -> Tensor | None:
        """Return λ · Σ_layers Δ · Σ |w − the nearest even integer · Δ|; None once the budget is met.

        The step size Δ as a factor, which is ours, gives weights the same speed in steps in every layer and at every
        number of planes.
        """
        names = self._able() if self._is_above_budget() else []
        if not names:
            return None
        found = [source.scale.detach().square() * source.lowest_bits().abs().sum()
                 for source in map(self.sources.__getitem__, names)]  # fmt: skip
        return self.options.lsb_strength * torch.stack(found).sum()

    def after_step(self) -> None:
        """Limit the change of the step sizes, and keep them above zero."""
        for source in self.sources.values():
            source.hold_step_size()

    def status(self) -> dict[str, float]:
        """Return the average precision."""
        return {"bits": self._average()}

    def _average(self) -> float:
        return self.budget.average({name: len(source.kept) for name, source in self.sources.items()})

    def _is_above_budget(self) -> bool:
        return self.budget.cost({name: uniform(len(source.kept)) for name, source in self.sources.items()}) > (
            self.budget.limit
        )

    def _able(self) -> list[str]:
        """Return the layers that may lose a plane."""
        return [name for name, source in self.sources.items() if len(source.kept) > self.budget.min_planes[name]]

    def _drop(self, number: int) -> None:
        """Drop the lowest planes of layers, those of least Ω a weight first."""
        names = self._able()
        if not names or not self._is_above_budget():
            return
        sensitivities = self.sensitivities(number)
        mean = sum(sensitivities.values()) / len(sensitivities)
        average = self._average()
        wanted = average - (average - self.budget.target_bits) / (self.options.drop_rounds - number)
        sparse = {name for name in names if float(self.sources[name].odd_share()) <= self.options.odd_share}
        for name in sorted(names, key=lambda name: (name not in sparse, sensitivities[name] / self._elements(name))):
            if not self._is_above_budget() or (name not in sparse and self._average() <= wanted):
                break
            source = self.sources[name]
            most = len(source.kept) - self.budget.min_planes[name]
            source.drop(min(AT_ONCE if sensitivities[name] < mean else 1, most))

    def _elements(self, name: str) -> int:
        return self.sources[name].latent.numel()

    def sensitivities(self, number: int) -> dict[str, float]:
        """Return Ω = Tr(H)/n · ‖Q(W) − W‖² of each layer, Q with one plane fewer where there is one."""
        found = self._curvature(
            [source.latent for source in self.sources.values()], count=self.options.trace_samples,
            draws=self.options.trace_draws, seed=hash_seed(self.config.seed, "msq", number),
        )  # fmt: skip
        return {
            name: max(trace, 0.0) / self._elements(name) * float(source.rounding_error(min(1, len(source.kept) - 1)))
            for (name, source), trace in zip(self.sources.items(), found, strict=True)
        }
