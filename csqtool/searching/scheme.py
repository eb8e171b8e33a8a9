"""From the planes that a search kept to a scheme that meets the budget exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from csqtool.nn.levels import Levels
from csqtool.searching.budget import Budget, Scheme

# Returns the loss with one layer rounded to the given planes and the others as they are.
LossWith = Callable[[str, tuple[int, ...]], float]
# A plane more divides the squared rounding error, and with it about the loss it costs, by four.
NEXT_PLANE_GAIN = 0.25
MIN_GAIN = 1e-6  # of loss; a trade that wins less is rounding noise


def close_holes(planes: tuple[int, ...]) -> tuple[int, ...]:
    """Return as many planes without holes: the integers span fewer bits, at the same precision."""
    first = max(0, planes[-1] + 1 - len(planes))
    return tuple(range(first, first + len(planes)))


def one_fewer(planes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the planes without the lowest."""
    return planes[1:]


def one_more(planes: tuple[int, ...], max_planes: int) -> tuple[int, ...]:
    """Return the planes and one more: below the lowest, else in the highest hole, else above the highest."""
    if planes[0] > 0:
        added = planes[0] - 1
    else:
        holes = [b for b in range(planes[-1]) if b not in planes]
        added = holes[-1] if holes else planes[-1] + 1
    assert added < max_planes
    return tuple(sorted((*planes, added)))


def settle(found: Scheme, budget: Budget, *, loss_with: LossWith) -> dict[str, tuple[int, ...]]:
    """Drop and add planes until the budget is met: never above it, and as near as exchanges of planes bring it.

    What a plane is worth is measured: the loss without and with a layer's lowest plane. Planes are dropped where
    that costs least for what it saves; what is left of the budget goes where a plane is worth most for what it
    costs. Then planes are traded as long as one is worth more than those that make room for it, and where what is
    left of the budget is large, planes are exchanged to use it.

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
    while (traded := repair.best_trade(scheme)) is not None:
        scheme = traded
    while budget.cost_left(scheme) > budget.tolerance:
        nearest = min((changed for changed, _ in repair.trades(scheme)), key=budget.cost_left, default=scheme)
        if budget.cost_left(nearest) >= budget.cost_left(scheme):
            break
        scheme = nearest
    return scheme


def drop_planes(found: Scheme, budget: Budget, *, loss_with: LossWith) -> dict[str, tuple[int, ...]]:
    """Drop planes where that costs least for what it saves, until the budget is met; otherwise as `settle`."""
    scheme = dict(found)
    _Repair(budget, loss_with).drop(scheme)
    return scheme


class _Repair:
    """The steps of `settle`."""

    def __init__(self, budget: Budget, loss_with: LossWith) -> None:
        self._budget = budget
        self._loss_with = loss_with
        self._measured: dict[tuple[str, tuple[int, ...]], float] = {}

    def _loss(self, name: str, planes: tuple[int, ...]) -> float:
        """Return the measured loss with a layer at these planes; only their distances matter."""
        key = name, tuple(b - planes[0] for b in planes)
        if key not in self._measured:
            self._measured[key] = self._loss_with(*key)
        return self._measured[key]

    def _worth(self, name: str, planes: tuple[int, ...]) -> float:
        """Return by how much the lowest of a layer's planes lowers the loss.

        Weights that are rounded to fewer planes already cannot show what one more would bring: the plane above it
        says at least a quarter of its own worth.
        """
        fewer = one_fewer(planes)
        if not fewer:
            return torch.inf
        worth = self._loss(name, fewer) - self._loss(name, planes)
        if one_fewer(fewer):
            worth = max(worth, NEXT_PLANE_GAIN * (self._loss(name, one_fewer(fewer)) - self._loss(name, fewer)))
        return max(worth, 0.0)

    def _difference(self, scheme: Scheme, name: str, planes: tuple[int, ...]) -> float:
        """Return what changing a layer's planes changes of the cost, at least a little."""
        return max(abs(self._budget.cost(scheme) - self._budget.cost({**scheme, name: planes})), 1e-12)

    def drop(self, scheme: dict[str, tuple[int, ...]], *, but: str | None = None) -> float | None:
        """Drop planes, of any layer but one, until the budget is met; return their worth, None if it cannot be."""
        budget, lost = self._budget, 0.0
        while budget.cost(scheme) > budget.limit:
            able = [name for name, planes in scheme.items() if len(planes) > budget.min_planes[name] and name != but]
            if not able:
                return None
            prices = {
                name: self._worth(name, scheme[name]) / self._difference(scheme, name, one_fewer(scheme[name]))
                for name in able
            }
            name = min(able, key=prices.__getitem__)
            lost += self._worth(name, scheme[name])
            scheme[name] = one_fewer(scheme[name])
        return lost

    def fill(self, scheme: dict[str, tuple[int, ...]]) -> float:
        """Add planes as long as one fits, and return their worth."""
        won = 0.0
        while fitting := {n: p for n, p in self._wider(scheme).items() if self._fits({**scheme, n: p})}:
            # Where nothing says what a second plane is worth, layers with one come first, small ones first.
            keys = {
                name: (len(planes) == 2 and not self._worth(name, planes),
                       self._worth(name, planes) / self._difference(scheme, name, planes),
                       -self._difference(scheme, name, planes))
                for name, planes in fitting.items()
            }  # fmt: skip
            name = max(fitting, key=keys.__getitem__)
            won += self._worth(name, fitting[name])
            scheme[name] = fitting[name]
        return won

    def trades(self, scheme: Scheme) -> Iterator[tuple[dict[str, tuple[int, ...]], float]]:
        """Yield, for each layer that can take a plane, the scheme in which others make room, and what that wins."""
        for name, planes in self._wider(scheme).items():
            changed = {**scheme, name: planes}
            lost = self.drop(changed, but=name)
            if lost is not None:
                yield changed, self._worth(name, planes) - lost + self.fill(changed)

    def best_trade(self, scheme: Scheme) -> dict[str, tuple[int, ...]] | None:
        """Return the scheme behind the trade that wins most, None if none wins."""
        changed, won = max(self.trades(scheme), key=lambda trade: trade[1], default=(None, 0.0))
        return changed if won > MIN_GAIN else None

    def _wider(self, scheme: Scheme) -> dict[str, tuple[int, ...]]:
        limits = self._budget.max_planes
        return {name: one_more(p, limits[name]) for name, p in scheme.items() if len(p) < limits[name]}

    def _fits(self, scheme: Scheme) -> bool:
        return self._budget.cost(scheme) <= self._budget.limit


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


def integers_at(weight: Tensor, planes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return a weight's integers (float32) at given planes, and their scale: the one with the least squared error."""
    levels = Levels([b - planes[0] for b in planes])
    scale = levels.fit_scale(weight)
    return levels.project(weight, scale), scale


def round_to(weight: Tensor, planes: tuple[int, ...]) -> Tensor:
    """Return a weight rounded to given planes."""
    q, scale = integers_at(weight, planes)
    return q * scale
