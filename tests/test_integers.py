from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from csqtool.integers import planes_of
from csqtool.nn.gates import BitGates


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sets(st.integers(0, 7), min_size=1), st.sampled_from([-1.0, 0.3, 2.0]))
def test_integers_times_scale_are_the_hard_weight_bit_for_bit(seed: int, kept: set[int], s: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    gates = BitGates(torch.ones(3, 5), range(8), mask_init=0.05)
    assert gates.m_b is not None
    for parameter in (gates.m_p, gates.m_n):
        parameter.data = torch.randn(parameter.shape, generator=generator)
    gates.m_b.data = torch.tensor([1.0 if b in kept else -1.0 for b in range(8)])
    gates.s.data.fill_(s)
    gates.hard = True
    q, scale, mask = gates.integers()
    assert scale > 0
    assert planes_of(mask) == gates.kept == tuple(sorted(kept))
    assert np.array_equal(q.astype(np.float32) * scale, gates().detach().numpy())
    assert not q.any() or np.bitwise_or.reduce(np.abs(q.astype(int)), axis=None) & 1  # no common power of two is left


def test_eight_kept_planes_need_int16() -> None:
    gates = BitGates(torch.tensor([[1.0, -1.0, 31 / 255]]), range(8))  # on no coarser grid
    q, _, mask = gates.integers()
    assert mask == "11111111"
    assert q.dtype == np.int16
    assert q.max() == 255
    assert q.min() == -255


@pytest.mark.parametrize("mask_init", [None, 0.05])
def test_the_soft_weight_starts_as_the_float_weight(mask_init: float | None) -> None:
    weight = torch.randn(16, 9)
    gates = BitGates(weight, range(8), mask_init=mask_init)
    assert torch.nn.functional.cosine_similarity(gates().flatten(), weight.flatten(), dim=0) > 0.999
