"""The outputs and task levels: both sides' outputs for the same samples."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from csqtool.errors import FormatError, ModelError
from csqtool.nn.quantized_net import QuantizedNet
from csqtool.nn.signature import as_returned, named_outputs
from csqtool.quantized_model import QuantizedModel
from csqtool.task import Task, main_output, new_metric, value_of
from csqtool.trees import call, chosen, samples, tensors
from csqtool.verifying import runtime
from csqtool.verifying.findings import VerifyReport
from csqtool.verifying.subject import Subject
from csqtool.verifying.tolerances import Tolerances

METRIC_BATCH = 500  # samples that a metric is updated with at a time


Arrays = dict[str, NDArray[Any]]  # outputs by name, [N, …] each


@torch.no_grad()
def reference_outputs(net: QuantizedNet, inputs: Any) -> Arrays:
    """Return the PyTorch network's outputs for all inputs, by name."""
    count = samples(inputs)
    size = runtime.batch_size(sum(tensor.nbytes for tensor in tensors(inputs)) / max(count, 1))
    parts = [
        named_outputs(call(net, chosen(inputs, slice(start, start + size), count)), net.kept_outputs)
        for start in range(0, count, size)
    ]
    return {name: np.concatenate([part[name].numpy() for part in parts]) for name in parts[0]}


@dataclass(frozen=True)
class Judge:
    """What a task sees of outputs that are known by name.

    Attributes:
        task: the task.
        like: what the network returns for a few samples.
        scores: the name of the output that labels are chosen by; None where the task has no labels.
    """

    task: Task
    like: Any
    scores: str | None

    @classmethod
    @torch.no_grad()
    def of(cls, task: Task, net: QuantizedNet, inputs: Any) -> Judge:
        """Return the judge of a network's outputs, given the inputs of a few samples."""
        like = call(net, inputs)
        named = named_outputs(like, net.kept_outputs)
        scores = None
        if task.labels:
            main = main_output(like, task)
            scores = next((name for name, value in named.items() if value is main), None)
        return cls(task, like, scores)

    def metric(self, outputs: Mapping[str, NDArray[Any]], targets: Any) -> float:
        """Return the task's metric of outputs by name."""
        found = as_returned(self.like, {name: torch.from_numpy(array) for name, array in outputs.items()})
        metric, main = new_metric(self.task), main_output(found, self.task)
        count = len(next(iter(outputs.values())))
        for start in range(0, count, METRIC_BATCH):
            part = slice(start, start + METRIC_BATCH)
            metric.update(chosen(main, part, count), chosen(targets, part, count))
        return value_of(metric)


@dataclass(frozen=True)
class Followed:
    """PyTorch's outputs where it rounds some values on a boundary as a file does, and how many values these are."""

    outputs: Arrays
    boundaries: int


@dataclass(frozen=True)
class BothSides:
    """Outputs of the test samples: of the finalized network, and of one that is rebuilt from a file."""

    wanted: Arrays
    found: Arrays
    targets: Any
    judge: Judge
    model: QuantizedModel
    net: QuantizedNet


def both_sides(subject: Subject, rebuilt: Callable[[], QuantizedModel], name: str) -> BothSides | None:
    """Return the outputs of both sides; None without test samples.

    If the file makes no network, it is None, too, and a check fails.

    Args:
        subject: what is verified.
        rebuilt: returns the model that the file holds.
        name: of the check that fails.
    """
    test = subject.test_set()
    if test is None:
        return None
    inputs, targets = test
    count = samples(inputs)
    subject.tell(f"outputs on {count} samples …")
    try:
        model = rebuilt()
        net = subject.build_net(model)
    except (FormatError, ModelError) as error:
        subject.report.add("outputs", name, False, str(error))
        return None
    judge = Judge.of(subject.source.task, subject.net, chosen(inputs, slice(2), count))
    wanted, found = reference_outputs(subject.net, inputs), reference_outputs(net, inputs)
    return BothSides(wanted, found, targets, judge, model, net)


