"""Budgets of bit operations: what they count, the best scheme within them, and searches that end within them."""

from __future__ import annotations

import itertools

import pytest

import csqtool
from csqtool.errors import ConfigError
from csqtool.searching.allocation import cheapest
from tests.support.allocations import QUICK, given, trained


def test_a_budget_of_bit_operations_counts_multiplications_times_both_bits_and_the_best_scheme_is_found() -> None:
    allocation, _, _, _ = given("hawq-v3", target_bits=None, target_bops="2.5K", act_bits=4)
    budget = allocation.budget
    # The input has eight bits, what feeds the other layers four; a plane and the sign are two bits.
    per_bit = {"0.weight": 48 * 8, "3.weight": 64 * 4, "5.weight": 24 * 4}
    assert budget.cost(budget.uniform(1)) == 2 * sum(per_bit.values())
    harms = {name: {k: (1 + i) * 3.0**-k for k in range(1, 8)} for i, name in enumerate(per_bit)}

    def cost(scheme: tuple[int, ...]) -> int:
        return sum((k + 1) * bits for k, bits in zip(scheme, per_bit.values(), strict=True))

    def harm(scheme: tuple[int, ...]) -> float:
        return sum(harms[name][k] for k, name in zip(scheme, per_bit, strict=True))

    within = [one for one in itertools.product(range(1, 8), repeat=3) if cost(one) <= 2500]
    found = tuple(map(len, cheapest(harms, budget).values()))
    assert found in within
    assert harm(found) == min(map(harm, within))


def test_a_search_and_quantize_end_within_a_budget_of_bit_operations_and_record_it() -> None:
    net, x, y = trained()
    found = csqtool.search(net, train=(x, y), test=(x, y), method="hawq-v3", target_bops="3K", act_bits=4, **QUICK)
    quantized = csqtool.quantize(net, x, target_bops="3K", act_bits=4, batch_size=32, steps=2, device="cpu")
    for scheme in ({one.name: one.bit_width for one in found.scheme},
                   {one.name: one.bit_width for one in quantized.layers}):  # fmt: skip
        spent = 48 * 8 * scheme["0.weight"] + 64 * 4 * scheme["3.weight"] + 24 * 4 * scheme["5.weight"]
        assert 2400 < spent <= 3000
    assert found.summary.target_bops == "3K"
    assert found.summary.budget_unit == "bops"
    assert found.summary.bops is not None
    assert found.summary.bops <= found.summary.cost <= 3000
    assert quantized.info.method is not None
    assert quantized.info.method.target_bops == "3K"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "1.4K",
            "the budget of 1.4 K bit operations cannot be met: the least that the layers and pins allow is 1.472 K",
        ),
        ("many", "'many' is no count of operations; write a number, with or without K, M, G or T"),
        ("0", "target_bops must be above 0"),
        ("9999999T", "operations are more than any network has"),
    ],
)
def test_an_impossible_budget_of_bit_operations_is_refused_in_a_line(target: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        given("hawq-v3", target_bits=None, target_bops=target, act_bits=4)
