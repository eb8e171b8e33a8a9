"""The budget of a search: what a scheme costs, and what it may cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from csqtool.errors import ConfigError
from csqtool.search.config import SearchConfig
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
        least, most: planes a layer must and may keep, by parameter name.
        limit: the largest cost allowed.
        unit: what is counted. ``elements``: precision, weighted by elements. ``layers``: its plain mean over
            layers (the CSQ paper's compression rates count so). ``bytes``: bytes of the dense packed file.
        fixed_bytes: bytes of the packed file that no plane changes; only for the unit ``bytes``.
    """

    elements: Mapping[str, int]
    least: Mapping[str, int]
    most: Mapping[str, int]
    limit: float
    unit: str = "elements"
    fixed_bytes: int = 0

    def __post_init__(self) -> None:
        smallest = self.cost({name: uniform(bits) for name, bits in self.least.items()})
        if smallest > self.limit:
            raise ConfigError(
                f"the budget of {self.describe(self.limit)} cannot be met: the least that the layers and pins allow "
                f"is {self.describe(smallest)}"
            )

    @property
    def weights(self) -> dict[str, float]:
        """What one plane of a layer adds to the average precision."""
        if self.unit == "layers":
            return dict.fromkeys(self.elements, 1 / len(self.elements))
        total = sum(self.elements.values())
        return {name: count / total for name, count in self.elements.items()}

    @property
    def target_bits(self) -> float:
        """The average precision that uses the budget up, assuming masks without holes."""
        if self.unit != "bytes":
            return self.limit
        return (self.limit - self.fixed_bytes) * 8 / sum(self.elements.values()) - 1

    def cost(self, scheme: Scheme) -> float:
        """Return what a scheme costs: planes a weight, or bytes."""
        if self.unit == "bytes":
            return self.fixed_bytes + sum(_dense_bytes(self.elements[n], deployed_bits(p)) for n, p in scheme.items())
        return self.average({name: len(planes) for name, planes in scheme.items()})

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


def _dense_bytes(elements: int, bits: int) -> int:
    return math.ceil(elements * bits / 64) * 8  # aligned to eight bytes in the file


def make_budget(config: SearchConfig, elements: Mapping[str, int], fixed_bytes: int | None = None) -> Budget:
    """Return the budget that a configuration asks for.

    Args:
        config: the settings.
        elements: number of weights a layer, by parameter name.
        fixed_bytes: what a packed file takes beside its packed integers, when the target is a size.

    Raises:
        ConfigError: a pattern matches no layer, or the target is below the least or above the most that a scheme takes.
    """
    most = dict.fromkeys(elements, min(config.planes, config.max_bits))
    least = dict.fromkeys(elements, config.min_bits)
    for pattern, bits in config.pin.items():
        matching = [name for name in elements if fnmatchcase(name, pattern)]
        if not matching:
            raise ConfigError(f"pin {pattern!r} matches no quantized layer; the layers are {', '.join(elements)}")
        most |= dict.fromkeys(matching, bits)
        least |= dict.fromkeys(matching, bits)
    if config.target_size is not None:
        assert fixed_bytes is not None
        return Budget(elements, least, most, parse_size(config.target_size), "bytes", fixed_bytes)
    assert config.target_bits is not None
    budget = Budget(elements, least, most, config.target_bits, config.budget_weighting)
    largest = budget.cost({name: uniform(bits) for name, bits in most.items()})
    if largest < config.target_bits:
        raise ConfigError(
            f"the target of {budget.describe(config.target_bits)} cannot be met: the layers and pins allow at most "
            f"{budget.describe(largest)}; lower the target or raise --max-bits"
        )
    return budget


def uniform_scheme(budget: Budget, *, method: str) -> dict[str, tuple[int, ...]]:
    """Return the largest scheme within the budget that gives every layer the same planes, pins aside.

    Raises:
        ConfigError: the budget asks for a broken number of planes, which a uniform method cannot give.
    """
    if budget.unit != "bytes" and budget.limit != int(budget.limit):
        raise ConfigError(f"{method} gives every layer the same bits: target bits must be whole, got {budget.limit:g}")

    def scheme(bits: int) -> dict[str, tuple[int, ...]]:
        return {name: uniform(min(max(bits, budget.least[name]), most)) for name, most in budget.most.items()}

    fitting = [bits for bits in range(1, 9) if budget.cost(scheme(bits)) <= budget.limit]
    return scheme(max(fitting, default=1))
