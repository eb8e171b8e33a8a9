"""The documents of a run directory as typed records: scheme, summary, log and start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated

import msgspec

from csqtool.documents import Count
from csqtool.quantized_model import LayerIntegers, twos_complement_bits

# Bounded, so that the difference of two numbers cannot overflow.
Measured = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]
Amount = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | Measured
Mask = Annotated[str, msgspec.Meta(pattern="^[01]+$", max_length=64)]  # a search has eight planes a layer at most


class Stage(StrEnum):
    """A stage of a search, by its name in ``log.jsonl`` and checkpoints."""

    FLOAT = "float"  # float training; its result is the baseline
    SEARCH = "search"  # weights and planes are trained within the budget
    SETTLE = "settle"  # the scheme is fixed: holes are closed, planes dropped or added until the budget is met
    ALLOCATE = "allocate"  # an allocator has fixed the scheme
    FINETUNE = "finetune"  # the weights are trained further, with the scheme fixed
    TRAIN = "train"  # methods of fixed bits: the planes are given and the weights are trained
    SHRINK = "shrink"  # planes of trained weights are dropped, because the packed file exceeds its target size


class SchemeEntry(msgspec.Struct, frozen=True):
    """One layer of ``scheme.json``.

    Attributes:
        name: the parameter, such as ``conv1.weight``.
        precision: planes kept: the paper's bit count, without sign.
        mask: planes kept, most significant first, such as ``00000111``.
        bit_width: two's-complement bits that the integers need.
        elements: number of weights.
    """

    name: str
    precision: Count
    mask: Mask
    bit_width: Count
    elements: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]


def scheme_of(integers: Mapping[str, LayerIntegers]) -> list[SchemeEntry]:
    """Return the scheme of a network's integers, an entry for each layer."""
    return [
        SchemeEntry(name, found.mask.count("1"), found.mask, twos_complement_bits(found.q), found.q.size)
        for name, found in integers.items()
    ]


def average(scheme: Sequence[SchemeEntry], what: str) -> float:
    """Return a figure of the layers, ``precision`` or ``bit_width``, averaged over weight elements."""
    total = sum(entry.elements for entry in scheme)
    return float(sum(getattr(entry, what) * entry.elements for entry in scheme) / total)


class Summary(msgspec.Struct, frozen=True):
    """``summary.json``: the result of a finished search.

    Attributes:
        method: the search method.
        target_bits, target_size, target_bops: the given target; two of them are None.
        budget_unit: the unit of cost, see `csqtool.searching.budget.Budget`.
        budget: the limit, in that unit.
        cost: the cost of the result, in that unit.
        bops: bit operations of a sample in the quantized layers: multiplications × bits of the weight × bits of its
            input; None in records of before they were counted.
        average_precision, average_bit_width: averaged over weight elements.
        act_bits: bits of the activations that feed weights; None for float.
        metric_name: the name of the task's metric.
        metric_float: the float model's metric; None if it was not measured.
        metric_soft, metric_hard: the metric before and after the gates became unit steps.
        metric: the metric of the result.
        seconds: time that this process spent on it.
    """

    method: str
    target_bits: Amount | None
    target_size: str | None
    budget_unit: Annotated[str, msgspec.Meta(pattern="^(elements|layers|bytes|bops)$")]
    budget: Amount
    cost: Amount
    average_precision: Measured
    average_bit_width: Measured
    act_bits: Count | None
    metric_name: str
    metric_float: Measured | None
    metric_soft: Measured
    metric_hard: Measured
    metric: Measured
    seconds: Measured
    target_bops: str | None = None
    bops: Amount | None = None


class LogEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of ``log.jsonl``: an epoch, or a scheme that was fixed. Figures of other packages' methods are ignored.

    Attributes:
        stage: its name.
        epoch: its number, from 1.
        loss: mean training loss of the epoch.
        metric: the float model's metric; other stages have the next two.
        metric_soft, metric_hard: the metric with soft gates, and with gates as unit steps.
        average_precision: planes a weight.
        precision: planes of each layer.
        beta: gate temperature.
        bits: average precision, as the method counts it.
        start: the weights that finetuning starts from: ``searched``, ``soft`` or ``float``.
        cost_found, cost, limit: cost of the scheme before and after it was fixed, and the budget.
    """

    stage: str
    epoch: Count | None = None
    loss: Measured | None = None
    metric: Measured | None = None
    metric_soft: Measured | None = None
    metric_hard: Measured | None = None
    average_precision: Measured | None = None
    precision: dict[str, Count] | None = None
    beta: Measured | None = None
    bits: Measured | None = None
    start: str | None = None
    cost_found: Measured | None = None
    cost: Measured | None = None
    limit: Measured | None = None


class Harm(msgspec.Struct, frozen=True):
    """What some planes of a layer cost in quality, as an allocator sees it.

    Attributes:
        planes: of the layer.
        harm: in the allocator's own unit.
    """

    planes: Annotated[int, msgspec.Meta(ge=1, le=8)]
    harm: Measured


class LayerHarms(msgspec.Struct, frozen=True):
    """One layer of ``allocation.json``.

    Attributes:
        name: the parameter.
        elements: number of weights.
        precision: planes allotted.
        sensitivity: how sensitive the layer is, whatever its planes; None if the allocator has no such figure.
        harms: an entry for each number of planes that was looked at, ascending.
    """

    name: str
    elements: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
    precision: Count
    sensitivity: Measured | None
    harms: list[Harm]


class AllocationRecord(msgspec.Struct, frozen=True):
    """``allocation.json``: what an allocator found out about each layer.

    Attributes:
        allocator: its name.
        sensitivity: what the layers' sensitivities are; None if there are none.
        harm: what their harms are.
        layers: in the network's order.
    """

    allocator: str
    sensitivity: str | None
    harm: str
    layers: Annotated[list[LayerHarms], msgspec.Meta(min_length=1)]


class StartRecord(msgspec.Struct, frozen=True):
    """``start.json`` of a finetuning run: the run that it continues, and that run's float metric."""

    run: str
    metric_float: Measured | None


class BegunFrom(msgspec.Struct, frozen=True):
    """``begun-from.json`` of a pipeline's search: the inputs that it began with.

    Attributes:
        inputs: digest of the settings, the data and the weights.
        code: path to the SHA-256 of each file of the user's code that was imported, relative to the pipeline's folder.
    """

    inputs: str
    code: dict[str, str]
