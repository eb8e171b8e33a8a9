"""HAWQ: Hessian aware quantization, by the largest eigenvalue of each layer's block (Dong et al., ICCV 2019)."""

from __future__ import annotations

from typing import ClassVar

from csqtool.nn.hessian import top_eigenvalues
from csqtool.searching.allocation import BaseAllocator, Harms
from csqtool.searching.options import HawqOptions, Options


class Hawq(BaseAllocator):
    """Weights each layer's rounding error by |λ_i|/n_i.

    The paper ranks the layers by λ_i/n_i and chooses the bits by hand; here the integer program chooses.
    """

    description = "largest eigenvalue of the loss's Hessian times rounding error (HAWQ, Dong et al. 2019)"
    Options: ClassVar[type[Options]] = HawqOptions
    harm: ClassVar[str] = "squared rounding error × |λ|/n, in shares of the largest |λ|/n"
    sensitivity: ClassVar[str] = "|λ|/n, the Hessian's eigenvalue of largest magnitude over the weights"

    def harms(self) -> Harms:
        """Return |λ_i|/n_i · ‖Q(W_i) − W_i‖²."""
        options = self.given.options
        assert isinstance(options, HawqOptions)
        parameters = {name: parameter.requires_grad_(True) for name, parameter in self.weights.items()}
        batches = self.batches()
        eigenvalues = top_eigenvalues(list(parameters.values()), lambda: self.losses(batches), self.generator,
                                      steps=options.hessian_steps, tolerance=options.hessian_tolerance)  # fmt: skip
        found = {}
        for number, (name, eigenvalue) in enumerate(zip(parameters, eigenvalues, strict=True), 1):
            found[name] = abs(eigenvalue) / parameters[name].numel()
            self.given.progress.step("eigenvalues", number, len(parameters), {"eigenvalue": eigenvalue})
        self.sensitivities = found
        return weighted(found, {name: self.errors(name) for name in parameters})


def weighted(sensitivities: dict[str, float], errors: Harms) -> Harms:
    """Return each layer's rounding errors times its sensitivity, in shares of the largest sensitivity.

    A sensitivity of zero, or an estimate below it, counts as a millionth: more planes are never worth nothing.
    """
    largest = max(*sensitivities.values(), 1e-300)
    return {
        name: {k: max(sensitivity / largest, 1e-6) * error for k, error in errors[name].items()}
        for name, sensitivity in sensitivities.items()
    }
