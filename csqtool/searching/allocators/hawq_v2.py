"""HAWQ-V2: the average trace of the Hessian times the rounding error (Dong et al., NeurIPS 2020)."""

from __future__ import annotations

from typing import ClassVar

from csqtool.nn.hessian import traces
from csqtool.searching.allocation import BaseAllocator, Harms, Planes
from csqtool.searching.allocators.hawq import weighted
from csqtool.searching.options import HessianOptions, Options


class HessianTraces(BaseAllocator):
    """Base of the allocators that weight each layer's rounding error by Tr(H_i)/n_i."""

    Options: ClassVar[type[Options]] = HessianOptions
    harm: ClassVar[str] = "squared rounding error × Tr(H)/n, in shares of the largest Tr(H)/n"
    sensitivity: ClassVar[str] = "Tr(H)/n, the average trace of the loss's Hessian"

    def average_traces(self) -> dict[str, float]:
        """Return Tr(H_i)/n_i of each layer, by Hutchinson's method."""
        options = self.given.options
        assert isinstance(options, HessianOptions)
        parameters = {name: parameter.requires_grad_(True) for name, parameter in self.weights.items()}
        batches = self.batches()
        found = traces(
            list(parameters.values()), lambda: self.losses(batches), self.generator,
            draws=options.hessian_steps, tolerance=options.hessian_tolerance,
            told=lambda n, trace: self.given.progress.step("trace", n, options.hessian_steps, {"trace": trace}),
        )  # fmt: skip
        error = sum(one**2 for one in found.errors) ** 0.5
        self.given.progress.line(f"trace {sum(found.values):.4g}, standard error {error:.2g} after {found.draws} draws")
        averages = [value / one.numel() for value, one in zip(found.values, parameters.values(), strict=True)]
        self.sensitivities = dict(zip(parameters, averages, strict=True))
        return dict(self.sensitivities)


class HawqV2(HessianTraces):
    """The scheme of least Σ Ω_i on the Pareto front, among those whose planes follow the order of average traces."""

    description = "trace of the loss's Hessian times rounding error, planes in the traces' order (HAWQ-V2, 2020)"

    def harms(self) -> Harms:
        """Return Ω_i = Tr(H_i)/n_i · ‖Q(W_i) − W_i‖²."""
        return weighted(self._average, {name: self.errors(name) for name in self.weights})

    def scheme(self) -> Planes:
        """Return the scheme of least Σ Ω_i within the budget."""
        self._average = self.average_traces()
        order = sorted(self._average, key=self._average.__getitem__, reverse=True)
        return self.of_least_harm(self.harms(), order=order)
