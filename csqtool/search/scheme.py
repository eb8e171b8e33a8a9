"""From the planes that a search kept to a scheme that meets the budget exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

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


def settle(found: Scheme, budget: Budget, *, loss_with: LossWith) -> dict[str, tuple[int, ...]]:
    """Drop and add planes until the budget is met: never above it, and as near as exchanges of planes bring it.

    What a plane is worth is measured: the loss when a layer's lowest plane is dropped. Planes are dropped where
    that costs least for what it saves. What is then left of the budget goes, one plane at a time, where the last
    plane was worth most for what it costs; where none fits any more, one is added to a layer and others make room.

    Args:
        found: the planes that the search kept.
        budget: what they may cost.
        loss_with: measures a change of one layer.

    Returns:
        The planes each layer keeps.
    """
    repair = _Repair(budget, loss_with)
    scheme = dict(found)
    repair.drop(scheme)
    repair.fill(scheme)
    while budget.cost_left(scheme) > budget.tolerance:
        nearest = min(repair.exchanges(scheme), key=budget.cost_left, default=scheme)
        if budget.cost_left(nearest) >= budget.cost_left(scheme):
            break
        scheme = nearest
    return scheme


class _Repair:
    """The steps of `settle`; each changes a scheme in place."""

    def __init__(self, budget: Budget, loss_with: LossWith) -> None:
        self._budget = budget
        self._loss_with = loss_with
        self._measured: dict[tuple[str, tuple[int, ...]], float] = {}

    def _rise(self, name: str, planes: tuple[int, ...]) -> float:
        """Return how much the loss rises when a layer of these planes loses the lowest."""
        for wanted in (planes, one_fewer(planes)):
            if (name, wanted) not in self._measured:
                self._measured[name, wanted] = self._loss_with(name, wanted)
        return self._measured[name, one_fewer(planes)] - self._measured[name, planes]

    def _difference(self, scheme: Scheme, name: str, planes: tuple[int, ...]) -> float:
        """Return what changing a layer's planes changes of the cost, at least a little."""
        return max(abs(self._budget.cost(scheme) - self._budget.cost({**scheme, name: planes})), 1e-12)

    def _price(self, scheme: Scheme, name: str) -> float:
        """Return the loss that dropping a layer's lowest plane costs, for what it saves."""
        return self._rise(name, scheme[name]) / self._difference(scheme, name, one_fewer(scheme[name]))

    def drop(self, scheme: dict[str, tuple[int, ...]], *, but: str | None = None) -> bool:
        """Drop planes, of any layer but one, until the budget is met; tell whether it could be."""
        budget = self._budget
        while budget.cost(scheme) > budget.limit:
            able = [name for name, planes in scheme.items() if len(planes) > budget.least[name] and name != but]
            if not able:
                return False
            name = min(able, key=lambda n: self._price(scheme, n))
            scheme[name] = one_fewer(scheme[name])
        return True

    def fill(self, scheme: dict[str, tuple[int, ...]]) -> None:
        """Add planes as long as one fits."""
        while fitting := {n: p for n, p in self._wider(scheme).items() if self._fits({**scheme, n: p})}:
            worths = {name: self._worth(scheme, name, planes) for name, planes in fitting.items()}
            name = max(fitting, key=worths.__getitem__)
            scheme[name] = fitting[name]

    def exchanges(self, scheme: Scheme) -> Iterator[dict[str, tuple[int, ...]]]:
        """Yield, for each layer that can take another plane, the scheme in which others make room for it."""
        for name, planes in self._wider(scheme).items():
            changed = {**scheme, name: planes}
            if self.drop(changed, but=name):
                self.fill(changed)
                yield changed

    def _wider(self, scheme: Scheme) -> dict[str, tuple[int, ...]]:
        most = self._budget.most
        return {name: one_more(p, most[name]) for name, p in scheme.items() if len(p) < most[name]}

    def _fits(self, scheme: Scheme) -> bool:
        return self._budget.cost(scheme) <= self._budget.limit

    def _worth(self, scheme: Scheme, name: str, wider: tuple[int, ...]) -> tuple[bool, float]:
        cost = self._difference(scheme, name, wider)
        # What a layer's only plane is worth cannot be seen by dropping it: such layers come first, small ones
        # before large ones.
        if len(scheme[name]) == 1:
            return True, -cost
        return False, NEXT_PLANE_GAIN * self._rise(name, scheme[name]) / cost


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

    @torch.no_grad()
    def of_scheme(self, scheme: Scheme) -> float:
        """Return the loss with all weights rounded to their planes; they are put back."""
        before = {name: parameter.data for name, parameter in self._parameters.items()}
        for name, parameter in self._parameters.items():
            parameter.data = round_to(parameter.data, scheme[name])
        try:
            return self._loss()
        finally:
            for name, parameter in self._parameters.items():
                parameter.data = before[name]


def round_to(weight: Tensor, planes: tuple[int, ...]) -> Tensor:
    """Return a weight rounded to given planes, at the scale with the least squared error."""
    levels = Levels([b - planes[0] for b in planes])
    scale = levels.fit_scale(weight)
    return levels.project(weight, scale) * scale
