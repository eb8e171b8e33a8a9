"""From the planes that a search kept to a scheme that meets the budget exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from csqtool.nn.levels import Levels
from csqtool.search.budget import Budget, Scheme

# Returns the loss with one layer rounded to the given planes and the others as they are.
LossWith = Callable[[str, tuple[int, ...]], float]
# A plane more divides the squared rounding error, and with it about the loss it costs, by four.
NEXT_PLANE_GAIN = 0.25


def close_holes(planes: tuple[int, ...]) -> tuple[int, ...]:
    """Return as many planes without holes: the integers span fewer bits, at the same precision."""
    first = max(0, planes[-1] + 1 - len(planes))
    return tuple(range(first, first + len(planes)))


def one_fewer(planes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the planes without the lowest."""
    return planes[1:]


def one_more(planes: tuple[int, ...], most: int) -> tuple[int, ...]:
    """Return the planes and one more: below the lowest, else in the highest hole, else above the highest."""
    if planes[0] > 0:
        added = planes[0] - 1
    else:
        holes = [b for b in range(planes[-1]) if b not in planes]
        added = holes[-1] if holes else planes[-1] + 1
    assert added < most
    return tuple(sorted((*planes, added)))


def settle(found: Scheme, budget: Budget, *, contiguous: bool, loss_with: LossWith) -> dict[str, tuple[int, ...]]:
    """Drop and add planes until the budget is met: never above it, and no further plane of any layer fits.

    What a plane is worth is measured: the loss when a layer's lowest plane is dropped. Planes are dropped where
    that costs least for what it saves. What is then left of the budget goes, one plane at a time, where the last
    plane was worth most for what it costs.

    Args:
        found: the planes that the search kept.
        budget: what they may cost.
        contiguous: close the holes of masks first.
        loss_with: measures a change of one layer.

    Returns:
        The planes each layer keeps.
    """
    scheme = {name: close_holes(planes) if contiguous else tuple(planes) for name, planes in found.items()}
    measured: dict[tuple[str, tuple[int, ...]], float] = {}

    def rise(name: str) -> float:
        """Return how much the loss rises when a layer loses its lowest plane."""
        planes = scheme[name]
        for wanted in (planes, one_fewer(planes)):
            if (name, wanted) not in measured:
                measured[name, wanted] = loss_with(name, wanted)
        return measured[name, one_fewer(planes)] - measured[name, planes]

    def saved(name: str, planes: tuple[int, ...]) -> float:
        return abs(budget.cost(scheme) - budget.cost({**scheme, name: planes}))

    def worth(name: str, wider: tuple[int, ...]) -> tuple[bool, float]:
        cost = max(saved(name, wider), 1e-12)
        # What a layer's only plane is worth cannot be seen by dropping it: such layers come first, small ones
        # before large ones.
        return (True, -cost) if len(scheme[name]) == 1 else (False, NEXT_PLANE_GAIN * rise(name) / cost)

    while budget.cost(scheme) > budget.limit:
        droppable = [name for name, planes in scheme.items() if len(planes) > budget.least[name]]
        name = min(droppable, key=lambda n: rise(n) / max(saved(n, one_fewer(scheme[n])), 1e-12))
        scheme[name] = one_fewer(scheme[name])
    while True:
        wider = {n: one_more(p, budget.most[n]) for n, p in scheme.items() if len(p) < budget.most[n]}
        fitting = {n: p for n, p in wider.items() if budget.cost({**scheme, n: p}) <= budget.limit}
        if not fitting:
            return scheme
        worths = {n: worth(n, planes) for n, planes in fitting.items()}
        name = max(fitting, key=worths.__getitem__)
        scheme[name] = fitting[name]


class LossProbe:
    """Measures the loss of a plain module with one weight rounded to given planes.

    Args:
        parameters: the weights, by name.
        loss: returns the loss of the module as it stands.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], loss: Callable[[], float]) -> None:
        self._parameters = parameters
        self._loss = loss

    @torch.no_grad()
    def __call__(self, name: str, planes: tuple[int, ...]) -> float:
        """Return the loss; the weight is put back."""
        parameter = self._parameters[name]
        before = parameter.data
        parameter.data = round_to(before, planes)
        try:
            return self._loss()
        finally:
            parameter.data = before


def round_to(weight: Tensor, planes: tuple[int, ...]) -> Tensor:
    """Return a weight rounded to given planes, at the scale with the least squared error."""
    levels = Levels([b - planes[0] for b in planes])
    scale = levels.fit_scale(weight)
    return levels.project(weight, scale) * scale
