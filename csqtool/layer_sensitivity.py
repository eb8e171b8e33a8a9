"""How much each layer's rounding changes a network: one layer at a time, at each number of planes.

Measured figures (loss, output error, divergence of the outputs), and an estimate that does not round at all: the trace
of the loss's second derivative, as HAWQ-V2 uses it (Dong et al., 2020), by Hutchinson's method.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from csqtool.data import DataSource, batches_of
from csqtool.documents import Count
from csqtool.errors import ConfigError
from csqtool.evaluation import as_float, laid_out
from csqtool.files import temporary_folder
from csqtool.model_source import ModelSource
from csqtool.nn.hessian import hutchinson
from csqtool.nn.levels import Levels
from csqtool.nn.modes import evaluating
from csqtool.progress import Progress, Silent
from csqtool.searching.config import SearchConfig
from csqtool.searching.records import Measured
from csqtool.searching.run_directory import RunDirectory
from csqtool.searching.session import Session
from csqtool.searching.start import Start
from csqtool.task import Task, main_output
from csqtool.trees import call, mapped, samples, tensors

BATCH = 128
PLANES = (1, 2, 3, 4)
POWER_FLOOR = 1e-12  # of outputs; below it they are constant


class PlaneError(msgspec.Struct, frozen=True):
    """What rounding one layer to some planes does, with all others in float.

    Attributes:
        planes: of the layer; in two's complement one more bit.
        weight_error: squared error of the weights, relative to their squares.
        output_error: squared error of the network's outputs, relative to their variance.
        divergence: Kullback–Leibler divergence of the class probabilities from the float ones, in nats a sample; None
            for tasks without class labels.
        loss_change: of the task's loss on the samples.
    """

    planes: Count
    weight_error: Measured
    output_error: Measured
    divergence: Measured | None
    loss_change: Measured


class LayerSensitivity(msgspec.Struct, frozen=True):
    """One layer.

    Attributes:
        name: the parameter.
        elements: number of weights.
        trace: of the loss's second derivative with respect to the weights, estimated; None if it was not asked for.
        trace_error: standard error of that estimate.
        errors: an entry for each number of planes, ascending.
    """

    name: str
    elements: Count
    trace: Measured | None
    trace_error: Measured | None
    errors: Annotated[list[PlaneError], msgspec.Meta(min_length=1)]


class SensitivityReport(msgspec.Struct, frozen=True, tag_field="kind", tag="sensitivity"):
    """The sensitivity of every layer that a search would quantize.

    Attributes:
        model: its factory; None for a module.
        data: the source's name.
        samples: training samples that everything was measured on.
        loss: of the float network on them.
        layers: in the network's order.
    """

    model: str | None
    data: str
    samples: Count
    loss: Measured
    layers: Annotated[list[LayerSensitivity], msgspec.Meta(min_length=1)]

    def __post_init__(self) -> None:
        """Check that every layer was rounded to the same numbers of planes."""
        planes = [[one.planes for one in layer.errors] for layer in self.layers]
        if any(one != planes[0] for one in planes):
            raise ValueError(f"layers are rounded to different numbers of planes: {planes[0]} and others")


def measure_sensitivity(
    config: SearchConfig,
    *,
    sample_count: int,
    planes: Sequence[int],
    probes: int,
    data: DataSource | None = None,
    model: ModelSource | None = None,
    progress: Progress | None = None,
) -> SensitivityReport:
    """Measure the sensitivity of every layer.

    Args:
        config: the settings; those of model, data, weights and excluded layers are used.
        sample_count: training samples that are read, without augmentation.
        planes: the numbers of planes, 1 to 8.
        probes: random vectors of Hutchinson's estimate; 0 leaves it out.
        data: training data; None loads the source in the settings.
        model: builds the module; None takes the factory in the settings.
        progress: is told of every layer.

    Raises:
        InputError: model, data or settings cannot be used.
    """
    if not planes or not all(1 <= one <= 8 for one in planes):
        raise ConfigError(f"planes must be numbers from 1 to 8, got {list(planes)}")
    told = progress or Silent()
    with temporary_folder() as folder:
        directory = RunDirectory(folder / "run")
        session = Session(config, directory, Start.of_settings(config), told, model=model, data=data)
        return _Measuring(session, sample_count).report(sorted(set(planes)), probes, told)


class _Measuring:
    """The network and the samples of a measurement."""

    def __init__(self, session: Session, sample_count: int) -> None:
        self.session = session
        self.net = session.network.model.to(session.device)
        self.task: Task = session.data.task
        self.batches = [
            (laid_out(x, session.device, channels_last=False), mapped(y, lambda t: t.to(session.device)))
            for x, y in batches_of(session.data.train, max_samples=sample_count, size=BATCH)
        ]
        self.count = sum(samples(x) for x, _ in self.batches)
        with torch.no_grad(), evaluating(self.net):
            self.wanted = [main_output(as_float(call(self.net, x)), self.task) for x, _ in self.batches]
        self.loss = self._loss(self.wanted)

    def report(self, planes: Sequence[int], probes: int, told: Progress) -> SensitivityReport:
        layers = []
        weights = self.session.network.weights
        traces = self._traces(probes, told) if probes else {}
        for number, weight in enumerate(weights, 1):
            errors = [self._rounded(weight.parameter, one) for one in planes]
            trace, trace_error = traces.get(weight.name, (None, None))
            layers.append(LayerSensitivity(weight.name, weight.elements, trace, trace_error, errors))
            told.step("layers", number, len(weights), {"loss change": errors[0].loss_change})
        source = self.session.data.name
        return SensitivityReport(self.session.config.model, source, self.count, self.loss, layers)

    def _loss(self, outputs: Sequence[Any]) -> float:
        found = [float(self.task.loss(one, y)) * samples(x)
                 for one, (x, y) in zip(outputs, self.batches, strict=True)]  # fmt: skip
        return sum(found) / self.count

    @torch.no_grad()
    def _rounded(self, parameter: nn.Parameter, planes: int) -> PlaneError:
        levels = Levels(range(planes))
        before = parameter.detach().clone()
        scale = levels.fit_scale(before)
        after = levels.project(before, scale) * scale
        with replaced(parameter, after), evaluating(self.net):
            outputs = [main_output(as_float(call(self.net, x)), self.task) for x, _ in self.batches]
        error, power, divergence = 0.0, 0.0, 0.0
        for found, wanted in zip(outputs, self.wanted, strict=True):
            for one, other in zip(tensors(found), tensors(wanted), strict=True):
                error += float((one - other).square().sum())
                power += float((other - other.mean(0)).square().sum())
            if self.task.labels:
                divergence += float(kl_div(log_softmax(found, -1), log_softmax(wanted, -1), reduction="sum",
                                           log_target=True))  # fmt: skip
        return PlaneError(
            planes=planes,
            weight_error=float((after - before).square().sum() / before.square().sum().clamp(min=POWER_FLOOR)),
            output_error=error / max(power, POWER_FLOOR),
            divergence=divergence / self.count if self.task.labels else None,
            loss_change=self._loss(outputs) - self.loss,
        )

    def _traces(self, probes: int, told: Progress) -> dict[str, tuple[float, float]]:
        parameters = {weight.name: weight.parameter for weight in self.session.network.weights}
        for parameter in parameters.values():
            parameter.requires_grad_(True)

        def losses() -> Iterator[tuple[Tensor, float]]:
            for x, y in self.batches:
                outputs = main_output(as_float(call(self.net, x)), self.task)
                yield self.task.loss(outputs, y), samples(x) / self.count

        with evaluating(self.net):
            generator = torch.Generator().manual_seed(self.session.config.seed)
            found = []
            for number in range(probes):
                found.append(hutchinson(list(parameters.values()), losses, generator))
                told.step("second derivative", number + 1, probes, {"trace": float(sum(found[-1]))})
        values = torch.tensor(found, dtype=torch.float64)  # (probes, layers)
        error = values.std(0) / probes**0.5 if probes > 1 else torch.full_like(values[0], torch.inf)
        return {
            name: (float(mean), min(float(one), 1e300))
            for name, mean, one in zip(parameters, values.mean(0), error, strict=True)
        }


@contextmanager
def replaced(parameter: nn.Parameter, value: Tensor) -> Iterator[None]:
    """Put another value into a parameter until the block ends."""
    before = parameter.data
    parameter.data = value
    try:
        yield
    finally:
        parameter.data = before
