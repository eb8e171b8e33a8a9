"""A search from start to end: float training, gates, hardening, and the run directory that records it."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from csqtool.data import DataSource, check_fit, load_data
from csqtool.errors import DataError, InputError, ModelError, SearchInterrupted
from csqtool.factories import build_model
from csqtool.files import read_json, write_bytes, write_json
from csqtool.nn.dataflow import Placement, place_quantizers, record
from csqtool.nn.gates import quantizable_weights
from csqtool.nn.net import QuantizedNet, make_quantizers
from csqtool.quantized_model import twos_complement_bits
from csqtool.search.checkpoint import load_torch_file, load_weights, save_checkpoint
from csqtool.search.config import SearchConfig
from csqtool.search.loop import Phase, batches_of, evaluate
from csqtool.search.method import Method, load_method
from csqtool.search.progress import Progress, Silent

CALIBRATION_SAMPLES = 1024
BN_SAMPLES = 20_000
CHECKPOINT = Path("checkpoints") / "last.pt"
RUN_FILES = ("config.json", "log.jsonl", "scheme.json", "summary.json", "float.safetensors", "checkpoints")


@dataclass
class FinishedSearch:
    """A finished search as `finalize` needs it."""

    config: SearchConfig
    data: DataSource
    net: QuantizedNet
    method: Method
    placement: Placement
    summary: dict[str, Any]


def search(
    config: SearchConfig, output: Path, *, overwrite: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Search bit widths and write a run directory.

    Args:
        config: the settings.
        output: the run directory; must not hold a run already, unless `overwrite`.
        overwrite: remove a run that is there.
        progress: told about every step.

    Returns:
        The summary, as in ``summary.json``.

    Raises:
        InputError: model, data, weights or folder cannot be used.
        SearchInterrupted: Ctrl-C; the state is saved.
    """
    run = _Run(config, output, progress or Silent())
    _prepare_folder(output, overwrite=overwrite)
    write_json(output / "config.json", config.to_json())
    return run.to_end()


