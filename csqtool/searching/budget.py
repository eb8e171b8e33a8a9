"""The budget of a search: what a scheme costs, and what it may cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

import numpy as np

from csqtool.errors import ConfigError
from csqtool.searching.config import SearchConfig
from csqtool.text import parse_size

# The planes that each layer keeps, ascending, by parameter name: what a search looks for.
Scheme = Mapping[str, tuple[int, ...]]


def uniform(bits: int) -> tuple[int, ...]:
    """Return `bits` contiguous planes."""
    return tuple(range(bits))


def deployed_bits(planes: tuple[int, ...]) -> int:
    """Return the two's-complement bits of a layer's integers: the span of its planes, and the sign."""
    return planes[-1] - planes[0] + 2


@dataclass(frozen=True)
class Budget:
    """How many planes all layers may keep together.

    Attributes:
        elements: number of weights a layer, by parameter name.
        min_planes, max_planes: how many planes a layer must and may keep, by parameter name.
        limit: the largest cost allowed.
        unit: what is counted. ``elements``: precision, weighted by elements. ``layers``: its plain mean over
            layers (the CSQ paper's compression rates count so). ``bytes``: bytes of the packed file.
        fixed_bytes: bytes of the packed file that no plane changes; only for the unit ``bytes``.
        layer_bytes: returns the bytes that a layer's integers take at given planes; likewise. They change with the
            weights: `max_bytes` is what they never exceed, and what is taken where this is not given.
    """

    elements: Mapping[str, int]
    min_planes: Mapping[str, int]
    max_planes: Mapping[str, int]
    limit: float
    unit: str = "elements"
    fixed_bytes: int = 0
    layer_bytes: Callable[[str, tuple[int, ...]], int] | None = None

    def __post_init__(self) -> None:
        cheapest = {name: uniform(bits) for name, bits in self.min_planes.items()}
        min_cost = self.cost(cheapest) if self.unit != "bytes" else self.fixed_bytes + self._max_bytes(cheapest)
        if min_cost > self.limit:
            raise ConfigError(
                f"the budget of {self.describe(self.limit)} cannot be met: the least that the layers and pins allow "
                f"is {self.describe(min_cost)}"
            )

    @property
    def weights(self) -> dict[str, float]:
        """What one plane of a layer adds to the average precision."""
        if self.unit == "layers":
            return dict.fromkeys(self.elements, 1 / len(self.elements))
        total = sum(self.elements.values())
        return {name: count / total for name, count in self.elements.items()}

    @cached_property
    def target_bits(self) -> float:
        """The average precision that uses the budget up; of bytes, as uniform precisions would use it."""
        if self.unit != "bytes":
            return self.limit
        schemes = [self.uniform(bits) for bits in range(1, 9)]
        averages = [self.average({name: len(planes) for name, planes in scheme.items()}) for scheme in schemes]
        return float(np.interp(self.limit, [self.cost(scheme) for scheme in schemes], averages))

    def uniform(self, bits: int) -> dict[str, tuple[int, ...]]:
        """Return the scheme of as many planes in every layer, within each layer's bounds."""
        return {name: uniform(min(max(bits, self.min_planes[name]), high)) for name, high in self.max_planes.items()}

    def cost(self, scheme: Scheme) -> float:
        """Return what a scheme costs: planes a weight, or bytes."""
        if self.unit != "bytes":
            return self.average({name: len(planes) for name, planes in scheme.items()})
        if self.layer_bytes is None:
            return self.fixed_bytes + self._max_bytes(scheme)
        return self.fixed_bytes + sum(self.layer_bytes(name, planes) for name, planes in scheme.items())

    def _max_bytes(self, scheme: Scheme) -> int:
        return sum(max_bytes(self.elements[name], planes) for name, planes in scheme.items())

    def average(self, precisions: Mapping[str, int]) -> float:
        """Return the average precision, in planes a weight."""
        # Whole numbers are added up and divided once: a budget of 2 is met by 2 planes everywhere, exactly.
        counted = self.elements if self.unit != "layers" else dict.fromkeys(self.elements, 1)
        return sum(counted[name] * bits for name, bits in precisions.items()) / sum(counted.values())

    def cost_left(self, scheme: Scheme) -> float:
        """Return how far a scheme stays below the limit."""
        return self.limit - self.cost(scheme)

    @property
    def tolerance(self) -> float:
        """How far below the limit counts as met: 0.02 planes a weight (or a layer)."""
        return 0.02 if self.unit != "bytes" else 0.02 * sum(self.elements.values()) / 8

    def describe(self, cost: float) -> str:
        """Return a cost with its unit."""
        if self.unit == "bytes":
            return f"{cost:,.0f} bytes"
        return f"{cost:.4g} planes a {'weight' if self.unit == 'elements' else 'layer'}"


def max_bytes(elements: int, planes: tuple[int, ...]) -> int:
    """Return what integers of given planes take at most in the packed file: five ternary ones a byte, others densely.

    The smallest encoding, which the file takes, is never larger; tensors are aligned to eight bytes.
    """
    taken = elements / 5 if len(planes) == 1 else elements * deployed_bits(planes) / 8
    return math.ceil(taken / 8) * 8


def make_budget(config: SearchConfig, elements: Mapping[str, int], fixed_bytes: int | None = None) -> Budget:
    """Return the budget that a configuration asks for.

    Args:
        config: the settings.
        elements: number of weights a layer, by parameter name.
        fixed_bytes: what a packed file takes beside its packed integers, when the target is a size.

    Raises:
        ConfigError: a pattern matches no layer, or the target is below the least or above the most that a scheme takes.
    """
    max_planes = dict.fromkeys(elements, min(config.planes, config.max_bits))
    min_planes = dict.fromkeys(elements, config.min_bits)
    for pattern, bits in config.pin.items():
        matching = [name for name in elements if fnmatchcase(name, pattern)]
        if not matching:
            raise ConfigError(f"pin {pattern!r} matches no quantized layer; the layers are {', '.join(elements)}")
        max_planes |= dict.fromkeys(matching, bits)
        min_planes |= dict.fromkeys(matching, bits)
    if config.target_size is not None:
        assert fixed_bytes is not None
        return Budget(elements, min_planes, max_planes, parse_size(config.target_size), "bytes", fixed_bytes)
    assert config.target_bits is not None
    budget = Budget(elements, min_planes, max_planes, config.target_bits, config.budget_weighting)
    max_cost = budget.cost({name: uniform(bits) for name, bits in max_planes.items()})
    if max_cost < config.target_bits:
        raise ConfigError(
            f"the target of {budget.describe(config.target_bits)} cannot be met: the layers and pins allow at most "
            f"{budget.describe(max_cost)}; lower the target or raise --max-bits"
        )
    return budget


def uniform_scheme(budget: Budget, *, method: str) -> dict[str, tuple[int, ...]]:
    """Return the largest scheme within the budget that gives every layer the same planes, pins aside.

    Raises:
        ConfigError: the budget asks for a broken number of planes, which a uniform method cannot give.
    """
    if budget.unit != "bytes" and budget.limit != int(budget.limit):
        raise ConfigError(f"{method} gives every layer the same bits: target bits must be whole, got {budget.limit:g}")

    fitting = [bits for bits in range(1, 9) if budget.cost(budget.uniform(bits)) <= budget.limit]
    return budget.uniform(max(fitting, default=1))
