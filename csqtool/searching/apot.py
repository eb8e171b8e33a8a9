"""APoT: additive powers of two (Li et al., ICLR 2020)."""

from __future__ import annotations

from csqtool.nn.latent import PowersWeight
from csqtool.nn.levels import POWER_TERMS
from csqtool.searching.declarations import SettingError
from csqtool.searching.lsq import Lsq
from csqtool.searching.method import MethodContext


class Apot(Lsq):
    """Trains latent weights on sums of powers of two, together with one step size a layer."""

    description = "sums of powers of two, learned step size, 1 to 4 planes (APoT, Li et al. 2020)"
    kind = PowersWeight

    def __init__(self, context: MethodContext) -> None:
        most = max(map(len, context.scheme.values()))
        if most > len(POWER_TERMS):
            raise SettingError("method", f"apot has sums of 1 to {len(POWER_TERMS)} planes, and a layer has {most}")
        super().__init__(context)
