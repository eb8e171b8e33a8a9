from __future__ import annotations

from itertools import product

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from csqtool.nn.levels import Levels

planes = st.sets(st.integers(0, 6), min_size=1, max_size=5).map(lambda kept: tuple(sorted(kept)))


@settings(deadline=None, max_examples=40)
@given(planes)
def test_levels_are_all_sums_of_signed_planes_and_their_digits_add_up_to_them(kept: tuple[int, ...]) -> None:
    levels = Levels(kept)
    wanted = {
        sum(c * 2**b for c, b in zip(digits, kept, strict=True)) for digits in product((-1, 0, 1), repeat=len(kept))
    }
    assert levels.values.tolist() == sorted(wanted)
    weights = torch.tensor([2**b for b in kept])
    assert torch.equal((levels.digits * weights).sum(1), levels.values)


@settings(deadline=None, max_examples=40)
@given(planes, st.integers(0, 2**32 - 1))
def test_projection_takes_the_nearest_level(kept: tuple[int, ...], seed: int) -> None:
    levels = Levels(kept)
    x = torch.randn(50, generator=torch.Generator().manual_seed(seed)) * levels.largest
    distances = (x[:, None] - levels.values).abs()
    assert torch.equal((levels.project(x, 1.0) - x).abs(), distances.min(1).values)


@settings(deadline=None, max_examples=20)
@given(planes, st.floats(1e-4, 1e3), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_a_weight_that_is_on_the_grid_already_is_fitted_exactly_however_far_it_reaches(
    kept: tuple[int, ...], scale: float, reach: float, seed: int
) -> None:
    levels = Levels(kept)
    used = levels.values[levels.values.abs() <= max(reach * levels.largest, 1 << kept[0])]
    chosen = torch.randint(len(used), (200,), generator=torch.Generator().manual_seed(seed))
    weight = used[chosen].float() * scale
    fitted = levels.project(weight, levels.fit_scale(weight)) * levels.fit_scale(weight)
    assert torch.allclose(fitted, weight, rtol=1e-4, atol=1e-6 * scale)


def test_an_all_zero_weight_has_a_scale() -> None:
    levels = Levels((0, 1))
    assert levels.fit_scale(torch.zeros(5)) > 0
    assert not levels.project(torch.zeros(5), levels.fit_scale(torch.zeros(5))).any()
