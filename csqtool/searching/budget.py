"""The budget of a search: the cost of a scheme and its limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property

import numpy as np

from csqtool.errors import ConfigError
from csqtool.searching.config import SearchConfig
from csqtool.text import operations, parse_operations, parse_size

# The planes that each layer keeps, ascending, by parameter name.
Scheme = Mapping[str, tuple[int, ...]]
BYTES_OF_ZEROS = 16  # of a layer's integers in the packed file, at most, if all of them are zero


def uniform(bits: int) -> tuple[int, ...]:
    """Return the `bits` lowest planes."""
    return tuple(range(bits))


def deployed_bits(exponents: tuple[int, ...]) -> int:
    """Return the two's-complement bits of a layer's integers: the span of its planes and a sign bit."""
    return exponents[-1] - exponents[0] + 2


@dataclass(frozen=True)
class Budget:
    """The limit on the planes, bytes or bit operations of all layers together.

    Attributes:
        elements: number of weights a layer, by parameter name.
        min_planes, max_planes: how many planes a layer must and may keep, by parameter name.
        limit: the largest cost allowed.
        unit: the unit of cost. ``elements``: average precision, weighted by elements. ``layers``: its plain mean over
            layers, as in the CSQ paper's compression rates. ``bytes``: bytes of the packed file. ``bops``: bit
            operations of a sample, multiplications × bits of the weight × bits of its input.
        fixed_bytes: bytes of the packed file that do not depend on planes; only for the unit ``bytes``.
        layer_bytes: returns the bytes of a layer's integers at given planes; only for the unit ``bytes``. They depend
            on the weights; without it, the upper bound `max_bytes` is used.
        bit_operations: of each layer for each bit of its weights; only for the unit ``bops``.
        reaches_zero: whether training can make integers take as few bytes as wanted, down to none but zeros.
    """

    elements: Mapping[str, int]
    min_planes: Mapping[str, int]
    max_planes: Mapping[str, int]
    limit: float
    unit: str = "elements"
    fixed_bytes: int = 0
    layer_bytes: Callable[[str, tuple[int, ...]], int] | None = None
    bit_operations: Mapping[str, int] = field(default_factory=dict)
    reaches_zero: bool = False

    def __post_init__(self) -> None:
        cheapest = {name: uniform(bits) for name, bits in self.min_planes.items()}
        if self.unit != "bytes":
            min_cost = self.cost(cheapest)
        else:
            integers = BYTES_OF_ZEROS * len(cheapest) if self.reaches_zero else self._max_bytes(cheapest)
            min_cost = self.fixed_bytes + integers
        if min_cost > self.limit:
            raise ConfigError(
                f"the budget of {self.describe(self.limit)} cannot be met: the least that the layers and pins allow "
                f"is {self.describe(min_cost)}"
            )

    @property
    def weights(self) -> dict[str, float]:
        """By how much one plane of a layer raises the average precision, by parameter name."""
        if self.unit == "layers":
            return dict.fromkeys(self.elements, 1 / len(self.elements))
        total = sum(self.elements.values())
        return {name: count / total for name, count in self.elements.items()}

    @cached_property
    def target_bits(self) -> float:
        """The average precision that uses up the budget; not of planes, interpolated between uniform schemes."""
        if self.counts_planes:
            return self.limit
        schemes = [self.uniform(bits) for bits in range(1, 9)]
        averages = [self.average({name: len(exponents) for name, exponents in scheme.items()}) for scheme in schemes]
        return float(np.interp(self.limit, [self.cost(scheme) for scheme in schemes], averages))

    @property
    def counts_planes(self) -> bool:
        """Whether the limit is an average of planes."""
        return self.unit in ("elements", "layers")

    def uniform(self, bits: int) -> dict[str, tuple[int, ...]]:
        """Return the scheme with `bits` planes in every layer, within each layer's bounds."""
        return {name: uniform(min(max(bits, self.min_planes[name]), high)) for name, high in self.max_planes.items()}

    def cost(self, scheme: Scheme) -> float:
        """Return the cost of a scheme: planes a weight (or a layer), bytes or bit operations."""
        if self.unit == "bops":
            return sum(self.layer_cost(name, exponents) for name, exponents in scheme.items())
        if self.counts_planes:
            return self.average({name: len(exponents) for name, exponents in scheme.items()})
        if self.layer_bytes is None:
            return self.fixed_bytes + self._max_bytes(scheme)
        return self.fixed_bytes + sum(self.layer_bytes(name, exponents) for name, exponents in scheme.items())

    def layer_cost(self, name: str, exponents: tuple[int, ...]) -> float:
        """Return what a layer adds to a sum that must not exceed `room`, a whole number."""
        if self.unit == "bops":
            return self.bit_operations[name] * deployed_bits(exponents)
        if self.counts_planes:
            return len(exponents) * (1 if self.unit == "layers" else self.elements[name])
        return (
            max_bytes(self.elements[name], exponents) if self.layer_bytes is None else self.layer_bytes(name, exponents)
        )

    @property
    def room(self) -> float:
        """The largest sum of `layer_cost` over all layers within the limit."""
        if not self.counts_planes:
            return self.limit - self.fixed_bytes
        total = len(self.elements) if self.unit == "layers" else sum(self.elements.values())
        whole = math.floor(self.limit * total)
        return whole + 1 if (whole + 1) / total <= self.limit else whole  # the product may be rounded down

    def _max_bytes(self, scheme: Scheme) -> int:
        return sum(max_bytes(self.elements[name], exponents) for name, exponents in scheme.items())

    def average(self, precisions: Mapping[str, int]) -> float:
        """Return the average precision, in planes a weight."""
        # Integers are summed and divided once, so that 2 planes in every layer meet a budget of 2 exactly.
        counted = self.elements if self.unit != "layers" else dict.fromkeys(self.elements, 1)
        return sum(counted[name] * bits for name, bits in precisions.items()) / sum(counted.values())

    def cost_left(self, scheme: Scheme) -> float:
        """Return how far a scheme stays below the limit."""
        return self.limit - self.cost(scheme)

    @property
    def tolerance(self) -> float:
        """How much of the budget may stay unused: 0.02 planes a weight (or a layer)."""
        counted = {"bytes": sum(self.elements.values()) / 8, "bops": sum(self.bit_operations.values())}
        return 0.02 * counted.get(self.unit, 1)

    def describe(self, cost: float) -> str:
        """Return a cost with its unit."""
        if self.unit == "bytes":
            return f"{cost:,.0f} bytes"
        if self.unit == "bops":
            return f"{operations(cost)} bit operations"
        return f"{cost:.4g} planes a {'weight' if self.unit == 'elements' else 'layer'}"


