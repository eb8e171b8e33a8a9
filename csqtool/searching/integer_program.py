"""The integer program of bit allocation: one choice a layer, the least summed harm within a limit on the summed cost.

It is the multiple-choice knapsack problem. Layers are added one by one to a Pareto front of partial schemes: those that
another one matches at no more cost and harm are dropped, and those that cannot beat the best known scheme even if the
other layers could mix their choices (the linear relaxation). What is left is exact and small, so no solver is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
SLACK = 1e-9  # relative, for the rounding of sums in float64


@dataclass(frozen=True)
class Choices:
    """What one layer may choose from.

    Attributes:
        costs: of each choice; sums of them below 2^53 are exact where they are whole.
        harms: of each choice, at least 0.
    """

    costs: Sequence[float]
    harms: Sequence[float]


def least_harm(layers: Sequence[Choices], limit: float, *, falling: bool = False) -> list[int] | None:
    """Return the index of each layer's choice for the least summed harm; None if nothing is within the limit.

    Args:
        layers: their choices. With `falling`, layers of more than one choice all have equally many, in the same order.
        limit: of the summed cost.
        falling: the index never rises from one layer of several choices to the next.
    """
    costs = [np.asarray(layer.costs, np.float64) for layer in layers]
    harms = [np.asarray(layer.harms, np.float64) for layer in layers]
    relaxed = [_relaxation(costs[number:], harms[number:]) for number in range(len(layers) + 1)]
    known = None if falling else _rounded_down(costs, harms, limit)
    bound = np.inf if known is None else sum(float(one[i]) for one, i in zip(harms, known, strict=True))
    cost, harm, last = np.zeros(1), np.zeros(1), np.full(1, max(map(len, costs), default=1))
    steps: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    for number, (its_costs, its_harms) in enumerate(zip(costs, harms, strict=True)):
        count = len(its_costs)
        parent, choice = np.repeat(np.arange(len(cost)), count), np.tile(np.arange(count), len(cost))
        cost, harm = cost[parent] + its_costs[choice], harm[parent] + its_harms[choice]
        before = last[parent]
        allowed = (choice <= before) if falling and count > 1 else np.ones(len(cost), bool)
        last = choice if falling and count > 1 else before
        at, least = relaxed[number + 1]
        left = limit - cost
        best = harm + np.interp(left, at, least)
        kept = np.flatnonzero(allowed & (left >= at[0]) & (best <= bound * (1 + SLACK)))
        kept = kept[_front(cost[kept], harm[kept], last[kept])]
        cost, harm, last = cost[kept], harm[kept], last[kept]
        steps.append((parent[kept], choice[kept]))
    if not len(cost):
        return known
    state, found = int(np.argmin(harm)), []
    for parents, choices in reversed(steps):
        found.append(int(choices[state]))
        state = int(parents[state])
    return found[::-1]


def _front(cost: Values, harm: Values, last: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the indices of the partial schemes that none of equal `last` matches at no more cost and harm."""
    order = np.lexsort((harm, cost, last))
    found = []
    for group in np.split(order, np.flatnonzero(np.diff(last[order])) + 1):
        if len(group):
            before = np.concatenate(([np.inf], np.minimum.accumulate(harm[group])[:-1]))
            found.append(group[harm[group] < before])
    return np.concatenate(found) if found else order


def _hull(cost: Values, harm: Values) -> list[int]:
    """Return the choices on the lower convex hull, from the cheapest to the one of least harm."""
    hull: list[int] = []
    for i in np.lexsort((harm, cost)):
        if hull and harm[i] >= harm[hull[-1]]:
            continue
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (harm[b] - harm[a]) * (cost[i] - cost[b]) < (harm[i] - harm[b]) * (cost[b] - cost[a]):
                break
            hull.pop()
        if hull and cost[i] == cost[hull[-1]]:
            hull.pop()
        hull.append(int(i))
    return hull


def _segments(costs: Sequence[Values], harms: Sequence[Values]) -> list[tuple[float, float, float, int, int]]:
    """Return the hulls' segments, the steepest first: slope, cost, harm (below 0), layer, choice at its end."""
    found = []
    for layer, (cost, harm) in enumerate(zip(costs, harms, strict=True)):
        hull = _hull(cost, harm)
        for a, b in pairwise(hull):
            width, height = float(cost[b] - cost[a]), float(harm[b] - harm[a])
            found.append((height / width, width, height, layer, b))
    return sorted(found)


def _relaxation(costs: Sequence[Values], harms: Sequence[Values]) -> tuple[Values, Values]:
    """Return costs, ascending, and the least harm that layers have at each if they may mix choices (convex)."""
    first = [_hull(cost, harm)[0] for cost, harm in zip(costs, harms, strict=True)]
    start = [sum(float(one[i]) for one, i in zip(values, first, strict=True)) for values in (costs, harms)]
    segments = _segments(costs, harms)
    at = np.cumsum([start[0], *(width for _, width, *_ in segments)])
    least = np.cumsum([start[1], *(height for _, _, height, *_ in segments)])
    return at, least - SLACK * abs(start[1])


def _rounded_down(costs: Sequence[Values], harms: Sequence[Values], limit: float) -> list[int] | None:
    """Return the relaxation's scheme, without the steps that do not fit."""
    chosen = [_hull(cost, harm)[0] for cost, harm in zip(costs, harms, strict=True)]
    spent = sum(float(cost[i]) for cost, i in zip(costs, chosen, strict=True))
    if spent > limit:
        return None
    stopped = set()
    for _, width, _, layer, choice in _segments(costs, harms):
        if layer in stopped or spent + width > limit:
            stopped.add(layer)  # its later segments begin where this one ends
            continue
        chosen[layer], spent = choice, spent + width
    return chosen