def titled(name: str, output: str, outputs: Collection[str]) -> str:
    """Return the name of a check; that of one of several outputs is named in it."""
    return name if len(outputs) == 1 else f"{name}: {output}"


def agreement(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Return the share of samples with the same label; 0 if shapes differ."""
    if found.shape != wanted.shape or found.ndim < 2:
        return 0.0
    return float((found.argmax(-1) == wanted.argmax(-1)).mean())


def spread_of(outputs: NDArray[Any]) -> float:
    """Return the standard deviation of outputs, or a thousandth of the largest one if that is more.

    Outputs that hardly differ, far from zero, cannot be closer than float32 resolves the largest of them.
    """
    wide = outputs.astype(np.float64)
    return max(float(wide.std()), float(np.abs(wide).max()) / 1000, 1e-12)


def differences_of(found: NDArray[Any], wanted: NDArray[Any]) -> NDArray[np.float64]:
    """Return each sample's largest difference, infinite where one side alone is not finite, [N]."""
    with np.errstate(invalid="ignore"):
        apart = np.abs(found.astype(np.float64) - wanted)
    same = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
    apart = np.where(same, 0.0, np.where(np.isfinite(apart), apart, np.inf))
    return np.asarray(apart.reshape(len(apart), -1).max(axis=1, initial=0.0))


def same_labels(found: NDArray[Any], wanted: NDArray[Any], *, margin: float) -> bool:
    """Tell whether labels are equal, but for ties: one that scores at most `margin` below the best is as good."""
    chosen = np.take_along_axis(wanted, found.argmax(-1, keepdims=True), -1)
    return bool((wanted.max(-1, keepdims=True) - chosen <= margin).all())


def compare_outputs(
    found: Mapping[str, NDArray[Any]],
    wanted: Mapping[str, NDArray[Any]],
    judge: Judge,
    float_activations: bool,
    name: str,
    optimization: str,
    report: VerifyReport,
    follow: Callable[[], Followed | None] | None = None,
) -> None:
    """Add the check of each output at one optimization level.

    Args:
        found: a backend's outputs.
        wanted: PyTorch's.
        judge: says which output labels are chosen by.
        float_activations: whether no activation is quantized.
        name: the check's name.
        optimization: the level.
        report: is added to.
        follow: returns what PyTorch's outputs are where it rounds as the backend does on boundaries; called where
            outputs are too far apart. They are then held to the same bounds; the figures stay those of PyTorch's own.
    """
    followed = None if follow is None or float_activations else cache(follow)

    def of(output: str) -> tuple[NDArray[Any], int] | None:
        same = None if followed is None else followed()
        return None if same is None else (same.outputs[output], same.boundaries)

    for output, reference in wanted.items():
        title = titled(name, output, wanted)
        if output not in found:
            report.add("outputs", title, False, "it is not there")
        else:
            labels = output == judge.scores
            _compare_output(found[output], reference, labels, float_activations, title, optimization, report,
                            partial(of, output))  # fmt: skip


def _compare_output(
    found: NDArray[Any],
    wanted: NDArray[Any],
    labels: bool,
    float_activations: bool,
    name: str,
    optimization: str,
    report: VerifyReport,
    follow: Callable[[], tuple[NDArray[Any], int] | None],
) -> None:
    allowed = report.tolerances
    if found.shape != wanted.shape:
        report.add("outputs", name, False, f"shape {list(found.shape)} instead of {list(wanted.shape)}")
        return
    if found.dtype != wanted.dtype:
        report.add("outputs", name, False, f"{found.dtype} instead of {wanted.dtype}")
        return
    if not (np.isfinite(found).all() and np.isfinite(wanted).all()):
        report.add("outputs", name, False, "outputs that are not finite")
        return
    figures = _figures(found, wanted, labels)
    spread = spread_of(wanted)
    if float_activations:
        tolerance = allowed.outputs_float * spread
        holds = figures["max_abs_diff"] <= tolerance
        if labels:
            holds &= same_labels(found, wanted, margin=2 * tolerance)
    else:
        holds = _is_close(figures, spread, optimization, allowed)
    words = [
        f"max {figures['max_abs_diff']:.2g}",
        f"mean {figures['mean_abs_diff']:.2g}",
        f"cosine {figures['cosine']:.6f}",
    ]
    if labels:
        words.append(f"agreement {figures['agreement']:.2%}")
    if not holds and (same := follow()) is not None:
        reference, boundaries = same
        again = _figures(found, reference, labels)
        if holds := _is_close(again, spread, optimization, allowed):
            words.append(f"mean {again['mean_abs_diff']:.2g} once PyTorch rounds {boundaries} values that lie on a "
                         "boundary to the same side")  # fmt: skip
    report.add("outputs", name, holds, ", ".join(words), None, **figures)


def _figures(found: NDArray[Any], wanted: NDArray[Any], labels: bool) -> dict[str, float]:
    difference = np.abs(found.astype(np.float64) - wanted)
    norms = float(np.linalg.norm(found.astype(np.float64)) * np.linalg.norm(wanted.astype(np.float64)))
    figures = {
        "max_abs_diff": float(difference.max()),
        "mean_abs_diff": float(difference.mean()),
        "max_rel_diff": float(difference.max()) / max(float(np.abs(wanted).max()), 1e-12),
        "cosine": float((found.astype(np.float64) * wanted).sum() / norms) if norms else 0.0,
    }
    return figures | ({"agreement": agreement(found, wanted)} if labels else {})


def _is_close(figures: Mapping[str, float], spread: float, optimization: str, allowed: Tolerances) -> bool:
    """Tell whether outputs are as close as quantized activations let them be."""
    min_agreement = allowed.outputs_agreement_off if optimization == "off" else allowed.outputs_agreement
    return figures["mean_abs_diff"] <= allowed.outputs_mean * spread and figures.get("agreement", 1.0) >= min_agreement


def compare_levels(results: Mapping[str, Arrays], judge: Judge, report: VerifyReport) -> None:
    """Add the check that onnxruntime's optimization levels agree with one another.

    Each level is also compared with PyTorch; this check finds two levels that differ in opposite directions.
    """
    allowed = report.tolerances
    pairs = list(combinations(results, 2))
    names = list(next(iter(results.values()), {}))
    if not pairs or any(results[a][n].shape != results[b][n].shape for a, b in pairs for n in names):
        return  # failed above
    differences = {
        (a, b): max(float(np.abs(results[a][n].astype(np.float64) - results[b][n]).max()) for n in names)
        for a, b in pairs
    }
    worst = max(differences, key=differences.__getitem__)
    figures = {"max_abs_diff_of_levels": differences[worst]}
    words = f"at most {differences[worst]:.2g} apart ({worst[0]}, {worst[1]})"
    holds = np.isfinite(differences[worst])
    if judge.scores in names:
        figures["agreement"] = min(agreement(results[a][judge.scores], results[b][judge.scores]) for a, b in pairs)
        words += f", agreement {figures['agreement']:.2%}"
        holds &= figures["agreement"] >= min(allowed.outputs_agreement, allowed.outputs_agreement_off)
    report.add("outputs", "optimization levels against each other", bool(holds), words, None, **figures)


def compare_task(
    found: Mapping[str, NDArray[Any]],
    wanted: Mapping[str, NDArray[Any]],
    targets: Any,
    judge: Judge,
    report: VerifyReport,
) -> None:
    """Add the check of the task's metric on both sides."""
    name = judge.task.metric_name
    if {n: a.shape for n, a in found.items()} != {n: a.shape for n, a in wanted.items()}:
        report.add("task", name, False, "outputs of another shape")
        return
    try:
        metric, reference = (judge.metric(outputs, targets) for outputs in (found, wanted))
    except (ModelError, AttributeError, KeyError, TypeError) as error:
        if set(wanted) == set(named_outputs(judge.like)):
            raise
        report.add("task", name, False, f"the outputs that were kept do not suffice for it: {error}")
        return
    holds = abs(metric - reference) <= report.tolerances.metric
    detail = f"{metric:.4f}, PyTorch {reference:.4f}"
    report.add("task", name, holds, detail, None, metric=metric, metric_reference=reference)
