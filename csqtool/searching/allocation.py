"""Allocators: which planes each layer keeps, found from the float model; a trainer then trains at that scheme."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from csqtool.data import DataSource, batches_of, training_batches
from csqtool.errors import ConfigError
from csqtool.evaluation import as_float, laid_out
from csqtool.nn.modes import evaluating
from csqtool.progress import Progress
from csqtool.randomness import hash_seed, seed_all
from csqtool.searching.budget import Budget, Scheme, uniform
from csqtool.searching.config import SearchConfig
from csqtool.searching.integer_program import Choices, least_harm
from csqtool.searching.network import Network
from csqtool.searching.options import ALLOCATORS, AllocatorOptions, Options
from csqtool.searching.records import AllocationRecord, Harm, LayerHarms
from csqtool.searching.scheme import LossProbe, round_to
from csqtool.task import main_output
from csqtool.trees import call, mapped, samples

BATCH = 128
LARGEST_RECORDED = 1e300
Planes = dict[str, tuple[int, ...]]
# What each number of planes costs in quality, by layer; only differences within and ratios between layers matter.
Harms = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Allocation:
    """What an allocator is constructed with.

    Attributes:
        network: the float network: `model` without, `net` with calibrated activation quantizers; weights are plain.
        data: training data and task.
        device: that the network is on.
        config: the general settings.
        options: the allocator's own, an instance of its `Options`.
        budget: the limit on the scheme's cost.
        probe: returns a function that measures the loss on so many training samples with one weight rounded.
        progress: is told of every step.
    """

    network: Network
    data: DataSource
    device: torch.device
    config: SearchConfig
    options: Options
    budget: Budget
    probe: Callable[[int], LossProbe]
    progress: Progress

    def training_batches(self, stage: str, steps: int) -> Iterator[tuple[Any, Any]]:
        """Yield so many training batches on the device, epoch after epoch; each is preceded by a seed of its own.

        Args:
            stage: what they are for, on which their order depends.
            steps: how many.
        """
        done, epoch = 0, 0
        batches = training_batches(self.data, batch_size=self.config.batch_size, seed=self.config.seed)
        while done < steps:
            for x, y in batches.epoch(stage, epoch):
                if done == steps:
                    return
                seed_all(hash_seed(self.config.seed, stage, done))  # for dropout
                done += 1
                inputs = laid_out(x, self.device, channels_last=bool(self.config.channels_last))
                yield inputs, mapped(y, lambda tensor: tensor.to(self.device))
            epoch += 1


@dataclass(frozen=True)
class Findings:
    """What an allocator found out about each layer.

    Attributes:
        harm: what `harms` are.
        harms: by layer and planes; those that were looked at.
        sensitivity: what `sensitivities` are; may be empty.
        sensitivities: by layer.
    """

    harm: str
    harms: Harms
    sensitivity: str = ""
    sensitivities: Mapping[str, float] = field(default_factory=dict)

    def record(self, allocator: str, scheme: Scheme, elements: Mapping[str, int]) -> AllocationRecord:
        """Return the record for the run directory; figures that are not finite are left out.

        Args:
            allocator: its name.
            scheme: the planes that it allotted.
            elements: number of weights of each layer.
        """
        layers = []
        for name, planes in scheme.items():
            harms = sorted(self.harms.get(name, {}).items())
            kept = [Harm(k, harm) for k, harm in harms if abs(harm) <= LARGEST_RECORDED]
            sensitivity = self.sensitivities.get(name, math.nan)
            known = sensitivity if abs(sensitivity) <= LARGEST_RECORDED else None
            layers.append(LayerHarms(name, elements[name], len(planes), known, kept))
        return AllocationRecord(allocator, self.sensitivity or None, self.harm, layers)


class Allocator(Protocol):
    """Finds a scheme. Register the class under the entry point group ``csqtool.allocators``.

    ``Allocator(allocation)`` is asked for its `scheme` once, and leaves the network as it was. `BaseAllocator` has what
    most allocators need: they say how much harm each number of planes does to each layer. `SchemeAllocator` is for
    those that judge schemes as a whole.

    Attributes:
        description: one line for ``csqtool methods``.
        data: what it needs: ``none``, ``unlabelled`` or ``labelled`` data.
        Options: a frozen dataclass of its own options, as a method's.
    """

    description: ClassVar[str]
    data: ClassVar[str]
    Options: ClassVar[type[Options]]

    def __init__(self, allocation: Allocation) -> None: ...

    def scheme(self) -> Planes:
        """Return the planes of each layer, ascending, within the budget and within each layer's bounds."""
        ...


