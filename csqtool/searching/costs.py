"""The cost of a network in the unit of its budget: planes, bytes of the packed file, or bit operations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from torch import Tensor

from csqtool.integers import planes_of
from csqtool.model_info import ModelInfo
from csqtool.nn.latent import LsqWeight
from csqtool.searching.budget import Budget, make_budget, uniform
from csqtool.searching.config import SearchConfig
from csqtool.searching.network import Integers, Network
from csqtool.searching.packed_size import SLACK, PackedSizes, as_trained, fixed_bytes, packed_bytes
from csqtool.searching.records import Summary, average, scheme_of


class Costs:
    """Computes what a network's schemes and integers cost.

    Args:
        network: the network, with its weights as plain parameters.
        config: the settings.
        info: returns the description for the finalized file, with placeholders for metrics that are measured later.

    Attributes:
        budget: the limit.

    Raises:
        ConfigError: the budget cannot be met.
    """

    def __init__(self, network: Network, config: SearchConfig, info: Callable[[], ModelInfo]) -> None:
        self._network = network
        self._config = config
        self._info = info
        self._profile = config.size_profile
        self.budget: Budget = make_budget(
            config, network.elements, self._fixed_bytes(config), bit_operations=network.bit_operations
        )

    @property
    def counts_bytes(self) -> bool:
        """Whether the budget is a size of the packed file."""
        return self.budget.unit == "bytes"

    def _fixed_bytes(self, config: SearchConfig) -> int | None:
        if config.target_size is None:
            return None
        weights = self._network.weights
        latents = {w.name: LsqWeight(w.parameter, uniform(1), n_planes=config.planes) for w in weights}
        integers = {name: latent.integers() for name, latent in latents.items()}
        aliases = [alias for weight in weights for alias in weight.aliases]
        packed = self._network.quantized(integers, self._info())
        return fixed_bytes(as_trained(packed, aliases=aliases), self._profile) + SLACK * len(weights)

    def measure_sizes(self, weights: Callable[[], Mapping[str, Tensor]]) -> None:
        """Make a budget of bytes count the packed size of these weights when they are rounded."""
        if self.counts_bytes:
            self.budget = dataclasses.replace(self.budget, layer_bytes=PackedSizes(weights()))

    def fix_other_bytes(self, integers: Integers) -> None:
        """Make a budget of bytes count the file's other parts as they are in the present network."""
        fixed = fixed_bytes(self._network.quantized(integers, self._info()), self._profile)
        self.budget = dataclasses.replace(self.budget, fixed_bytes=fixed)

    def of(self, integers: Integers) -> float:
        """Return what integers cost, in the budget's unit."""
        if self.counts_bytes:
            return packed_bytes(self._network.quantized(integers, self._info()), self._profile)
        return self.budget.cost({name: planes_of(found.mask) for name, found in integers.items()})

    def summary(
        self,
        integers: Integers,
        *,
        metric_name: str,
        metric_float: float | None,
        metric_soft: float,
        metric_hard: float,
        metric: float,
        seconds: float,
    ) -> Summary:
        """Return the summary of a search that ended with these integers and figures."""
        scheme, config = scheme_of(integers), self._config
        return Summary(
            method=config.method,
            target_bits=config.target_bits,
            target_size=config.target_size,
            target_bops=config.target_bops,
            budget_unit=self.budget.unit,
            budget=self.budget.limit,
            cost=self.of(integers),
            average_precision=average(scheme, "precision"),
            bops=sum(self._network.bit_operations[one.name] * one.bit_width for one in scheme),
            average_bit_width=average(scheme, "bit_width"),
            act_bits=config.act_bits,
            metric_name=metric_name,
            metric_float=metric_float,
            metric_soft=metric_soft,
            metric_hard=metric_hard,
            metric=metric,
            seconds=seconds,
        )
