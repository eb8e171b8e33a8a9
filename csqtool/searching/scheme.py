"""Changes the planes that a search found so that they meet the budget, by measured loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from csqtool.nn.levels import Levels
from csqtool.searching.budget import Budget, Scheme
from csqtool.searching.measured_losses import MeasuredLoss, measured_anew

# Returns the loss with one layer rounded to the given planes, the others unchanged.
LossWith = Callable[[str, tuple[int, ...]], float]
# One more plane divides the squared rounding error, and so roughly the loss that it causes, by four.
NEXT_PLANE_GAIN = 0.25
MIN_GAIN = 1e-6  # of loss; a smaller gain of a trade is rounding noise
SPARE_PLANES = 2  # by which an allotment begins above the budget's average: more is hardly ever kept


def close_holes(exponents: tuple[int, ...]) -> tuple[int, ...]:
    """Return as many contiguous planes: the integers need fewer bits, at the same precision."""
    first = max(0, exponents[-1] + 1 - len(exponents))
    return tuple(range(first, first + len(exponents)))


def one_fewer(exponents: tuple[int, ...]) -> tuple[int, ...]:
    """Return the planes without the lowest."""
    return exponents[1:]


def one_more(exponents: tuple[int, ...], max_planes: int) -> tuple[int, ...]:
    """Return the planes with one more: below the lowest, else in the highest hole, else above the highest."""
    if exponents[0] > 0:
        added = exponents[0] - 1
    else:
        holes = [b for b in range(exponents[-1]) if b not in exponents]
        added = holes[-1] if holes else exponents[-1] + 1
    assert added < max_planes
    return tuple(sorted((*exponents, added)))


def begin_with(budget: Budget) -> dict[str, tuple[int, ...]]:
    """Return more planes in each layer than the budget has on average."""
    return budget.uniform(math.ceil(budget.target_bits) + SPARE_PLANES)


def allotted(budget: Budget, *, loss_with: LossWith) -> dict[str, tuple[int, ...]]:
    """Return the planes that `settle` leaves of those that an allotment begins with."""
    return settle(begin_with(budget), budget, loss_with=loss_with)


def settle(found: Scheme, budget: Budget, *, loss_with: LossWith) -> dict[str, tuple[int, ...]]:
    """Drop, add and trade planes until the budget is met: never exceeded, and used as far as possible.

    The benefit of a plane is measured: by how much a layer's lowest plane lowers the loss. Four steps follow:

    1. While the budget is exceeded, the plane with the smallest benefit for its cost is dropped.
    2. While another plane fits, the one with the largest benefit for its cost is added.
    3. Planes are traded while one has more benefit than the planes that are dropped to make room for it.
    4. While more than the budget's tolerance is unused, planes are traded to use more of it.

    Args:
        found: the planes that the search kept.
        budget: the limit on their cost.
        loss_with: measures the loss with one layer changed.

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
    """Drop planes until the budget is met, as the first step of `settle` does."""
    scheme = dict(found)
    _Repair(budget, loss_with).drop(scheme)
    return scheme


