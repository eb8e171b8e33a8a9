"""The outputs and task levels: both sides' outputs for the same samples."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from csqtool.nn.quantized_net import QuantizedNet
from csqtool.task import Task
from csqtool.verifying import runtime
from csqtool.verifying.findings import VerifyReport


@torch.no_grad()
def reference_outputs(net: QuantizedNet, inputs: torch.Tensor) -> NDArray[Any]:
    """Return the PyTorch network's outputs for all inputs."""
    size = runtime.batch_size(inputs.nbytes / max(len(inputs), 1))
    parts: list[NDArray[Any]] = [net(inputs[s : s + size]).numpy() for s in range(0, len(inputs), size)]
    return np.concatenate(parts)


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


def same_labels(found: NDArray[Any], wanted: NDArray[Any], *, margin: float) -> bool:
    """Tell whether labels are equal, but for ties: one that scores at most `margin` below the best is as good."""
    chosen = np.take_along_axis(wanted, found.argmax(-1, keepdims=True), -1)
    return bool((wanted.max(-1, keepdims=True) - chosen <= margin).all())


def compare_outputs(
    found: NDArray[Any],
    wanted: NDArray[Any],
    task: Task,
    float_activations: bool,
    name: str,
    optimization: str,
    report: VerifyReport,
) -> None:
    """Add the check of all outputs at one optimization level."""
    allowed = report.tolerances
    if found.shape != wanted.shape:
        report.add("outputs", name, False, f"shape {list(found.shape)} instead of {list(wanted.shape)}")
        return
    if not (np.isfinite(found).all() and np.isfinite(wanted).all()):
        report.add("outputs", name, False, "outputs that are not finite")
        return
    difference = np.abs(found.astype(np.float64) - wanted)
    norms = float(np.linalg.norm(found) * np.linalg.norm(wanted))
    figures = {
        "max_abs_diff": float(difference.max()),
        "mean_abs_diff": float(difference.mean()),
        "max_rel_diff": float(difference.max()) / max(float(np.abs(wanted).max()), 1e-12),
        "cosine": float((found.astype(np.float64) * wanted).sum() / norms) if norms else 0.0,
    }
    if task.labels:
        figures["agreement"] = agreement(found, wanted)
    spread = spread_of(wanted)
    if float_activations:
        tolerance = allowed.outputs_float * spread
        holds = figures["max_abs_diff"] <= tolerance
        if task.labels:
            holds &= same_labels(found, wanted, margin=2 * tolerance)
    else:
        min_agreement = allowed.outputs_agreement_off if optimization == "off" else allowed.outputs_agreement
        holds = figures["mean_abs_diff"] <= allowed.outputs_mean * spread
        holds &= figures.get("agreement", 1.0) >= min_agreement
    words = [
        f"max {figures['max_abs_diff']:.2g}",
        f"mean {figures['mean_abs_diff']:.2g}",
        f"cosine {figures['cosine']:.6f}",
    ]
    if task.labels:
        words.append(f"agreement {figures['agreement']:.2%}")
    report.add("outputs", name, holds, ", ".join(words), None, **figures)


def compare_levels(results: dict[str, NDArray[Any]], task: Task, report: VerifyReport) -> None:
    """Add the check that onnxruntime's optimization levels agree with one another.

    Each level is also compared with PyTorch; this check finds two levels that differ in opposite directions.
    """
    allowed = report.tolerances
    pairs = list(combinations(results, 2))
    if not pairs or any(results[a].shape != results[b].shape for a, b in pairs):
        return  # failed above
    differences = {(a, b): float(np.abs(results[a].astype(np.float64) - results[b]).max()) for a, b in pairs}
    worst = max(differences, key=differences.__getitem__)
    figures = {"max_abs_diff_of_levels": differences[worst]}
    words = f"at most {differences[worst]:.2g} apart ({worst[0]}, {worst[1]})"
    holds = np.isfinite(differences[worst])
    if task.labels:
        figures["agreement"] = min(agreement(results[a], results[b]) for a, b in pairs)
        words += f", agreement {figures['agreement']:.2%}"
        holds &= figures["agreement"] >= min(allowed.outputs_agreement, allowed.outputs_agreement_off)
    report.add("outputs", "optimization levels against each other", bool(holds), words, None, **figures)


def compare_task(
    found: NDArray[Any], wanted: NDArray[Any], targets: torch.Tensor, task: Task, report: VerifyReport
) -> None:
    """Add the check of the task's metric on both sides."""
    if found.shape != wanted.shape:
        report.add("task", task.metric_name, False, "outputs of another shape")
        return
    metric, reference = (task.metric(torch.from_numpy(outputs), targets) for outputs in (found, wanted))
    holds = abs(metric - reference) <= report.tolerances.metric
    detail = f"{metric:.4f}, PyTorch {reference:.4f}"
    report.add("task", task.metric_name, holds, detail, None, metric=metric, metric_reference=reference)
