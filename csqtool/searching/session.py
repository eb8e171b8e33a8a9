"""A search in one process: its stages in order, and their records."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from csqtool.data import DataSource, as_source, batches_of, check_fit
from csqtool.errors import DataError, ModelError, SearchInterrupted
from csqtool.evaluation import evaluate, reestimate_batch_norm, refresh_batch_norm
from csqtool.files import read_bytes, write_bytes
from csqtool.model_info import ModelInfo
from csqtool.model_source import ModelSource
from csqtool.nn.quantized_net import QuantizedNet
from csqtool.nn.state_dict import read_state, safetensors_bytes
from csqtool.processes import start_processes
from csqtool.progress import Progress, Silent
from csqtool.searching.allocation import Allocation, allocate, usable_allocator
from csqtool.searching.automatic import resolve
from csqtool.searching.budget import Scheme, uniform, uniform_scheme
from csqtool.searching.checkpoint import fitting, save_checkpoint
from csqtool.searching.config import SearchConfig, epochs_at_scheme
from csqtool.searching.costs import Costs
from csqtool.searching.curvature import Curvature
from csqtool.searching.journal import Journal
from csqtool.searching.loop import StageTraining
from csqtool.searching.method import Method, MethodContext, load_method
from csqtool.searching.network import Network
from csqtool.searching.options import FINETUNE_METHODS, method_kind
from csqtool.searching.probes import make_probe
from csqtool.searching.profiling import profiled
from csqtool.searching.recorded_info import recorded_info, with_stand_in_metrics
from csqtool.searching.records import Stage, Summary, scheme_of
from csqtool.searching.run_directory import RunDirectory
from csqtool.searching.scheme import LossProbe, drop_planes
from csqtool.searching.settling import Settled, StartingPoints, contiguous, saved_scheme, within_budget
from csqtool.searching.stages import FIXED_SCHEME, stages_of
from csqtool.searching.start import Start, data_of

CALIBRATION_SAMPLES = 1024


class Session:
    """The state of a search; `to_end` runs its stages.

    Args:
        config: the settings.
        directory: the run directory; nothing is written before `to_end`.
        start: what the search starts from.
        progress: is informed of every step.
        model: builds the module; None takes the factory in the settings.
        data: training and test data; None loads the source in the settings.
        recorded: whether the settings are those of a file, not the user's; see `csqtool.trust`.

    Raises:
        InputError: model, data, weights, patterns or budget cannot be used.
    """

    def __init__(
        self,
        config: SearchConfig,
        directory: RunDirectory,
        start: Start,
        progress: Progress,
        *,
        model: ModelSource | None = None,
        data: DataSource | None = None,
        recorded: bool = False,
    ) -> None:
        self.directory = directory
        self.processes = start_processes(config.device)
        self.progress = progress if self.processes.first else Silent()
        self.scheme: Settled | None = None
        self.float_metric: float | None = start.metric_float
        self.training: StageTraining | None = None
        self._start = start
        self._float_weights: bytes | None = None
        self._stop: Callable[[], bool] = lambda: False
        self._journal = Journal(directory, writes=self.processes.first, tensorboard=config.tensorboard)
        self._began = time.monotonic()
        self._profile_folder = directory.profile if config.profile and self.processes.first else None
        torch.manual_seed(config.seed)
        if model is None and config.model is None:
            raise ModelError(f"{directory} records no factory of its module; give --model FACTORY, or model= in Python")
        self.model_source = model or ModelSource(config.model, config.model_args, recorded=recorded)
        data = data or data_of(config, directory, self.progress.line, recorded=recorded)
        module = self.model_source.build(near=directory.config)
        start.load_into(module)
        self.data = as_source(data).for_model(module)
        if problem := self.data.problem():
            raise DataError(problem)
        self._kind = method_kind(config.method)
        self.allocator_class = usable_allocator(config.method) if self._kind.allocates else None
        sample, _ = next(batches_of(self.data.test, max_samples=2))
        self.network = Network(module, config, sample)
        check_fit(module, self.data)
        self.config = resolve(config, module, sample, self.processes.device)
        self.curvature = Curvature(module, self.data, self.device, self.processes.agreed)
        self.costs = Costs(self.network, self.config, lambda: with_stand_in_metrics(self.info(), self.data))
        self.stages = stages_of(self.config, self._kind)

    @property
    def method(self) -> Method:
        """The method that trains the weights; float training has none."""
        assert self.network.method is not None
        return self.network.method

    @property
    def device(self) -> torch.device:
        """The device that the network is on."""
        return self.processes.device

    def info(self) -> ModelInfo:
        """Return the description of this search that a finalized file contains."""
        return recorded_info(self.config, self.data, self.network.inputs)

    # --- stages ------------------------------------------------------------------------------------------

    def to_end(self, stop: Callable[[], bool]) -> Summary:
        """Run the remaining stages and return the summary.

        Args:
            stop: called after every step; True stops the search.

        Raises:
            SearchInterrupted: `stop` returned True; the state is saved.
            TrainingError: the loss is not finite.
        """
        self._stop = stop
        if self.network.folded:
            self.progress.line(f"folded into plain weights: {', '.join(self.network.folded)}")
        if unused := self.network.unused:
            words = "layers that the forward pass does not compute stay in float"
            self.progress.line(f"{len(unused)} {words}: {', '.join(unused)}")
        if self.training is None:
            given = self._start.weights is not None or self.model_source.module is not None
            if given and self.stages[0] != Stage.FLOAT and not self._start.is_finetuning:
                self._know_float_metric()
            self._enter(self.stages[0])
            if self.scheme is not None:
                self._save()  # an allocator has found it
        while True:
            training = self._training
            try:
                with profiled(self._profile_folder, training.name, self.progress.line) as stepped:
                    if not training.run(self.progress, self._after_epoch, stop, self._save, stepped=stepped):
                        raise self._interrupted()
            except SearchInterrupted:
                self._save()
                raise
            stage = Stage(training.name)
            if stage == Stage.FLOAT:
                self._know_float_metric()
            elif stage == Stage.SEARCH and stage != self.stages[-1]:
                self._settle()
            if stage == self.stages[-1]:
                if self._fits():
                    return self._finish()
                self._shrink()
                self.stages.append(Stage.SHRINK)
            self._enter(self.stages[self.stages.index(stage) + 1])
            self._save()

    @property
    def _training(self) -> StageTraining:
        assert self.training is not None
        return self.training

    def _heed(self) -> None:
        """Stop measuring where the search is to stop; several processes call this equally often."""
        if self.processes.any(self._stop()):
            raise self._interrupted()

    def _interrupted(self) -> SearchInterrupted:
        return SearchInterrupted(f"stopped; state saved, continue with: csqtool search --resume {self.directory}")

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        with fitting(f"{self.directory}: the last checkpoint", f"{self.directory.config.name} and the model"):
            stage = Stage(state["stage"])
            self.float_metric = state["float_metric"]
            self.scheme = None if state["scheme"] is None else saved_scheme(state["scheme"])
            if stage not in self.stages:
                self.stages.append(stage)  # shrinking, which is appended when it turns out to be needed
            self._enter(stage, restoring=True)
            self._training.load_state(state)

    def _enter(self, stage: Stage, *, restoring: bool = False) -> None:
        """Begin a stage; with `restoring`, a checkpoint provides the calibration and the state."""
        config, network = self.config, self.network
        if stage == Stage.FLOAT:
            net = QuantizedNet(network.model, [])
            self.training = StageTraining(
                stage.value, config.pretrain_epochs, net, None, config, self.data, self.processes
            )
            return
        if stage not in FIXED_SCHEME and not restoring:
            self._calibrate()
        name, epochs = config.method, config.epochs
        if stage in FIXED_SCHEME:
            scheme = self._allocated() if self.scheme is None else self.scheme
            epochs = epochs_at_scheme(vars(config)) if stage == Stage.FINETUNE else 0
            # Without epochs the weights must not change: gates would start soft and get another scale when hardened.
            name = FINETUNE_METHODS[config.finetune_with if epochs else "lsq"]
        else:
            self.costs.measure_sizes(self._start_weights)
            scheme = self._first_scheme()
        context = MethodContext(
            network.weights, network.model, config, config.options_of(name), self.costs.budget, scheme, self.curvature
        )
        network.method = load_method(name)(context)
        taught = config.distill or method_kind(name).data == "none"
        teacher = self._start.teacher(self.model_source, self.directory) if taught else None
        self.training = StageTraining(stage.value, epochs, network.net, network.method, config, self.data,
                                      self.processes, teacher=teacher)  # fmt: skip

    def _allocated(self) -> Settled:
        """Let the allocator find the scheme of the float model, with its activation quantizers calibrated."""
        assert self.allocator_class is not None
        network, config = self.network, self.config
        network.net.to(self.device)
        self._calibrate()
        self.costs.measure_sizes(lambda: network.parameters)
        given = Allocation(network, self.data, self.device, config, config.options_of(config.method), self.costs.budget,
                           self._probe, self.progress)  # fmt: skip
        scheme, record = allocate(self.allocator_class, given)
        self._journal.keep(record)
        self.scheme = self.processes.agreed(scheme)
        self.progress.line(self._log_scheme(Stage.ALLOCATE, self.scheme))
        return self.scheme

    def _start_weights(self) -> dict[str, Tensor]:
        """Return the weights that training starts from, also when it continues from a checkpoint."""
        saved = self.directory.float_weights
        state = read_state(saved) if saved.is_file() else self.network.model.state_dict()
        return {name: state[name] for name in self.network.elements}

    def float_weights(self) -> bytes | None:
        """Return the float model's weights, as a safetensors file; None where there is no float model."""
        if self._float_weights is None and self.directory.float_weights.is_file():
            return read_bytes(self.directory.float_weights)
        return self._float_weights

    def keep_float_weights(self) -> None:
        """Keep the float model's weights in memory, before the run directory is removed."""
        self._float_weights = self.float_weights()

    def _calibrate(self) -> None:
        def inputs() -> Iterator[Any]:
            return (x for x, _ in batches_of(self.data.train, max_samples=CALIBRATION_SAMPLES))

        if dead := self.network.calibrate(inputs):
            self.progress.line(f"activations that are 0 for all calibration samples: {', '.join(dead)}")

    def _first_scheme(self) -> Settled:
        """Return the initial planes: all allowed ones for methods that search, else given or uniform ones."""
        budget = self.costs.budget
        if self._kind.searches:
            return {name: uniform(planes) for name, planes in budget.max_planes.items()}
        given = self._start.planes(budget.elements)
        return uniform_scheme(budget, method=self.config.method) if given is None else given

    def _know_float_metric(self) -> None:
        self.float_metric = self._evaluate(self.network.model)
        self.progress.line(f"float model: {self.data.task.metric_name} {self.float_metric:.4f}")
        if self.processes.first:
            write_bytes(self.directory.float_weights, safetensors_bytes(self.network.model.state_dict()))
        self.processes.wait()

    def _settle(self) -> None:
        """Put plain weights in place of the gates, and fix the scheme."""
        method, network = self.method, self.network
        method.finish()
        soft = network.weight_values() if method.softens else None
        found = method.scheme()
        probe = self._make_plain()
        self.progress.line("settling the scheme by measured loss …")
        scheme = contiguous(found) if self.config.contiguous else dict(found)
        starts = StartingPoints(network, soft, self.directory.float_weights, self._calibrate)
        start = self.processes.agreed(starts.best(scheme, probe))
        starts.load(start)
        self.costs.measure_sizes(lambda: network.parameters)
        if self.config.repair:
            scheme = within_budget(scheme, self.costs.budget, probe)
        self.scheme = self.processes.agreed(scheme)  # machines may round losses differently
        self.progress.line(f"{self._log_scheme(Stage.SETTLE, found, start=start)}; continuing from the {start} weights")

    def _is_too_large(self) -> bool:
        """Return whether the packed file exceeds the target size: training changes the entropy of integers."""
        if not self.costs.counts_bytes or not self.config.repair:
            return False
        return self.processes.agreed(self.costs.of(self.method.integers()) > self.costs.budget.limit)

    def _fits(self) -> bool:
        """Make the packed file meet a target size, where the method can do that; return whether it does."""
        if self.costs.counts_bytes and self.config.repair and self.method.tighten(self._is_too_large):
            return True
        return not self._is_too_large()

    def _shrink(self) -> None:
        """Drop planes of trained weights by measured loss until the packed file meets its target size."""
        found = self.method.scheme()
        self.costs.fix_other_bytes(self.method.integers())
        probe = self._make_plain()
        self.costs.measure_sizes(lambda: self.network.parameters)
        self.scheme = self.processes.agreed(drop_planes(found, self.costs.budget, loss_with=probe))
        self.progress.line(f"the packed file exceeds the target size; {self._log_scheme(Stage.SHRINK, found)}")

    def _make_plain(self) -> LossProbe:
        """Replace the method by its hard weights, and return a function that measures the loss with changed ones."""
        self.network.make_plain()
        return self._probe(self.config.repair_samples)

    def _probe(self, samples: int) -> LossProbe:
        """Return a function that measures the loss on training samples with one plain weight rounded."""
        # Several processes may differ in the number of measurements: they can neither stop together nor share a file.
        heed = self._heed if self.processes.count == 1 else None
        kept = self.directory.losses if heed and self.directory.is_run else None
        return make_probe(self.network, self.data, self.device, self.costs.budget, samples=samples, heed=heed,
                          channels_last=bool(self.config.channels_last), progress=self.progress, kept=kept)  # fmt: skip

    def _evaluate(self, net: nn.Module) -> float:
        channels_last, device = bool(self.config.channels_last), next(net.parameters()).device
        return evaluate(net, self.data.test, self.data.task, device, channels_last=channels_last,
                        processes=self.processes, heed=self._heed)  # fmt: skip

    # --- records -----------------------------------------------------------------------------------------

    def _after_epoch(self, epoch: int, loss: float) -> None:
        training, method = self._training, self.network.method
        entry: dict[str, Any] = {"stage": training.name, "epoch": epoch + 1, "loss": loss}
        self.network.check_scales()
        metric = self._evaluate(training.net)
        if training.method is None or method is None:
            entry["metric"] = metric
        else:
            entry["metric_soft"] = metric
            method.set_hard(True)
            entry["metric_hard"] = self._evaluate(training.net) if method.softens else metric
            method.set_hard(False)
            precisions = {name: len(planes) for name, planes in method.scheme().items()}
            entry |= method.status() | {"average_precision": self.costs.budget.average(precisions)}
            entry["precision"] = precisions
        training.measured = {key: entry[key] for key in ("metric", "metric_soft", "metric_hard") if key in entry}
        self._journal.add(entry)
        shown = {k: v for k, v in entry.items() if isinstance(v, int | float) and k not in ("epoch", "bits")}
        words = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        self.progress.line(f"{training.name} epoch {epoch + 1}/{training.epochs}  {words}")
        self._save()

    def _log_scheme(self, stage: Stage, found: Scheme, **more: Any) -> str:
        """Log the settled scheme and the one that it was made from, and return their costs as text."""
        assert self.scheme is not None
        budget = self.costs.budget
        before, after = budget.cost(found), budget.cost(self.scheme)
        precision = {name: len(planes) for name, planes in self.scheme.items()}
        self._journal.add({"stage": stage, **more, "cost_found": before, "cost": after, "limit": budget.limit,
                   "precision": precision})  # fmt: skip
        return (f"scheme: {budget.describe(after)}, found {budget.describe(before)}, "
                f"budget {budget.describe(budget.limit)}")  # fmt: skip

    def _save(self) -> None:
        if self.processes.first:
            state = {**self._training.state(), "float_metric": self.float_metric, "scheme": self.scheme,
                     "log_bytes": self.directory.log_bytes}  # fmt: skip
            save_checkpoint(self.directory.checkpoints, state)

    def _finish(self) -> Summary:
        """Harden, re-estimate BatchNorm, evaluate, and write scheme and summary."""
        training, method, config = self._training, self.method, self.config
        if self.scheme is None:
            method.finish()
        hard = final = soft = self._evaluate(training.net)
        method.set_hard(True)
        fresh: dict[str, Any] = {"batch_size": config.batch_size, "seed": config.seed, "heed": self._heed}
        # Otherwise BatchNorm's statistics are those of hard weights already, if perhaps of earlier ones.
        if method.softens or training.name == Stage.SHRINK:
            hard = self._evaluate(training.net)
            reestimate_batch_norm(training.net, self.data, self.device, **fresh)
            final = self._evaluate(training.net)
        elif method.data != "none" and refresh_batch_norm(
            training.net, self.data, self.device, channels_last=bool(config.channels_last),
            agreed=self.processes.agreed, **fresh,
        ):  # fmt: skip
            final = self._evaluate(training.net)
            self.progress.line(f"BatchNorm's statistics re-estimated: {hard:.4f} → {final:.4f}")
        integers = method.integers()
        summary = self.costs.summary(
            integers, metric_name=self.data.task.metric_name, metric_float=self.float_metric, metric_soft=soft,
            metric_hard=hard, metric=final, seconds=round(time.monotonic() - self._began, 1),
        )  # fmt: skip
        self._save()
        if self.processes.first:
            self.directory.write_result(scheme_of(integers), summary)
        self.processes.wait()
        return summary