def resume_search(output: Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Go on with an interrupted search from its last checkpoint; a finished one returns its summary.

    Raises:
        InputError: `output` holds no search.
    """
    if not (output / "config.json").is_file():
        raise InputError(f"{output} holds no search (no config.json)")
    if (output / "summary.json").is_file():
        summary: dict[str, Any] = read_json(output / "summary.json")
        return summary
    config = SearchConfig.from_json(read_json(output / "config.json"), where=str(output / "config.json"))
    run = _Run(config, output, progress or Silent())
    if (output / CHECKPOINT).is_file():
        run.load(load_torch_file(output / CHECKPOINT))
    return run.to_end()


def load_finished(output: Path) -> FinishedSearch:
    """Return a finished search, rebuilt from its run directory.

    Raises:
        InputError: there is no search, or it is not finished.
    """
    if not (output / "config.json").is_file():
        raise InputError(f"{output} holds no search (no config.json)")
    if not (output / "summary.json").is_file():
        raise InputError(f"the search in {output} is not finished; go on with: csqtool search --resume {output}")
    config = SearchConfig.from_json(read_json(output / "config.json"), where=str(output / "config.json"))
    run = _Run(config, output, Silent())
    run.load(load_torch_file(output / CHECKPOINT))
    assert run.method is not None
    run.method.set_hard(True)
    run.phase.net.eval()
    return FinishedSearch(
        config, run.data, run.phase.net, run.method, run.placement, read_json(output / "summary.json")
    )


def _prepare_folder(output: Path, *, overwrite: bool) -> None:
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; name a folder for the run")
    if (output / "config.json").exists():
        if not overwrite:
            raise InputError(
                f"{output} already holds a search; go on with --resume {output}, replace it with --overwrite, "
                "or name another folder"
            )
        for name in RUN_FILES:
            old = output / name
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    try:
        (output / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror or error}") from error


class _Run:
    """The state of a search in one process."""

    def __init__(self, config: SearchConfig, output: Path, progress: Progress) -> None:
        self.config = config
        self.output = output
        self.progress = progress
        self.method: Method | None = None
        self.float_metric: float | None = None
        self.started = time.monotonic()
        torch.manual_seed(config.seed)
        near = output / "config.json"
        self.data = load_data(config.data, task=config.task, near=near)
        if problem := self.data.problem():
            raise DataError(problem)
        self.method_class = load_method(config.method)
        self.model = build_model(config.model, dict(config.model_args), near=near)
        if config.weights is not None:
            load_weights(self.model, Path(config.weights))
        self.weights = quantizable_weights(self.model, config.exclude)
        if not self.weights:
            raise ModelError("the model has no quantizable layers (convolution, linear, embedding, attention)")
        sample, _ = next(batches_of(self.data.test, most=2))
        self.placement = place_quantizers(_sites(self.model, sample), config.act_bits)
        check_fit(self.model, self.data)
        if config.pretrain_epochs:
            self.phase = self._float_phase()
        else:
            if config.weights is not None:
                self.float_metric = evaluate(self.model, self.data.test, self.data.task)
            self.phase = self._search_phase()

    def _float_phase(self) -> Phase:
        return Phase(
            "float", (self.config.pretrain_epochs,), QuantizedNet(self.model, []), None, self.config, self.data
        )

    def _search_phase(self, *, calibrate: bool = True) -> Phase:
        net = QuantizedNet(self.model, make_quantizers(self.placement))
        if calibrate and net.quantizers:
            device = next(self.model.parameters()).device
            samples = batches_of(self.data.train, most=CALIBRATION_SAMPLES)
            net.calibrate(x.to(device) for x, _ in samples)
        self.method = self.method_class(self.weights, self.model, self.config)
        return Phase(
            "search", (self.config.epochs, self.config.finetune_epochs), net, self.method, self.config, self.data
        )

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.float_metric = state["float_metric"]
        if state["phase"] == "search" and self.phase.name == "float":
            self.phase = self._search_phase(calibrate=False)
        self.phase.load_state(state)

    def to_end(self) -> dict[str, Any]:
        """Train until the search is finished, write the results and return the summary."""
        with _interruptible() as stop:
            if self.phase.name == "float":
                self._train(stop)
                self.float_metric = evaluate(self.model, self.data.test, self.data.task, self.phase.device)
                self.progress.line(f"float model: {self.data.task.metric_name} {self.float_metric:.4f}")
                self._save_float()
                self.phase = self._search_phase()
            self._train(stop)
        return self._finish()

    def _train(self, stop: Any) -> None:
        finished = self.phase.run(self.progress, self._after_epoch, stop)
        if not finished:
            self._save()
            raise SearchInterrupted(f"stopped; state saved, go on with: csqtool search --resume {self.output}")

    def _after_epoch(self, epoch: int, loss: float) -> None:
        phase, task = self.phase, self.data.task
        entry: dict[str, Any] = {"phase": phase.name, "epoch": epoch + 1, "loss": loss}
        entry["metric_soft"] = evaluate(phase.net, self.data.test, task, phase.device)
        if self.method is not None:
            self.method.set_hard(True)
            entry["metric_hard"] = evaluate(phase.net, self.data.test, task, phase.device)
            self.method.set_hard(False)
            entry |= self.method.status()
            entry["average_precision"] = self._average_precision()
            entry["precision"] = self.method.precisions()
        with open(self.output / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")
        shown = {k: v for k, v in entry.items() if isinstance(v, int | float) and k != "epoch"}
        words = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        self.progress.line(f"{phase.name} epoch {epoch + 1}/{phase.epochs}  {words}")
        self._save()

    def _average_precision(self) -> float:
        assert self.method is not None
        elements = {w.name: w.elements for w in self.weights}
        return sum(p * elements[n] for n, p in self.method.precisions().items()) / sum(elements.values())

    def _save(self) -> None:
        save_checkpoint(self.output / CHECKPOINT, {**self.phase.state(), "float_metric": self.float_metric})

    def _save_float(self) -> None:
        from safetensors.torch import save

        state = {k: v.detach().cpu().contiguous().clone() for k, v in self.model.state_dict().items()}
        write_bytes(self.output / "float.safetensors", save(state))

    def _finish(self) -> dict[str, Any]:
        """Harden all gates, re-estimate BatchNorm, evaluate, and write scheme and summary."""
        phase, task, method = self.phase, self.data.task, self.method
        assert method is not None
        method.finish()
        soft = evaluate(phase.net, self.data.test, task, phase.device)
        method.set_hard(True)
        hard = evaluate(phase.net, self.data.test, task, phase.device)
        _reestimate_batch_norm(phase, self.data)
        final = evaluate(phase.net, self.data.test, task, phase.device)
        scheme: list[dict[str, Any]] = [
            {
                "name": name,
                "precision": mask.count("1"),
                "mask": mask,
                "bit_width": twos_complement_bits(q),
                "elements": q.size,
            }
            for name, (q, _, mask) in method.integers().items()
        ]
        average = {
            key: sum(entry[key] * entry["elements"] for entry in scheme) / sum(entry["elements"] for entry in scheme)
            for key in ("precision", "bit_width")
        }
        summary = {
            "method": self.config.method,
            "target_bits": self.config.target_bits,
            "average_precision": average["precision"],
            "average_bit_width": average["bit_width"],
            "act_bits": self.config.act_bits,
            "metric_name": task.metric_name,
            "metric_float": self.float_metric,
            "metric_soft": soft,
            "metric_hard": hard,
            "metric": final,
            "input_shape": list(next(batches_of(self.data.test, most=1))[0].shape[1:]),
            "seconds": round(time.monotonic() - self.started, 1),
        }
        self._save()
        write_json(self.output / "scheme.json", scheme)
        write_json(self.output / "summary.json", summary)  # last: its presence says that the search is finished
        return summary


def _sites(model: nn.Module, sample: Tensor) -> Any:
    try:
        return record(model, [sample])
    except Exception as error:
        raise ModelError(
            f"the model failed on an input of shape {list(sample.shape)}: {type(error).__name__}: {error}"
        ) from error


def _reestimate_batch_norm(phase: Phase, data: DataSource) -> None:
    """Replace BatchNorm's running statistics by those of the hardened network."""
    samples = batches_of(data.train, most=BN_SAMPLES, size=max(phase.config.batch_size, 128))
    update_bn((x for x, _ in samples if len(x) > 1), phase.net, device=phase.device)
    phase.net.eval()


@contextmanager
def _interruptible() -> Iterator[Any]:
    """Yield a function that tells whether Ctrl-C was pressed; a second one interrupts at once."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: Any) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, handle)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
