from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from csqtool.errors import ConfigError
from csqtool.searching.budget import Budget, deployed_bits, make_budget, uniform, uniform_scheme
from csqtool.searching.config import SearchConfig
from csqtool.searching.scheme import LossProbe, close_holes, one_more, settle

masks = st.sets(st.integers(0, 7), min_size=1).map(lambda kept: tuple(sorted(kept)))


@st.composite
def problems(draw: st.DrawFn) -> tuple[dict[str, tuple[int, ...]], Budget]:
    names = [f"layer{i}" for i in range(draw(st.integers(1, 6)))]
    elements = {name: draw(st.integers(1, 5000)) for name in names}
    found = {name: draw(masks) for name in names}
    unit = draw(st.sampled_from(["elements", "layers", "bytes"]))
    ones, eights = dict.fromkeys(names, 1), dict.fromkeys(names, 8)
    free = Budget(elements, ones, eights, 1e12, unit, 100)
    least = free.cost({name: uniform(1) for name in names})
    most = free.cost({name: uniform(8) for name in names})
    return found, Budget(elements, ones, eights, draw(st.floats(least, most)), unit, 100)


@settings(deadline=None, max_examples=150)
@given(problems(), st.booleans(), st.randoms())
def test_a_settled_scheme_never_exceeds_the_budget_and_no_plane_more_fits(
    problem: tuple[dict[str, tuple[int, ...]], Budget], contiguous: bool, random: object
) -> None:
    found, budget = problem
    closed = {name: close_holes(planes) if contiguous else planes for name, planes in found.items()}
    scheme = settle(closed, budget, loss_with=lambda *_: random.random())  # type: ignore[attr-defined]
    assert budget.cost(scheme) <= budget.limit
    assert all(scheme[name] for name in found)
    for name, planes in scheme.items():
        if len(planes) < 8:
            assert budget.cost({**scheme, name: one_more(planes, 8)}) > budget.limit
        if contiguous:
            assert deployed_bits(planes) == len(planes) + 1


@given(masks)
def test_closing_holes_keeps_the_precision(planes: tuple[int, ...]) -> None:
    closed = close_holes(planes)
    assert len(closed) == len(planes)
    assert closed == tuple(range(closed[0], closed[0] + len(planes)))


def test_planes_are_dropped_where_that_costs_the_least_loss() -> None:
    budget = Budget({"a": 100, "b": 100}, {"a": 1, "b": 1}, {"a": 4, "b": 8}, 3.0)
    loss = {"a": 1.0, "b": 0.1}  # a plane of layer a is worth ten of layer b
    scheme = settle({"a": uniform(4), "b": uniform(4)}, budget,
                    loss_with=lambda name, planes: -loss[name] * len(planes))  # fmt: skip
    assert {name: len(planes) for name, planes in scheme.items()} == {"a": 4, "b": 2}


def test_what_is_left_of_the_budget_goes_where_the_last_plane_was_worth_most() -> None:
    budget = Budget({"a": 100, "b": 100}, {"a": 1, "b": 1}, {"a": 8, "b": 8}, 3.0)
    loss = {"a": 1.0, "b": 0.1}
    scheme = settle({"a": uniform(2), "b": uniform(2)}, budget,
                    loss_with=lambda name, planes: loss[name] * 0.25 ** len(planes))  # fmt: skip
    assert len(scheme["a"]) > len(scheme["b"])


def test_planes_are_traded_until_none_is_worth_more_than_what_makes_room_for_it() -> None:
    budget = Budget({"a": 100, "b": 100}, {"a": 1, "b": 1}, {"a": 8, "b": 8}, 4.0)
    loss = {"a": 16.0, "b": 1.0}  # 4² apart: two planes more for a are then as good as any for b
    scheme = settle({"a": uniform(2), "b": uniform(6)}, budget,
                    loss_with=lambda name, planes: loss[name] * 0.25 ** len(planes))  # fmt: skip
    assert {name: len(planes) for name, planes in scheme.items()} == {"a": 5, "b": 3}


def config(**settings_: object) -> SearchConfig:
    return SearchConfig.make(**{"model": "m", "data": "d", "target_bits": 3} | settings_)


def test_a_budget_below_the_minimum_says_the_minimum() -> None:
    with pytest.raises(ConfigError, match=r"the least that the layers and pins allow is 4\.5 planes a weight"):
        make_budget(config(pin={"a": 8}), {"a": 10, "b": 10})


@pytest.mark.parametrize("unit", ["elements", "layers"])
def test_a_budget_above_the_maximum_says_the_maximum(unit: str) -> None:
    with pytest.raises(ConfigError, match=r"allow at most 7 planes a (weight|layer); lower the target or raise --max"):
        make_budget(config(target_bits=8, budget_weighting=unit), {"a": 10, "b": 10})
    with pytest.raises(ConfigError, match=r"allow at most 4\.5 planes"):
        make_budget(config(target_bits=5, pin={"a": 2}, budget_weighting=unit), {"a": 10, "b": 10})
    assert make_budget(config(target_bits=8, max_bits=8, budget_weighting=unit), {"a": 10, "b": 10}).limit == 8
    assert make_budget(config(target_bits=7, budget_weighting=unit), {"a": 10, "b": 10}).limit == 7


def test_a_pin_that_matches_nothing_is_an_error_that_lists_the_layers() -> None:
    with pytest.raises(ConfigError, match=r"pin 'fc\*' matches no quantized layer; the layers are conv.weight"):
        make_budget(config(pin={"fc*": 8}), {"conv.weight": 10})


def test_uniform_methods_refuse_a_broken_number_of_bits() -> None:
    budget = make_budget(config(target_bits=2.5), {"a": 10})
    with pytest.raises(ConfigError, match="target bits must be whole"):
        uniform_scheme(budget, method="lsq")


@pytest.mark.parametrize("bits", range(1, 8))
def test_a_whole_target_is_met_exactly_whatever_the_sizes(bits: int) -> None:
    sizes = [432, *[2304] * 6, 4608, *[9216] * 5, 18432, *[36864] * 5, 640]  # a ResNet-20
    budget = make_budget(config(target_bits=bits), {f"layer{i}": size for i, size in enumerate(sizes)})
    assert set(map(len, uniform_scheme(budget, method="lsq").values())) == {bits}


def test_the_layer_weighting_counts_every_layer_alike() -> None:
    budget = make_budget(config(budget_weighting="layers"), {"small": 1, "large": 1000})
    assert budget.cost({"small": uniform(8), "large": uniform(2)}) == 5.0


def test_the_loss_probe_puts_the_weight_back() -> None:
    layer = nn.Linear(4, 3)
    before = layer.weight.detach().clone()
    seen: list[torch.Tensor] = []
    probe = LossProbe({"weight": layer.weight}, lambda: float(seen.append(layer.weight.detach().clone()) or 0.0))
    probe("weight", (0,))
    assert len(seen[0].abs().unique()) <= 2  # one plane: −Δ, 0 and Δ
    assert torch.equal(layer.weight, before)
