"""Quantization after training: bits allotted and weights reconstructed against the float network, without labels."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from csqtool.data import DataSource, as_source, batches_of, check_fit, training_batches
from csqtool.data.data_source import Part
from csqtool.data.datasets import Batch, take
from csqtool.data.streams import Stream
from csqtool.data.synthetic import Synthetic
from csqtool.errors import DataError
from csqtool.evaluation import laid_out, reestimate_batch_norm
from csqtool.files import temporary_folder
from csqtool.model_info import MethodInfo
from csqtool.model_source import ModelSource
from csqtool.nn.equalization import Edge, edges
from csqtool.nn.equalization import equalize as equalized
from csqtool.output_error import OutputError, make_output_probe
from csqtool.progress import Progress, Silent
from csqtool.quantized_model import QuantizedModel
from csqtool.randomness import drawing_from
from csqtool.reconstruction import RECONSTRUCTIONS, train
from csqtool.searching.allocation import Allocation, Planes, allocate
from csqtool.searching.budget import Scheme
from csqtool.searching.config import SearchConfig
from csqtool.searching.files_ahead import check_files_ahead
from csqtool.searching.method import Method, MethodContext
from csqtool.searching.network import Network
from csqtool.searching.options import Options as NoOptions
from csqtool.searching.options import method_kind
from csqtool.searching.probes import MOST_MULTIPLICATIONS, OTHER_PASSES, affordable, make_probe, settling_cost
from csqtool.searching.run_directory import RunDirectory
from csqtool.searching.scheme import LossProbe, allotted, begin_with, drop_planes
from csqtool.searching.session import Session
from csqtool.searching.start import Start
from csqtool.task import Task, as_task, new_metric
from csqtool.trees import mapped

OUTPUT_ERROR = "output-error"  # what allots planes if no allocator is named
PROBE_SAMPLES = 128  # that the output error of each layer and number of planes is measured on
SAME = 1e-6  # relative squared error of outputs that differ by float32 rounding alone


class Unlabelled:
    """A task of which only the names are used: its targets are never looked at."""

    labels = False

    def __init__(self, task: Task) -> None:
        self.name, self.metric_name = task.name, task.metric_name
        self._task = task

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Return zero."""
        return torch.zeros(())

    def new_metric(self) -> Any:
        """Return the task's own metric."""
        return new_metric(self._task)


@dataclass(frozen=True)
class FirstSamples:
    """The first samples of a map-style data set."""

    data: Any
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < self.count:
            raise IndexError(index)
        inputs, targets = take(self.data, range(index, index + 1))
        return mapped(inputs, lambda tensor: tensor[0]), mapped(targets, lambda tensor: tensor[0])


@dataclass(frozen=True)
class FirstBatches:
    """The first samples of a loader, read anew in each pass."""

    data: Stream
    count: int

    def __iter__(self) -> Iterator[Batch]:
        return batches_of(self.data, max_samples=self.count)


