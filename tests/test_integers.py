from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from csqtool.nn.gates import BitGates


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.sampled_from([-1.0, 0.3, 2.0]))
def test_integers_times_scale_are_the_hard_weight_bit_for_bit(seed: int, planes: int, s: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    gates = BitGates(torch.ones(3, 5), planes=planes)
    for parameter in (gates.m_p, gates.m_n, gates.m_b):
        parameter.data = torch.randn(parameter.shape, generator=generator)
    gates.keep_last_plane()
    gates.s.data.fill_(s)
    gates.hard = True
    q, scale, mask = gates.integers()
    assert scale > 0
    assert mask.count("1") == gates.precision >= 1
    assert np.array_equal(q.astype(np.float32) * scale, gates().detach().numpy())
    assert not q.any() or np.bitwise_or.reduce(np.abs(q.astype(int)), axis=None) & 1  # no common power of two is left


def test_eight_kept_planes_need_int16() -> None:
    gates = BitGates(torch.tensor([[1.0, -1.0, 0.1]]))
    q, _, mask = gates.integers()
    assert mask == "11111111"
    assert q.dtype == np.int16
    assert q.max() == 255
    assert q.min() == -255


def test_the_soft_weight_starts_as_the_float_weight() -> None:
    weight = torch.randn(16, 9)
    gates = BitGates(weight)
    assert torch.nn.functional.cosine_similarity(gates().flatten(), weight.flatten(), dim=0) > 0.999