class SchemeAllocator(ABC):
    """An allocator that judges schemes as a whole, by what this class has for all allocators.

    Attributes:
        given: what it was constructed with.
        generator: of all its random numbers.
        requires: a package that it imports, which the extra of the allocator's name installs.
    """

    description: ClassVar[str]
    data: ClassVar[str] = "labelled"
    Options: ClassVar[type[Options]] = AllocatorOptions
    requires: ClassVar[str] = ""

    def __init__(self, allocation: Allocation) -> None:
        self.given = allocation
        self.generator = torch.Generator().manual_seed(allocation.config.seed)

    @abstractmethod
    def scheme(self) -> Planes:
        """Return the planes of each layer, ascending, within the budget and within each layer's bounds."""

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The float weights."""
        return self.given.network.parameters

    def choices(self, name: str) -> range:
        """Return the numbers of planes that a layer may keep."""
        return choices(self.given.budget, name)

    def batches(self) -> list[tuple[Any, Any]]:
        """Return the first training samples and targets, in batches on the device."""
        given = self.given
        assert isinstance(given.options, AllocatorOptions)
        return [
            (laid_out(x, given.device, channels_last=False), mapped(y, lambda t: t.to(given.device)))
            for x, y in batches_of(given.data.train, max_samples=given.options.allocation_samples, size=BATCH)
        ]

    def outputs(self, inputs: Any) -> Any:
        """Return what the task judges of the float model's outputs, with a graph of any order of derivatives."""
        with evaluating(self.given.network.model), sdpa_kernel(SDPBackend.MATH):
            return main_output(as_float(call(self.given.network.model, inputs)), self.given.data.task)

    def losses(self, batches: Sequence[tuple[Any, Any]]) -> Iterator[tuple[Tensor, float]]:
        """Yield the loss of each batch with its share of all samples."""
        count = sum(samples(x) for x, _ in batches)
        for x, y in batches:
            yield self.given.data.task.loss(self.outputs(x), y), samples(x) / count


class BaseAllocator(SchemeAllocator):
    """An allocator that says how much harm each number of planes does; the integer program does the rest.

    Attributes:
        harm: what its harms are.
        sensitivity: what `sensitivities` are, if it sets them.
        findings: what it found out, once it has a scheme.
    """

    harm: ClassVar[str] = "harm"
    sensitivity: ClassVar[str] = ""

    def __init__(self, allocation: Allocation) -> None:
        super().__init__(allocation)
        self.findings: Findings | None = None
        self.sensitivities: Mapping[str, float] = {}

    @abstractmethod
    def harms(self) -> Harms:
        """Return the harm of each number of planes that each layer may keep, see `choices`."""

    def scheme(self) -> Planes:
        """Return the scheme of least summed harm within the budget."""
        return self.of_least_harm(self.harms())

    def of_least_harm(self, harms: Harms, *, order: Sequence[str] | None = None) -> Planes:
        """Return the scheme of least summed harm within the budget, see `cheapest`, and keep the findings."""
        self.findings = Findings(self.harm, harms, self.sensitivity, self.sensitivities)
        return cheapest(harms, self.given.budget, order=order)

    def errors(self, name: str) -> dict[int, float]:
        """Return ‖Q(W) − W‖² of a layer at each number of planes it may keep."""
        weight = self.weights[name].detach()
        return {k: float((round_to(weight, uniform(k)) - weight).square().sum()) for k in self.choices(name)}


def allocate(kind: type[Allocator], given: Allocation) -> tuple[Planes, AllocationRecord | None]:
    """Return the scheme that an allocator finds, and the record of what it found out; None if it tells nothing."""
    name = given.config.method
    given.progress.line(f"allocating planes with {name} …")
    allocator = kind(given)
    scheme = allocator.scheme()
    findings: Findings | None = getattr(allocator, "findings", None)
    return scheme, None if findings is None else findings.record(name, scheme, given.budget.elements)


def choices(budget: Budget, name: str) -> range:
    """Return the numbers of planes that a layer may keep."""
    return range(budget.min_planes[name], budget.max_planes[name] + 1)


def cheapest(harms: Harms, budget: Budget, *, order: Sequence[str] | None = None) -> Planes:
    """Return the scheme of least summed harm within the budget.

    Args:
        harms: of each layer at each number of planes that it may keep.
        budget: the limit. If it cannot be met, as with a size below that of one plane, all layers keep their fewest.
        order: all layers; only schemes whose planes never rise along it are considered, but for pinned layers.
    """
    names = list(order or harms)
    layers = [
        Choices([budget.layer_cost(name, uniform(k)) for k in choices(budget, name)],
                [max(harms[name][k], 0.0) for k in choices(budget, name)])
        for name in names
    ]  # fmt: skip
    found = least_harm(layers, budget.room, falling=order is not None)
    if found is None:
        return budget.uniform(1)
    chosen = {name: uniform(choices(budget, name)[index]) for name, index in zip(names, found, strict=True)}
    return {name: chosen[name] for name in harms}


def usable_allocator(name: str) -> type[Allocator]:
    """Return the class of an allocator, once it is sure that what it imports is installed.

    Raises:
        ConfigError: no such allocator is installed, or a package that it needs is missing.
    """
    loaded = load_allocator(name)
    package = getattr(loaded, "requires", "")
    if package and find_spec(package) is None:
        words = package.replace("_", "-")
        raise ConfigError(f"{name} needs {words}: pip install 'csqtool[{name}]'")
    return loaded


def load_allocator(name: str) -> type[Allocator]:
    """Return the class of an allocator.

    Raises:
        ConfigError: no such allocator is installed.
    """
    loaded: type[Allocator] = ALLOCATORS.load(name)
    return loaded