class Inputs:
    """Batches of inputs alone, with targets that nobody looks at."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        for inputs in self.batches:
            alone = inputs[0] if isinstance(inputs, list | tuple) and len(inputs) == 1 else inputs  # a TensorDataset's
            yield (alone, torch.zeros(len(alone), dtype=torch.int64)) if _is_tensor(alone) else alone


def are_inputs_alone(given: Any) -> bool:
    """Return whether calibration data have no labels: an array, or batches of which the first is one."""
    if isinstance(given, DataLoader | list):
        with drawing_from(0):  # a loader draws its order
            first = next(iter(given), None)
        return _is_tensor(first) or (isinstance(first, list | tuple) and len(first) == 1)
    return _is_tensor(given)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray) and value.ndim > 0


def calibration_data(
    given: Any, task: str | Task | None, batch_size: int | None, *, labels_for: str | None = None
) -> DataSource:
    """Return calibration data, with labels or without, as a source.

    Args:
        given: inputs [N, …]; a `DataLoader`, or a list, of batches of inputs; or what a search takes as training data.
        task: the task that the file records.
        batch_size: the setting, if it was given.
        labels_for: the allocator that needs labels; None if none does.

    Raises:
        InputError: they cannot be read, or have no labels and need some.
    """
    if labels_for is not None and are_inputs_alone(given):
        raise DataError(
            f"{labels_for} needs labels, and the calibration data are inputs alone: give pairs (inputs, labels), or "
            f"choose an allocator without, such as {OUTPUT_ERROR}"
        )
    if isinstance(given, np.ndarray | Tensor):
        if given.ndim < 2:
            raise DataError(f"calibration inputs must have shape [N, …], got {list(given.shape)}")
        given = (given, torch.zeros(len(given), dtype=torch.int64))
        return as_source(train=given, needs=("train",), batch_size=batch_size).with_task(as_task(task))
    if isinstance(given, DataLoader) or (isinstance(given, list) and given and _is_tensor(given[0])):
        return as_source(train=Inputs(given), task=task, needs=("train",), batch_size=batch_size)
    return as_source(given, task=task, needs=("train",), batch_size=batch_size)


def calibration_source(data: DataSource, samples: int) -> DataSource:
    """Return the first training samples as data without labels."""
    train: Part = data.train
    if isinstance(train, Stream):
        train = Stream(FirstBatches(train, samples), train.name, train.names)
    elif isinstance(train, Synthetic):
        train = train.limited(samples)
    elif len(train) > samples:
        train = FirstSamples(train, samples)
    return replace(data, train=train, test=train, task=Unlabelled(data.task))


def quantize(
    config: SearchConfig,
    *,
    samples: int,
    steps: int,
    batch_norm: bool,
    equalize: bool,
    reconstruct: str = "lsq",
    ranges: str = "mse",
    drop_activations: float = 0.0,
    data: DataSource,
    model: ModelSource | None = None,
    progress: Progress | None = None,
) -> QuantizedModel:
    """Quantize a trained network against its own float outputs.

    BatchNorm is re-estimated on the samples; scales of channels move between layers where that lowers the output error
    (Nagel et al. 2019); activation ranges follow from histograms of all samples; planes are allotted under the budget,
    by measured output error or by the allocator in the settings; then all rounded weights, step sizes and biases are
    trained together so that the layers and outputs follow the float network's (as in BRECQ, Li et al. 2021, with the
    whole network as one block). Where nothing is trained, BatchNorm is re-estimated once more with the rounded weights.

    Args:
        config: the settings; of a search, those of the budget and of what is quantized are used, and the method if it
            is an allocator.
        samples: how many training samples are read.
        steps: of the reconstruction; 0 rounds to the nearest.
        batch_norm: re-estimate BatchNorm's statistics on the samples, augmented as in training; not without data.
        equalize: move scales of channels between layers where that helps, see `csqtool.nn.equalization`.
        reconstruct: what is trained, a key of `csqtool.reconstruction.RECONSTRUCTIONS`.
        ranges: how activation ranges follow from histograms, a key of `csqtool.nn.ranges.RANGES`.
        drop_activations: share of activation values that a step of the reconstruction does not round.
        data: training data; labels are looked at only by allocators that need them.
        model: builds the module; None takes the factory in the settings.
        progress: is told of every step.

    Raises:
        InputError: model, data or settings cannot be used, or the budget cannot be met.
    """
    told = progress or Silent()
    with temporary_folder() as folder:
        limited = calibration_source(data, samples)
        directory = RunDirectory(folder / "run")
        if isinstance(limited.train, Synthetic):
            batch_norm = False  # its statistics are what the inputs are made from
        session = Session(config, directory, Start.of_settings(config), told, model=model, data=limited)
        return _Quantizing(session, data.task, told, reconstruct, drop_activations).result(
            steps, batch_norm=batch_norm, equalize=equalize, ranges=ranges
        )


class _Quantizing:
    """The steps of `quantize`."""

    def __init__(self, session: Session, task: Task, told: Progress, reconstruct: str, drop: float) -> None:
        self.session, self.task, self.told, self.reconstruct, self.drop = session, task, told, reconstruct, drop
        self.network: Network = session.network
        self.config, self.data, self.device = session.config, session.data, session.device
        found = len(self.data.train)
        if found < self.config.batch_size and not isinstance(self.data.train, Stream):
            raise DataError(f"{found} calibration samples are fewer than a batch of {self.config.batch_size}")

    def result(self, steps: int, *, batch_norm: bool, equalize: bool, ranges: str) -> QuantizedModel:
        network, config = self.network, self.config
        if (kind := method_kind(config.method)).allocates and kind.data == "labelled":
            check_fit(network.model, self._labelled)
        info = self.session.info()
        info = info.replace(method=MethodInfo(
            name="post-training", target_bits=config.target_bits, target_size=config.target_size,
            act_bits=config.act_bits, epochs=0.0, finetune_epochs=0.0, seed=config.seed,
            target_bops=config.target_bops or msgspec.UNSET,
            allocator=config.method if kind.allocates else msgspec.UNSET))  # fmt: skip
        check_files_ahead(network, info)
        network.net.to(self.device)
        if batch_norm:
            self._reestimate(network.model)
        if network.unused:
            self.told.line(f"layers that no sample reaches stay in float: {', '.join(network.unused)}")
        if equalize:
            self._equalize()
        if constant := network.net.calibrate_streamed(self._inputs(), ranges):
            self.told.line(f"activations with one value for all calibration samples: {', '.join(constant)}")
        teacher = copy.deepcopy(network.model).eval().requires_grad_(False)
        costs = self.session.costs
        costs.measure_sizes(lambda: network.parameters)
        scheme = self._allotted(teacher)
        self.told.line(f"scheme: {costs.budget.describe(costs.budget.cost(scheme))}, "
                       f"budget {costs.budget.describe(costs.budget.limit)}")  # fmt: skip
        while True:
            method = self._reconstructed(scheme, teacher, steps)
            # Trained layers follow the float ones with the statistics that they have: others take that away again.
            if batch_norm and not steps:
                self._reestimate(network.net)
            integers = method.integers()
            if not costs.counts_bytes or costs.of(integers) <= costs.budget.limit:
                return network.quantized(integers, info)
            # The entropy of the integers has grown: what the file takes now is the start of the next turn.
            self.told.line("the packed file exceeds the target size; dropping planes …")
            costs.fix_other_bytes(integers)
            network.make_plain()
            costs.measure_sizes(lambda: network.parameters)
            scheme, steps = drop_planes(scheme, costs.budget, loss_with=self._probe(teacher, scheme)), 0

    def _allotted(self, teacher: nn.Module) -> Planes:
        """Return the planes of each layer of the float network."""
        network, config, session = self.network, self.config, self.session
        if session.allocator_class is None:
            budget = session.costs.budget
            return allotted(budget, loss_with=self._probe(teacher, begin_with(budget)))

        def losses(samples: int) -> LossProbe:
            return make_probe(network, self._labelled, self.device, session.costs.budget, samples=samples, heed=None,
                              channels_last=bool(config.channels_last), progress=self.told)  # fmt: skip

        given = Allocation(network, self._labelled, self.device, config, config.options_of(config.method),
                           session.costs.budget, losses, self.told)  # fmt: skip
        return allocate(session.allocator_class, given)[0]

    def _probe(self, teacher: nn.Module, most: Scheme) -> LossProbe:
        """Return what tells the output error with one layer rounded to at most so many planes."""
        network, count = self.network, PROBE_SAMPLES
        if estimated := settling_cost(network, count) > MOST_MULTIPLICATIONS:
            count = affordable(network, count, passes=len(network.weights) / 2 + OTHER_PASSES)
        self.told.line(f"measuring the output error of each of {len(network.weights)} layers on {count} samples …")
        error = self._output_error(teacher, count)
        budget = self.session.costs.budget
        return make_output_probe(network, error, most, budget, self.told, estimated=estimated)

    @property
    def _labelled(self) -> DataSource:
        """The samples with their labels, for allocators."""
        return replace(self.data, task=self.task)

    def _inputs(self) -> Iterator[Any]:
        return (mapped(x, lambda tensor: tensor.to(self.device)) for x, _ in batches_of(self.data.train))

    def _reestimate(self, net: nn.Module) -> None:
        reestimate_batch_norm(net, self.data, self.device, batch_size=self.config.batch_size, seed=self.config.seed)

    def _equalize(self) -> None:
        """Move scales between layers where that lowers the output error of their weights, at the budget's planes."""
        network, budget = self.network, self.session.costs.budget
        weights = network.parameters
        found = [edge for edge in edges(network.model, network.sites) if edge.weights & weights.keys()]
        if not found:
            return
        before = copy.deepcopy(network.model).eval().requires_grad_(False)
        # Three measurements an edge, which begin in the middle of the network on average.
        measured = self._output_error(before, affordable(network, PROBE_SAMPLES, passes=1.5 * len(found)))
        planes = budget.uniform(max(1, int(budget.target_bits)))

        def error(edge: Edge) -> float:
            measured.begin(f"{edge.source}.weight")
            return LossProbe({n: w for n, w in weights.items() if n in edge.weights}, measured).of_scheme(planes)

        changed = equalized(network.model, found, error)
        if not measured.whole() <= SAME:  # the model's code uses a tensor in a way that its recorded calls do not show
            network.model.load_state_dict(before.state_dict())
            changed = []
        self.told.line(f"scales moved at {len(changed)} of {len(found)} places between layers")

    def _output_error(self, teacher: nn.Module, count: int) -> OutputError:
        """Return what measures the network's output error on the first samples."""
        inputs = [laid_out(x, self.device, channels_last=bool(self.config.channels_last))
                  for x, _ in batches_of(self.data.train, max_samples=count)]  # fmt: skip
        return OutputError(self.network.model, teacher, inputs)

    def _reconstructed(self, scheme: dict[str, tuple[int, ...]], teacher: nn.Module, steps: int) -> Method:
        """Put rounded weights in place, and train them for some steps; without any, they are rounded to the nearest."""
        network, config = self.network, self.config
        kind = RECONSTRUCTIONS[self.reconstruct if steps else "lsq"]
        context = MethodContext(
            network.weights,
            network.model,
            config,
            NoOptions(),
            self.session.costs.budget,
            scheme,
            self.session.curvature,
        )
        network.method = method = kind(context)
        network.net.eval()
        if steps:
            train(network, method, teacher, self._batches(steps), steps, self.told, drop=self.drop)
        return method

    def _batches(self, steps: int) -> Iterator[Any]:
        batches = training_batches(self.data, batch_size=self.config.batch_size, seed=self.config.seed)
        done = epoch = 0
        while True:
            for inputs, _ in batches.epoch("reconstruct", epoch):
                if done == steps:
                    return
                done += 1
                yield laid_out(inputs, self.device, channels_last=bool(self.config.channels_last))
            epoch += 1