def max_bytes(elements: int, exponents: tuple[int, ...]) -> int:
    """Return an upper bound on the bytes of a layer's integers in the packed file, aligned to eight bytes.

    It is the size of the ternary encoding (five integers a byte) for one plane, of the dense one for more. The file
    uses the smallest encoding, which is never larger.
    """
    taken = elements / 5 if len(exponents) == 1 else elements * deployed_bits(exponents) / 8
    return math.ceil(taken / 8) * 8


def make_budget(
    config: SearchConfig,
    elements: Mapping[str, int],
    fixed_bytes: int | None = None,
    *,
    bit_operations: Mapping[str, int] | None = None,
) -> Budget:
    """Return the budget that a configuration asks for.

    Args:
        config: the settings.
        elements: number of weights a layer, by parameter name.
        fixed_bytes: bytes of the packed file without its integers, if the target is a size.
        bit_operations: of each layer for each bit of its weights, if the target is one of them.

    Raises:
        ConfigError: a pattern matches no layer, or no scheme within the layers' bounds can meet the target.
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
        size = parse_size(config.target_size)
        return Budget(elements, min_planes, max_planes, size, "bytes", fixed_bytes, reaches_zero=config.counts_bytes)
    if config.target_bops is not None:
        assert bit_operations is not None
        limit = parse_operations(config.target_bops)
        return Budget(elements, min_planes, max_planes, limit, "bops", bit_operations=bit_operations)
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
    """Return the largest scheme within the budget that has the same planes in every layer, except for pinned ones.

    Raises:
        ConfigError: the target is a fraction of planes, which a uniform scheme cannot have.
    """
    if budget.counts_planes and budget.limit != int(budget.limit):
        raise ConfigError(f"{method} gives every layer the same bits: target bits must be whole, got {budget.limit:g}")

    fitting = [bits for bits in range(1, 9) if budget.cost(budget.uniform(bits)) <= budget.limit]
    return budget.uniform(max(fitting, default=1))
