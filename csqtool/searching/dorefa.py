"""DoReFa-Net's weights (Zhou et al., 2016)."""

from __future__ import annotations

from csqtool.nn.latent import DorefaWeight
from csqtool.searching.fixed import FixedBits


class Dorefa(FixedBits):
    """Trains latent weights that are squashed by tanh and rounded to levels without zero."""

    description = "tanh-squashed weights on odd levels, fixed planes (DoReFa-Net, Zhou et al. 2016)"
    kind = DorefaWeight
