"""HAWQ-V3: an integer program over traces and rounding errors (Yao et al., ICML 2021)."""

from __future__ import annotations

from csqtool.searching.allocation import Harms
from csqtool.searching.allocators.hawq import weighted
from csqtool.searching.allocators.hawq_v2 import HessianTraces


class HawqV3(HessianTraces):
    """The scheme of least Σ Ω_i of all within the budget.

    The published configurations choose between 4 and 8 bits; here every number of planes is a choice.
    """

    description = "trace of the loss's Hessian times rounding error, integer program (HAWQ-V3, Yao et al. 2021)"

    def harms(self) -> Harms:
        """Return Ω_i = Tr(H_i)/n_i · ‖Q(W_i) − W_i‖²."""
        return weighted(self.average_traces(), {name: self.errors(name) for name in self.weights})
