"""The integer program against HAWQ-V3's published configurations, and against trying every scheme."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from csqtool.searching.integer_program import Choices, least_harm

# ResNet-18's 19 inner layers, from the notebook ILP.ipynb of Zhen-Dong/HAWQ (MIT licence): the average trace, squared
# weight errors at 8 and 4 bits, weights, millions of multiplications, milliseconds on a T4 at 4 and 8 bits.
TRACES = (
    0.06857826, 0.03162379, 0.03298575, 0.01205663, 0.02222431, 0.00596336, 0.06931772, 0.00807129, 0.00372905,
    0.00530698, 0.00209011, 0.00737569, 0.00210454, 0.00151197, 0.00158041, 0.00078146, 0.00451841, 0.00098745,
    0.00072944)  # fmt: skip
ERRORS_8 = (0.0235, 0.0125, 0.0102, 0.0082, 0.0145, 0.0344, 0.0023, 0.0287, 0.0148, 0.0333, 0.0682, 0.0027, 0.0448,
            0.0336, 0.0576, 0.1130, 0.0102, 0.0947, 0.0532)  # fmt: skip
ERRORS_4 = (6.7430, 3.9691, 3.3281, 2.6796, 4.7277, 10.5966, 0.6827, 9.0942, 4.8857, 10.7599, 21.7546, 0.8603, 14.5324,
            10.9651, 18.7706, 36.4044, 3.1572, 29.6994, 17.4016)  # fmt: skip
WEIGHTS = (36864, 36864, 36864, 36864, 73728, 147456, 8192, 147456, 147456, 294912, 589824, 32768, 589824, 589824,
           1179648, 2359296, 131072, 2359296, 2359296)  # fmt: skip
MACS = (115605504, 115605504, 115605504, 115605504, 57802752, 115605504, 6422528, 115605504, 115605504, 57802752,
        115605504, 6422528, 115605504, 115605504, 57802752, 115605504, 6422528, 115605504, 115605504)  # fmt: skip
LATENCY_4 = (0.21094404, 0.21092674, 0.21104113, 0.21086851, 0.13642465, 0.19167506, 0.02532183, 0.19148203, 0.19142914,
             0.11395316, 0.20556011, 0.01917474, 0.20566918, 0.20566509, 0.13185102, 0.22287786, 0.01790088, 0.22304611,
             0.22286099)  # fmt: skip
LATENCY_8 = (0.36189111, 0.36211718, 0.31141909, 0.30454471, 0.19184896, 0.38948934, 0.0334169, 0.38904905, 0.3892859,
             0.19134735, 0.34307431, 0.02802354, 0.34313329, 0.34310756, 0.21117103, 0.37376585, 0.02896843, 0.37398187,
             0.37405185)  # fmt: skip
TIED = {6: 4, 11: 9, 16: 14}  # a downsampling layer has the bits of its block's first convolution
COSTS = {
    "size": ([w * 4 / 8 for w in WEIGHTS], [w * 8 / 8 for w in WEIGHTS]),
    "bops": ([m / 64 for m in MACS], [m / 16 for m in MACS]),
    "latency": (LATENCY_4, LATENCY_8),
}


@pytest.mark.parametrize(
    ("constraint", "four_bits"),
    [
        ("size", {15, 17, 18}),
        ("bops", {3, 8, *range(12, 19)}),
        ("latency", {5, 8, 12, 13, 15, 17, 18}),
    ],
)
def test_hawq_v3s_published_bits_of_resnet18_follow_from_its_published_sensitivities(
    constraint: str, four_bits: set[int]
) -> None:
    cheap, dear = COSTS[constraint]
    groups = [[i, *(a for a, b in TIED.items() if b == i)] for i in range(19) if i not in TIED]
    layers = [
        Choices([sum(cheap[i] for i in group), sum(dear[i] for i in group)],
                [sum(TRACES[i] * ERRORS_4[i] for i in group), sum(TRACES[i] * ERRORS_8[i] for i in group)])
        for group in groups
    ]  # fmt: skip
    found = least_harm(layers, sum(cheap) + 0.5 * (sum(dear) - sum(cheap)))
    assert found is not None
    assert {i for group, choice in zip(groups, found, strict=True) if choice == 0 for i in group} == four_bits


@pytest.mark.parametrize("falling", [False, True])
@pytest.mark.parametrize("seed", range(60))
def test_no_scheme_within_the_limit_is_better(seed: int, falling: bool) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 5))
    layers = []
    for _ in range(int(rng.integers(1, 7))):
        own = 1 if rng.random() < 0.2 else count  # some are pinned
        harms = rng.random(own)
        layers.append(Choices(sorted(rng.integers(0, 30, own).tolist()),
                              (np.sort(harms)[::-1] if rng.random() < 0.7 else harms).tolist()))  # fmt: skip
    limit = float(rng.integers(0, 30 * len(layers)))

    def cost(scheme: tuple[int, ...]) -> float:
        return sum(layer.costs[i] for layer, i in zip(layers, scheme, strict=True))

    def harm(scheme: tuple[int, ...]) -> float:
        return sum(layer.harms[i] for layer, i in zip(layers, scheme, strict=True))

    def allowed(scheme: tuple[int, ...]) -> bool:
        free = [i for i, layer in zip(scheme, layers, strict=True) if len(layer.costs) > 1]
        return cost(scheme) <= limit and (not falling or free == sorted(free, reverse=True))

    every = [one for one in itertools.product(*(range(len(layer.costs)) for layer in layers)) if allowed(one)]
    found = least_harm(layers, limit, falling=falling)
    if not every:
        assert found is None
    else:
        assert found is not None
        assert allowed(tuple(found))
        assert harm(tuple(found)) == pytest.approx(min(map(harm, every)), abs=1e-12)


def test_a_hundred_layers_meet_a_fraction_of_planes_closely() -> None:
    rng = np.random.default_rng(0)
    weights, sensitivities = rng.integers(100, 3_000_000, 100), 10 ** rng.uniform(-4, 0, 100)
    layers = [Choices([float(w * k) for k in range(1, 8)], [s * w * 4.0**-k for k in range(1, 8)])
              for w, s in zip(weights, sensitivities, strict=True)]  # fmt: skip
    limit = 3.1 * weights.sum()
    found = least_harm(layers, limit)
    assert found is not None
    spent = sum(layer.costs[i] for layer, i in zip(layers, found, strict=True))
    assert 0.999 * limit < spent <= limit
