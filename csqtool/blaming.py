"""Why accuracy fell: each part's share of the difference between a float network and its finalized model.

Parts of the finalized model are put into the float network one at a time, and taken out of the finalized one one at a
time. A share is the mean of the two, as in the first and the last term of the Shapley value (Shapley, 1953): the
first alone misses errors that add up, the last alone those that another part hides. Weights that were trained together
fit each other and no other network: then the shares do not add up, and the groups say more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from csqtool.data import DataSource, batches_of
from csqtool.documents import Count
from csqtool.errors import ModelError
from csqtool.evaluation import as_float
from csqtool.nn.finalized_net import FrozenActivation
from csqtool.nn.quantized_net import QuantizedNet
from csqtool.nn.reparametrized import fold_parametrizations
from csqtool.progress import Progress, Silent
from csqtool.quantized_model import QuantizedModel
from csqtool.searching.records import Measured
from csqtool.task import Task, main_output, new_metric, value_of
from csqtool.trees import samples, tensors

STATISTICS, TENSORS = "BatchNorm statistics", "biases and other tensors"
ALL_TENSORS, ALL_ACTIVATIONS = "all weights, statistics and tensors", "all activation quantizers"
POWER_FLOOR = 1e-12  # of outputs; below it they are constant
Kind = Literal["weights", "activation", "statistics", "tensors", "group"]


class BlamedPart(msgspec.Struct, frozen=True):
    """One part of the finalized model.

    Attributes:
        name: the quantized parameter, the activation quantizer, `STATISTICS` or `TENSORS`.
        kind: ``weights``, ``activation``, ``statistics`` (BatchNorm's, which are estimated anew) or ``tensors``; of
            several parts at once ``group``.
        change: squared difference from the float network's values over their squares; None for activations and groups.
        drop_alone: how far the metric falls when this part alone is in the float network.
        drop_restored: how far it rises when this part alone is taken out of the finalized model.
        error_alone: the output error of this part alone.
        error_restored: how far the output error falls without it.
        metric_share: mean of both drops over the whole drop; None where the metric did not fall.
        error_share: the same of the output error; None where the outputs are equal.
    """

    name: str
    kind: Kind
    change: Measured | None
    drop_alone: Measured
    drop_restored: Measured
    error_alone: Measured
    error_restored: Measured
    metric_share: Measured | None
    error_share: Measured | None


class BlameReport(msgspec.Struct, frozen=True, tag_field="kind", tag="blame"):
    """Where the accuracy of a finalized model was lost.

    Attributes:
        data: the source's name.
        samples: test samples that everything was measured on.
        metric_name: of the task.
        metric_float: the float network's metric.
        metric: the finalized model's.
        output_error: squared error of its outputs, relative to the variance of the float network's.
        parts: the largest share of the drop first, then of the output error.
        groups: all activation quantizers at once, and all the rest, where there are both.
    """

    data: str
    samples: Count
    metric_name: str
    metric_float: Measured
    metric: Measured
    output_error: Measured
    parts: Annotated[list[BlamedPart], msgspec.Meta(min_length=1)]
    groups: list[BlamedPart]


@dataclass(frozen=True)
class _Part:
    """Tensors that change together, or one activation quantizer (`values` is then empty)."""

    name: str
    kind: Kind
    values: dict[str, Tensor] = field(default_factory=dict)


def blame_model(
    model: QuantizedModel,
    float_module: nn.Module,
    data: DataSource,
    *,
    sample_count: int,
    progress: Progress | None = None,
) -> BlameReport:
    """Measure each part's share of the difference between a float network and its finalized model.

    Args:
        model: the finalized model.
        float_module: the float network; it is changed in place.
        data: of its test set the first samples are read.
        sample_count: how many.
        progress: is told of every part.

    Raises:
        ModelError: the network has not the finalized model's parameters.
    """
    told = progress or Silent()
    mixed = _Mixed(model, float_module, data, sample_count)
    names = frozenset(part.name for part in mixed.parts)
    metric_float, _ = mixed.measured(frozenset())
    metric, error = mixed.measured(names)
    whole = metric_float - metric

    def blamed(name: str, kind: Kind, members: frozenset[str], change: float | None) -> BlamedPart:
        metric_alone, error_alone = mixed.measured(members)
        metric_without, error_without = mixed.measured(names - members)
        drops = metric_float - metric_alone, metric_without - metric
        errors = error_alone, error - error_without
        return BlamedPart(
            name=name, kind=kind, change=change,
            drop_alone=drops[0], drop_restored=drops[1], error_alone=errors[0], error_restored=errors[1],
            metric_share=sum(drops) / 2 / whole if whole > 0 else None,
            error_share=sum(errors) / 2 / error if error > 0 else None,
        )  # fmt: skip

    parts = []
    for number, part in enumerate(mixed.parts, 1):
        parts.append(blamed(part.name, part.kind, frozenset({part.name}), mixed.change(part)))
        told.step("parts", number, len(mixed.parts), {"drop": parts[-1].drop_alone})
    activations = frozenset(part.name for part in mixed.parts if part.kind == "activation")
    groups = [blamed(ALL_TENSORS, "group", names - activations, None)] if activations else []
    groups += [blamed(ALL_ACTIVATIONS, "group", activations, None)] if activations else []
    parts.sort(key=lambda p: (-(p.metric_share or 0.0), -(p.error_share or 0.0)))
    return BlameReport(
        data.name, mixed.count, data.task.metric_name, metric_float, metric, error, parts, groups
    )  # fmt: skip


class _Mixed:
    """A network of which some parts are the finalized model's, and the others the float network's."""

    def __init__(self, model: QuantizedModel, module: nn.Module, data: DataSource, sample_count: int) -> None:
        self.task: Task = data.task
        self.batches = list(batches_of(data.test, max_samples=sample_count))
        self.count = sum(samples(x) for x, _ in self.batches)
        if not self.count:
            raise ModelError(f"{data.part_name('test')} is empty: nothing can be measured")
        fold_parametrizations(module)
        quantizers = []
        for activation in model.activations:
            quantizer = FrozenActivation(activation.name, activation.bits)
            quantizer.scale.data.fill_(float(activation.scale))
            quantizer.set_zero_point(activation.zero_point)
            quantizers.append(quantizer)
        self.net = QuantizedNet(module, list(quantizers)).eval().requires_grad_(False)
        self.state = module.state_dict()
        self.parts = [*_weights(model), *_others(model, module), *(_Part(q.name, "activation") for q in quantizers)]
        for part in self.parts:
            for name, value in part.values.items():
                if name not in self.state or self.state[name].shape != value.shape:
                    raise ModelError(f"the float network has no {name} of shape {list(value.shape)}")
        self.float_values = {n: self.state[n].clone() for part in self.parts for n in part.values}
        self.wanted: list[Any] | None = None

    def change(self, part: _Part) -> float | None:
        """Return how far a part is from the float network's values."""
        if not part.values:
            return None
        pairs = [(self.float_values[name].double(), value.double()) for name, value in part.values.items()]
        power = sum(float(one.square().sum()) for one, _ in pairs)
        return sum(float((one - other).square().sum()) for one, other in pairs) / max(power, POWER_FLOOR)

    @torch.no_grad()
    def measured(self, finalized: Collection[str]) -> tuple[float, float]:
        """Return metric and output error with these parts from the finalized model; the first call has to name none."""
        for part in self.parts:
            for name, value in part.values.items():
                self.state[name].copy_(value if part.name in finalized else self.float_values[name])
        quantizers = self.net.quantizers

        def observe(name: str, value: Tensor) -> Tensor:
            found: Tensor = quantizers[name](value) if name in finalized else value
            return found

        outputs = [main_output(as_float(self.net.observed(x, observe)), self.task) for x, _ in self.batches]
        metric = new_metric(self.task)
        for found, (_, y) in zip(outputs, self.batches, strict=True):
            metric.update(found, y)
        if self.wanted is None:
            self.wanted = outputs
        return value_of(metric), _relative_error(outputs, self.wanted)


def _relative_error(found: list[Any], wanted: list[Any]) -> float:
    """Return the squared error of outputs, relative to their variance over the samples."""
    error = power = 0.0
    for position, columns in enumerate(zip(*(list(tensors(one)) for one in wanted), strict=True)):
        whole = torch.cat([column.double() for column in columns])
        other = torch.cat([list(tensors(one))[position].double() for one in found])
        error += float((other - whole).square().sum())
        power += float((whole - whole.mean(0)).square().sum())
    return error / max(power, POWER_FLOOR)


def _weights(model: QuantizedModel) -> list[_Part]:
    aliases: dict[str, list[str]] = {}
    for alias, name in model.tied.items():
        aliases.setdefault(name, []).append(alias)
    return [
        _Part(layer.name, "weights",
              dict.fromkeys([layer.name, *aliases.get(layer.name, [])], torch.from_numpy(layer.dequantized())))
        for layer in model.layers
    ]  # fmt: skip


def _others(model: QuantizedModel, module: nn.Module) -> list[_Part]:
    norms = [name for name, one in module.named_modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    statistics = {f"{norm}.{kind}" for norm in norms for kind in ("running_mean", "running_var")}
    values = {name: torch.from_numpy(np.array(tensor)) for name, tensor in model.tensors.items()}

    def chosen(holds: Callable[[str], bool]) -> Mapping[str, Tensor]:
        return {n: v for n, v in values.items() if v.is_floating_point() and holds(n)}

    parts = [
        _Part(STATISTICS, "statistics", dict(chosen(lambda name: name in statistics))),
        _Part(TENSORS, "tensors", dict(chosen(lambda name: name not in statistics))),
    ]
    return [part for part in parts if part.values]
