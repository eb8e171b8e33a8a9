from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from csqtool.csq.writer import pack
from csqtool.nn.latent import LsqWeight
from csqtool.quantized_model import QuantizedLayer, QuantizedModel
from csqtool.searching.budget import Budget, max_bytes, uniform
from csqtool.searching.packed_size import PackedSizes, fixed_bytes, packed_bytes


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3000), st.integers(1, 8), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_a_file_takes_what_was_counted_for_its_layers_and_never_more_than_was_promised(
    elements: int, bits: int, share: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(elements, 1, generator=generator) for name in ("first", "second")}
    weights["second"] *= torch.rand(weights["second"].shape, generator=generator) < share
    layers = []
    for name, weight in weights.items():
        q, scale, mask = LsqWeight(weight, uniform(bits), n_planes=8).integers()
        layers.append(QuantizedLayer(name, q, scale, mask, None, None))
    model = QuantizedModel(tuple(layers), (), {"bias": np.full(7, 1 / 3, np.float32)})
    sizes = PackedSizes(weights)
    counted = sum(sizes(name, uniform(bits)) for name in weights)
    assert packed_bytes(model) == len(pack(model)) == fixed_bytes(model) + counted
    assert counted <= 2 * max_bytes(elements, uniform(bits))


def test_a_budget_of_bytes_aims_at_the_precision_that_fills_it() -> None:
    weights = {"a": torch.randn(5000, 1, generator=torch.Generator().manual_seed(0))}
    bounds = ({"a": 5000}, {"a": 1}, {"a": 8})
    sizes = PackedSizes(weights)
    for bits in range(1, 8):
        here, above = (100 + sizes("a", uniform(planes)) for planes in (bits, bits + 1))
        half_way = Budget(*bounds, (here + above) / 2, "bytes", 100, sizes)
        assert math.isclose(half_way.target_bits, bits + 0.5)
        assert half_way.cost(half_way.uniform(bits)) < half_way.limit < half_way.cost(half_way.uniform(bits + 1))
