"""STE-Uniform: min–max rounding with a straight-through estimator (Polino et al., ICLR 2018)."""

from __future__ import annotations

from csqtool.nn.latent import MinMaxWeight
from csqtool.searching.fixed import FixedBits


class SteUniform(FixedBits):
    """Trains latent weights that are rounded between ± the largest of them."""

    description = "min–max grid with a straight-through estimator, fixed planes (Polino et al. 2018)"
    kind = MinMaxWeight
