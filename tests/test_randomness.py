from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from csqtool.randomness import drawing_from, epoch_order, hash_seed, seed_all


def draw() -> tuple[float, float, float]:
    return torch.rand(()).item(), float(np.random.rand()), random.random()


@given(st.integers(), st.text())
def test_a_seed_is_a_function_of_its_parts_that_every_generator_takes(number: int, text: str) -> None:
    seed = hash_seed(number, text)
    assert seed == hash_seed(number, text)
    assert 0 <= seed < 2**63
    assert seed != hash_seed(text, number)
    torch.Generator().manual_seed(seed)


def test_parts_that_read_the_same_when_joined_give_other_seeds() -> None:
    assert len({hash_seed(*parts) for parts in ((1, 23), (12, 3), ("1", 23), (123,), ((1, 23),))}) == 5


def test_seeding_seeds_torch_numpy_and_python() -> None:
    with drawing_from(0):
        seed_all(5)
        one = draw()
        seed_all(5)
        assert draw() == one
        seed_all(6)
        assert all(other != first for other, first in zip(draw(), one, strict=True))


def test_what_is_drawn_inside_leaves_what_is_drawn_outside_alone() -> None:
    with drawing_from(1):
        wanted = draw(), draw()
    with drawing_from(1):
        first = draw()
        with pytest.raises(KeyError), drawing_from(2):
            _ = {}[draw()]
        assert (first, draw()) == wanted


def test_an_epoch_s_order_is_a_permutation_of_its_own() -> None:
    orders = [epoch_order(50, seed, stage, epoch).tolist()
              for seed in (0, 1) for stage in ("float", "search") for epoch in (0, 1)]  # fmt: skip
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 8
    assert epoch_order(50, 0, "float", 0).tolist() == orders[0]
