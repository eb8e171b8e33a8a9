"""A search in one process: its stages one after the other, and what they write into the run directory."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from csqtool.data import check_fit, load_data
from csqtool.errors import ConfigError, DataError, InputError, ModelError, SearchInterrupted
from csqtool.evaluation import batches_of, evaluate, reestimate_batch_norm, training_loss
from csqtool.factories import build_model
from csqtool.files import read_json, write_bytes, write_json
from csqtool.integers import planes_of
from csqtool.nn.activation_variants import load_quantizer
from csqtool.nn.assemble import quantized_model
from csqtool.nn.dataflow import place_quantizers, record
from csqtool.nn.latent import LsqWeight
from csqtool.nn.net import QuantizedNet, make_quantizers
from csqtool.nn.signature import inputs_of
from csqtool.nn.weights import check_excluded, detach, quantizable_weights
from csqtool.processes import start_processes
from csqtool.progress import Progress, Silent
from csqtool.quantized_model import LayerIntegers, QuantizedModel, twos_complement_bits
from csqtool.searching.automatic import resolve
from csqtool.searching.budget import Budget, Scheme, make_budget, uniform, uniform_scheme
from csqtool.searching.checkpoint import load_weights, read_state, safetensors_bytes, save_checkpoint
from csqtool.searching.config import SearchConfig
from csqtool.searching.loop import Phase
from csqtool.searching.method import Method, load_method
from csqtool.searching.packed_size import SLACK, PackedSizes, as_trained, fixed_bytes, packed_bytes
from csqtool.searching.run_directory import read_scheme
from csqtool.searching.scheme import LossProbe, close_holes, drop_planes, settle
from csqtool.searching.tensorboard import Events, check_available

CALIBRATION_SAMPLES = 1024
CHECKPOINTS = "checkpoints"
FINETUNE_METHODS = {"lsq": "lsq", "csq": "csq-uniform"}
Integers = Mapping[str, LayerIntegers]  # q, Δ and mask of each layer
AFTER_SETTLING = ("finetune", "shrink")  # stages of a fixed scheme


class Session:
    """The state of a search, and the way through its stages.

    Args:
        config: the settings.
        output: the run directory.
        progress: told about every step.

    Raises:
        InputError: model, data, weights, patterns or budget cannot be used.
    """

    def __init__(self, config: SearchConfig, output: Path, progress: Progress) -> None:
        self.config = config
        self.output = output
        self.processes = start_processes(config.device)
        self.progress = progress if self.processes.first else Silent()
        self.method: Method | None = None
        self.scheme: dict[str, tuple[int, ...]] | None = None
        self.float_metric: float | None = None
        self._events: Events | None = None
        if config.tensorboard:
            check_available()
        self.started = time.monotonic()
        torch.manual_seed(config.seed)
        self._near = output / "config.json"
        self.data = load_data(config.data, task=config.task, near=self._near)
        if problem := self.data.problem():
            raise DataError(problem)
        self.method_class = load_method(config.method)
        if config.scheme is not None and self.method_class.searches:
            raise ConfigError(
                f"{config.method} searches a scheme of its own and would not train that of {config.scheme}; "
                "--scheme goes with a method of fixed bits, such as --method lsq"
            )
        self.model = self._build()
        if config.weights is not None:
            load_weights(self.model, Path(config.weights))
        check_excluded(config.exclude, quantizable_weights(self.model))
        self.weights = quantizable_weights(self.model, config.exclude)
        if not self.weights:
            raise ModelError("the model has no quantizable layers (convolution, linear, embedding, attention)")
        sample, _ = next(batches_of(self.data.test, most=2))
        self.placement = place_quantizers(_sites(self.model, sample), config.act_bits)
        self.inputs = inputs_of((sample,))
        check_fit(self.model, self.data)
        self.config = resolve(config, self.model, sample, self.processes.device)
        self.net = QuantizedNet(self.model, make_quantizers(self.placement, load_quantizer(config.act_quantizer)))
        self.budget = self._make_budget()
        self.stages = self._make_stages()
        self.phase: Phase

    def _build(self) -> nn.Module:
        model: nn.Module = build_model(self.config.model, dict(self.config.model_args), near=self._near)
        return model

    def _make_stages(self) -> list[str]:
        config = self.config
        stages = ["float"] if config.pretrain_epochs else []
        if not self.method_class.searches:
            return [*stages, "train"]
        settled = config.finetune_epochs or config.repair or config.contiguous
        return [*stages, "search", "finetune"] if settled else [*stages, "search"]

    def _make_budget(self) -> Budget:
        elements = {weight.name: weight.elements for weight in self.weights}
        if self.config.target_size is None:
            return make_budget(self.config, elements)
        latents = {weight.name: LsqWeight(weight.parameter, uniform(1), planes=self.config.planes)
                   for weight in self.weights}  # fmt: skip
        integers = {name: latent.integers() for name, latent in latents.items()}
        aliases = [alias for weight in self.weights for alias in weight.aliases]
        fixed = fixed_bytes(as_trained(self._model_to_pack(integers), aliases=aliases))
        return make_budget(self.config, elements, fixed + SLACK * len(self.weights))

    def _model_to_pack(self, integers: Integers) -> QuantizedModel:
        """Return the network with these integers, and stand-ins of their length for what finalization measures."""
        metrics = {"name": self.data.task.metric_name, "float": math.pi / 4, "finalized": math.e / 3,
                   "samples": len(self.data.test)}  # fmt: skip
        return quantized_model(self.net, self.placement, integers, {**self.info(), "metrics": metrics})

    def _measure_sizes(self, weights: Callable[[], Mapping[str, Tensor]]) -> None:
        """Let a budget of bytes count what layers take when these weights are rounded."""
        if self.budget.unit == "bytes":
            self.budget = dataclasses.replace(self.budget, layer_bytes=PackedSizes(weights()))

    def info(self) -> dict[str, Any]:
        """Return what a finalized file records of this search."""
        config = self.config
        return {
            "model": {"factory": config.model, "args": dict(config.model_args)},
            "data": {"source": config.data, **self.data.facts()},
            "input_shape": list(self.inputs[0].shape),
            "inputs": [i.to_json() for i in self.inputs],
            "method": {
                "name": config.method,
                "target_bits": config.target_bits,
                "target_size": config.target_size,
                "act_bits": config.act_bits,
                "epochs": config.epochs,
                "finetune_epochs": config.finetune_epochs,
                "seed": config.seed,
            },
        }

    # --- stages ------------------------------------------------------------------------------------------

    def _enter(self, stage: str, *, restoring: bool = False) -> None:
        """Begin a stage; `restoring` leaves to a checkpoint what it brings."""
        config = self.config
        if stage == "float":
            self.phase = Phase(stage, config.pretrain_epochs, QuantizedNet(self.model, []), None, config, self.data,
                               self.processes)  # fmt: skip
            return
        if stage not in AFTER_SETTLING and not restoring:
            self._calibrate()
        kind, epochs = self.method_class, config.epochs
        if stage in AFTER_SETTLING:
            assert self.scheme is not None
            scheme, epochs = self.scheme, config.finetune_epochs if stage == "finetune" else 0
            # Without epochs nothing may change: gates start soft, and hardened they have another scale.
            kind = load_method(FINETUNE_METHODS[config.finetune_with if epochs else "lsq"])
        else:
            self._measure_sizes(self._start_weights)
            scheme = self._first_scheme()
            if stage == "train":
                epochs += config.finetune_epochs
        self.method = kind(self.weights, self.model, config, self.budget, scheme)
        teacher = self._teacher() if config.distill else None
        self.phase = Phase(stage, epochs, self.net, self.method, config, self.data, self.processes, teacher=teacher)

    def _start_weights(self) -> dict[str, Tensor]:
        """Return the weights that training starts from, also when it goes on from a checkpoint."""
        saved = self.output / "float.safetensors"
        state = read_state(saved) if saved.is_file() else self.model.state_dict()
        return {weight.name: state[weight.name] for weight in self.weights}

    def _calibrate(self) -> None:
        if self.net.quantizers:
            device = next(self.model.parameters()).device
            samples = batches_of(self.data.train, most=CALIBRATION_SAMPLES)
            self.net.to(device).calibrate(x.to(device) for x, _ in samples)

    def _first_scheme(self) -> dict[str, tuple[int, ...]]:
        """Return the planes to begin with: all that are allowed, the uniform ones of a method, or those of a file."""
        if self.method_class.searches:
            return {name: uniform(most) for name, most in self.budget.most.items()}
        if self.config.scheme is None:
            return uniform_scheme(self.budget, method=self.config.method)
        path = Path(self.config.scheme)
        masks = {entry.name: entry.mask for entry in read_scheme(path)}
        if set(masks) != set(self.budget.elements):
            differing = sorted(set(masks) ^ set(self.budget.elements))
            raise ModelError(f"{path} does not match the model's layers: {', '.join(differing)}")
        return {name: planes_of(mask) for name, mask in masks.items()}

    def _teacher(self) -> nn.Module:
        """Return the float model that teaches: as trained here, or as the weights file brings it."""
        teacher = self._build()
        saved = self.output / "float.safetensors"
        if saved.is_file():
            load_weights(teacher, saved)
        elif self.config.weights is not None:
            load_weights(teacher, Path(self.config.weights))
        else:
            raise ModelError("distill needs a float model that can teach: give --weights or --pretrain-epochs")
        return teacher

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.float_metric = state["float_metric"]
        self.scheme = None if state["scheme"] is None else {n: tuple(p) for n, p in state["scheme"].items()}
        if state["phase"] not in self.stages:
            self.stages.append(state["phase"])  # shrinking, which none but a few searches need
        self._enter(state["phase"], restoring=True)
        self.phase.load_state(state)

    def forget_log_behind(self, state: dict[str, Any]) -> None:
        """Cut lines off the log that were written behind a checkpoint: they will be written again."""
        log = self.output / "log.jsonl"
        if log.is_file() and log.stat().st_size > state["log_bytes"]:
            with open(log, "r+b") as file:
                file.truncate(state["log_bytes"])

    def harden(self) -> None:
        """Let the weights be the quantized ones, for evaluation."""
        assert self.method is not None
        self.method.set_hard(True)
        self.net.eval()

    def plain_weights(self) -> bytes:
        """Return the model with its quantized weights in float, as a safetensors file."""
        values = {weight.name: getattr(*weight.places[0]) for weight in self.weights}
        values |= {alias: values[weight.name] for weight in self.weights for alias in weight.aliases}
        values |= {k: v for k, v in self.model.state_dict().items() if "parametrizations" not in k.split(".")}
        return safetensors_bytes(values)

    def to_end(self, stop: Callable[[], bool]) -> dict[str, Any]:
        """Go through the stages that are left and return the summary.

        Raises:
            SearchInterrupted: `stop` said so; the state is saved.
            TrainingError: the loss is no number any more.
        """
        if not hasattr(self, "phase"):
            if self.config.weights is not None and self.stages[0] != "float":
                self._know_float_metric()
            self._enter(self.stages[0])
        while True:
            if not self.phase.run(self.progress, self._after_epoch, stop, self._save):
                self._save()
                raise SearchInterrupted(f"stopped; state saved, go on with: csqtool search --resume {self.output}")
            stage = self.phase.name
            if stage == "float":
                self._know_float_metric()
            if stage == self.stages[-1]:
                if not self._is_too_large():
                    return self._finish()
                self._shrink()
                self.stages.append("shrink")
            elif stage == "search":
                self._settle()
            self._enter(self.stages[self.stages.index(stage) + 1])
            self._save()

    def _know_float_metric(self) -> None:
        started_from = self.output / "start.json"
        if started_from.is_file():  # finetuning: the weights are quantized ones, the float model came before them
            self.float_metric = read_json(started_from)["metric_float"]
            return
        self.float_metric = self._evaluate(self.model)
        self.progress.line(f"float model: {self.data.task.metric_name} {self.float_metric:.4f}")
        if self.processes.first:
            write_bytes(self.output / "float.safetensors", safetensors_bytes(self.model.state_dict()))
        self.processes.wait()

    def _settle(self) -> None:
        """Put plain weights in place of the gates, and fix the scheme."""
        assert self.method is not None
        self.method.finish()
        soft = self._weight_values() if self.method.softens else None
        found = self.method.scheme()
        probe = self._make_plain()
        self.progress.line("settling the scheme by measured loss …")
        self.scheme = {n: close_holes(p) if self.config.contiguous else p for n, p in found.items()}
        start = self._choose_start(probe, soft)
        self._measure_sizes(self._parameters)
        if self.config.repair:
            self.scheme = settle(self.scheme, self.budget, loss_with=probe)
        self.scheme = self.processes.agreed(self.scheme)  # machines may round losses differently
        self.progress.line(f"{self._log_scheme('settle', found, start=start)}; going on from the {start} weights")

    def _is_too_large(self) -> bool:
        """Tell whether the packed file exceeds a target size: training changes the entropy of integers."""
        if self.budget.unit != "bytes" or not self.config.repair:
            return False
        assert self.method is not None
        return self.processes.agreed(self._cost(self.method.integers()) > self.budget.limit)

    def _shrink(self) -> None:
        """Drop planes of trained weights by measured loss until the packed file is as small as it shall be."""
        assert self.method is not None
        found = self.method.scheme()
        fixed = fixed_bytes(self._model_to_pack(self.method.integers()))
        probe = self._make_plain()
        self.budget = dataclasses.replace(self.budget, fixed_bytes=fixed)
        self._measure_sizes(self._parameters)
        self.scheme = self.processes.agreed(drop_planes(found, self.budget, loss_with=probe))
        self.progress.line(f"trained integers pack worse than before: {self._log_scheme('shrink', found)}")

    def _make_plain(self) -> LossProbe:
        """Put the method's hard weights in its place, and return what measures the loss with them."""
        assert self.method is not None
        self.method.set_hard(True)
        values = self._weight_values()
        for weight in self.weights:
            detach(weight, values[weight.name])
        self.weights = quantizable_weights(self.model, self.config.exclude)
        loss = partial(training_loss, self.net, self.data, self.phase.device, samples=self.config.repair_samples,
                       channels_last=bool(self.config.channels_last))  # fmt: skip
        return LossProbe(self._parameters(), loss)

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {weight.name: weight.parameter for weight in self.weights}

    def _log_scheme(self, phase: str, found: Scheme, **more: Any) -> str:
        """Log the scheme that was made of the one found, and return what it costs in words."""
        assert self.scheme is not None
        budget = self.budget
        before, after = budget.cost(found), budget.cost(self.scheme)
        self._log({"phase": phase, **more, "cost_found": before, "cost": after, "limit": budget.limit,
                   "precision": {name: len(planes) for name, planes in self.scheme.items()}})  # fmt: skip
        return (f"scheme: {budget.describe(after)}, found {budget.describe(before)}, "
                f"budget {budget.describe(budget.limit)}")  # fmt: skip

    def _cost(self, integers: Integers) -> float:
        """Return what integers cost."""
        if self.budget.unit == "bytes":
            return packed_bytes(self._model_to_pack(integers))
        return self.budget.cost({name: planes_of(mask) for name, (_, _, mask) in integers.items()})

    @torch.no_grad()
    def _weight_values(self) -> dict[str, Tensor]:
        return {weight.name: getattr(*weight.places[0]).detach().clone() for weight in self.weights}

    def _choose_start(self, probe: LossProbe, soft: Mapping[str, Tensor] | None) -> str:
        """Keep the searched weights, or take them with soft gates or the float model's: what rounds with least loss.

        A short search finds a scheme before its gates have hardened into good weights, and a very short one before
        the soft weights are better than the float model's; a long one, or one from scratch, leaves weights that fit
        the scheme.
        """
        assert self.scheme is not None
        saved = self.output / "float.safetensors"
        state = {name: value.clone() for name, value in self.net.state_dict().items()}

        def load(start: str) -> None:
            if start == "float":
                load_weights(self.model, saved)
                self._calibrate()  # the searched network's activations are others
                return
            self.net.restore(state)
            if start == "soft" and soft is not None:
                for weight in self.weights:
                    weight.parameter.data.copy_(soft[weight.name])

        losses = {}
        for start, there in (("searched", True), ("soft", soft is not None), ("float", saved.is_file())):
            if there:
                load(start)
                losses[start] = probe.of_scheme(self.scheme)
        best = self.processes.agreed(min(losses, key=losses.__getitem__))
        load(best)
        return best

    def _evaluate(self, net: nn.Module) -> float:
        device = next(net.parameters()).device
        channels_last = bool(self.config.channels_last)
        return evaluate(
            net, self.data.test, self.data.task, device, channels_last=channels_last, processes=self.processes
        )

    # --- records -----------------------------------------------------------------------------------------

    def _after_epoch(self, epoch: int, loss: float) -> None:
        phase, method = self.phase, self.method
        entry: dict[str, Any] = {"phase": phase.name, "epoch": epoch + 1, "loss": loss}
        metric = self._evaluate(phase.net)
        if method is None:
            entry["metric"] = metric
        else:
            entry["metric_soft"] = metric
            method.set_hard(True)
            entry["metric_hard"] = self._evaluate(phase.net) if method.softens else metric
            method.set_hard(False)
            precisions = {name: len(planes) for name, planes in method.scheme().items()}
            entry |= method.status() | {"average_precision": self.budget.average(precisions)}
            entry["precision"] = precisions
        phase.measured = {key: entry[key] for key in ("metric", "metric_soft", "metric_hard") if key in entry}
        self._log(entry)
        shown = {k: v for k, v in entry.items() if isinstance(v, int | float) and k not in ("epoch", "bits")}
        words = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        self.progress.line(f"{phase.name} epoch {epoch + 1}/{phase.epochs}  {words}")
        self._save()

    def _log(self, entry: dict[str, Any]) -> None:
        if not self.processes.first:
            return
        path = self.output / "log.jsonl"
        try:
            with open(path, "a", encoding="utf-8") as log:
                log.write(json.dumps(entry) + "\n")
            if self.config.tensorboard:
                path = self.output / "tensorboard"
                self._write_events(entry)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}") from error

    def _write_events(self, entry: dict[str, Any]) -> None:
        if self._events is None:
            lines = (self.output / "log.jsonl").read_text(encoding="utf-8").count("\n")
            self._events = Events(self.output / "tensorboard", first_step=lines - 1)
        self._events.add(entry)

    def _save(self) -> None:
        if not self.processes.first:
            return
        log = self.output / "log.jsonl"
        state = {**self.phase.state(), "float_metric": self.float_metric, "scheme": self.scheme,
                 "log_bytes": log.stat().st_size if log.is_file() else 0}  # fmt: skip
        save_checkpoint(self.output / CHECKPOINTS, state)

    def _finish(self) -> dict[str, Any]:
        """Harden, re-estimate BatchNorm, evaluate, and write scheme and summary."""
        phase, task, method = self.phase, self.data.task, self.method
        assert method is not None
        if self.scheme is None:
            method.finish()
        soft = self._evaluate(phase.net)
        method.set_hard(True)
        hard = final = soft
        if method.softens or phase.name == "shrink":  # else BatchNorm's statistics are those of the hard weights
            hard = self._evaluate(phase.net)
            reestimate_batch_norm(phase.net, self.data, phase.device, batch_size=self.config.batch_size,
                                  seed=self.config.seed)  # fmt: skip
            final = self._evaluate(phase.net)
        integers = method.integers()
        scheme: list[dict[str, Any]] = [
            {
                "name": name,
                "precision": mask.count("1"),
                "mask": mask,
                "bit_width": twos_complement_bits(q),
                "elements": q.size,
            }
            for name, (q, _, mask) in integers.items()
        ]
        average = {
            key: sum(entry[key] * entry["elements"] for entry in scheme) / sum(entry["elements"] for entry in scheme)
            for key in ("precision", "bit_width")
        }
        summary = {
            "method": self.config.method,
            "target_bits": self.config.target_bits,
            "target_size": self.config.target_size,
            "budget_unit": self.budget.unit,
            "budget": self.budget.limit,
            "cost": self._cost(integers),
            "average_precision": average["precision"],
            "average_bit_width": average["bit_width"],
            "act_bits": self.config.act_bits,
            "metric_name": task.metric_name,
            "metric_float": self.float_metric,
            "metric_soft": soft,
            "metric_hard": hard,
            "metric": final,
            "seconds": round(time.monotonic() - self.started, 1),
        }
        self._save()
        if self.processes.first:
            write_json(self.output / "scheme.json", scheme)
            write_json(self.output / "summary.json", summary)  # last: its presence says that the search is finished
        self.processes.wait()
        return summary


def _sites(model: nn.Module, sample: Tensor) -> Any:
    try:
        return record(model, [sample])
    except Exception as error:
        raise ModelError(
            f"the model failed on an input of shape {list(sample.shape)}: {type(error).__name__}: {error}"
        ) from error