class _Repair:
    """The steps of `settle`."""

    def __init__(self, budget: Budget, loss_with: LossWith) -> None:
        self._budget = budget
        self._loss_with = loss_with
        self._measured: dict[tuple[str, tuple[int, ...]], float] = {}

    def _loss(self, name: str, exponents: tuple[int, ...]) -> float:
        """Return the measured loss with a layer at these planes; only the distances between them matter."""
        key = name, tuple(b - exponents[0] for b in exponents)
        if key not in self._measured:
            self._measured[key] = self._loss_with(*key)
        return self._measured[key]

    def _benefit(self, name: str, exponents: tuple[int, ...]) -> float:
        """Return the benefit of a layer's lowest plane: by how much it lowers the loss.

        Weights that are already rounded to fewer planes cannot show it. So it counts as at least a quarter of the
        benefit of the next higher plane.
        """
        fewer = one_fewer(exponents)
        if not fewer:
            return torch.inf
        benefit = self._loss(name, fewer) - self._loss(name, exponents)
        if one_fewer(fewer):
            benefit = max(benefit, NEXT_PLANE_GAIN * (self._loss(name, one_fewer(fewer)) - self._loss(name, fewer)))
        return max(benefit, 0.0)

    def _difference(self, scheme: Scheme, name: str, exponents: tuple[int, ...]) -> float:
        """Return by how much the cost changes with a layer's planes, never zero."""
        return max(abs(self._budget.cost(scheme) - self._budget.cost({**scheme, name: exponents})), 1e-12)

    def drop(self, scheme: dict[str, tuple[int, ...]], *, but: str | None = None) -> float | None:
        """Drop planes until the budget is met.

        Args:
            scheme: is changed.
            but: a layer that keeps its planes.

        Returns:
            The summed benefit of the dropped planes; None if the budget cannot be met.
        """
        budget, lost = self._budget, 0.0
        while budget.cost(scheme) > budget.limit:
            able = [
                name for name, exponents in scheme.items() if len(exponents) > budget.min_planes[name] and name != but
            ]
            if not able:
                return None
            prices = {
                name: self._benefit(name, scheme[name]) / self._difference(scheme, name, one_fewer(scheme[name]))
                for name in able
            }
            name = min(able, key=prices.__getitem__)
            lost += self._benefit(name, scheme[name])
            scheme[name] = one_fewer(scheme[name])
        return lost

    def fill(self, scheme: dict[str, tuple[int, ...]]) -> float:
        """Add planes to `scheme` while one fits, and return their summed benefit."""
        gained = 0.0
        while fitting := {n: p for n, p in self._wider(scheme).items() if self._fits({**scheme, n: p})}:
            # If the benefit of a second plane is unknown, layers with one plane come first, the smallest before others.
            keys = {
                name: (len(exponents) == 2 and not self._benefit(name, exponents),
                       self._benefit(name, exponents) / self._difference(scheme, name, exponents),
                       -self._difference(scheme, name, exponents))
                for name, exponents in fitting.items()
            }  # fmt: skip
            name = max(fitting, key=keys.__getitem__)
            gained += self._benefit(name, fitting[name])
            scheme[name] = fitting[name]
        return gained

    def trades(self, scheme: Scheme) -> Iterator[tuple[dict[str, tuple[int, ...]], float]]:
        """Yield a scheme for each layer that can take a plane, for which others lose theirs, and the net benefit."""
        for name, exponents in self._wider(scheme).items():
            changed = {**scheme, name: exponents}
            lost = self.drop(changed, but=name)
            if lost is not None:
                yield changed, self._benefit(name, exponents) - lost + self.fill(changed)

    def best_trade(self, scheme: Scheme) -> dict[str, tuple[int, ...]] | None:
        """Return the scheme after the trade with the largest net benefit; None if no trade has one."""
        changed, gained = max(self.trades(scheme), key=lambda trade: trade[1], default=(None, 0.0))
        return changed if gained > MIN_GAIN else None

    def _wider(self, scheme: Scheme) -> dict[str, tuple[int, ...]]:
        limits = self._budget.max_planes
        return {name: one_more(p, limits[name]) for name, p in scheme.items() if len(p) < limits[name]}

    def _fits(self, scheme: Scheme) -> bool:
        return self._budget.cost(scheme) <= self._budget.limit


class LossProbe:
    """Measures the loss of a plain module with one weight rounded to given planes.

    Args:
        parameters: the weights, by name.
        loss: returns the module's loss with its present weights.
        measured: measures a loss, or knows it.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        loss: Callable[[], float],
        measured: MeasuredLoss = measured_anew,
    ) -> None:
        self._parameters = parameters
        self._loss = loss
        self._measured = measured

    @torch.no_grad()
    def __call__(self, name: str, exponents: tuple[int, ...]) -> float:
        """Return the loss; the weight is restored."""
        return self._measured(f"{name} at {exponents}", lambda: self._with(name, exponents))

    @torch.no_grad()
    def of_scheme(self, scheme: Scheme) -> float:
        """Return the loss with all weights rounded to their planes; they are restored."""
        return self._measured(f"all at {sorted(scheme.items())}", lambda: self._with_all(scheme))

    def _with(self, name: str, exponents: tuple[int, ...]) -> float:
        with rounded(self._parameters[name], exponents):
            return self._loss()

    def _with_all(self, scheme: Scheme) -> float:
        before = {name: parameter.data for name, parameter in self._parameters.items()}
        for name, parameter in self._parameters.items():
            parameter.data = round_to(parameter.data, scheme[name])
        try:
            return self._loss()
        finally:
            for name, parameter in self._parameters.items():
                parameter.data = before[name]


@contextmanager
def rounded(parameter: nn.Parameter, exponents: tuple[int, ...]) -> Iterator[None]:
    """Round a weight to given planes until the block ends."""
    before = parameter.data
    parameter.data = round_to(before, exponents)
    try:
        yield
    finally:
        parameter.data = before


def integers_at(weight: Tensor, exponents: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return a weight's integers (float32) at given planes, and the scale with the least squared error."""
    levels = Levels([b - exponents[0] for b in exponents])
    scale = levels.fit_scale(weight)
    return levels.project(weight, scale), scale


def round_to(weight: Tensor, exponents: tuple[int, ...]) -> Tensor:
    """Return a weight rounded to given planes."""
    q, scale = integers_at(weight, exponents)
    return q * scale
