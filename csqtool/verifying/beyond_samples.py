"""The outputs level beyond the test set as it is: other batches, other sizes, other inputs, and every single label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from csqtool.errors import InputError
from csqtool.onnx_isolated import IsolatedSession
from csqtool.verifying import runtime
from csqtool.verifying.outputs import reference_outputs
from csqtool.verifying.rounding import allowed_differences
from csqtool.verifying.subject import Subject
from csqtool.verifying.synthetic import resized, synthetic_inputs

BATCHES = (1, 2, 7, 64)
WHOLE = 1000  # samples in the largest batch, at most
SUSPECTS = 16  # samples whose rounding is played through, those with the largest differences
RESIZED = 4
LISTED = 10


def compare_beyond(proto: onnx.ModelProto, subject: Subject, inputs: Tensor, wanted: NDArray[Any]) -> None:
    """Compare both sides on the test samples in other batches, at other sizes, and on inputs that no test set holds.

    Args:
        proto: the file.
        subject: what it is compared with.
        inputs: test samples.
        wanted: PyTorch's outputs for them.
    """
    try:
        loaded = IsolatedSession(subject.content, "on", threads=subject.threads)
    except RuntimeError as error:
        subject.report.add("outputs", "other batches and inputs", False, str(error))
        return
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    sizes = [*BATCHES, min(WHOLE, len(inputs))]
    chosen = torch.cat([order[torch.arange(size) % len(order)] for size in sizes])
    name = f"permuted, in batches of {', '.join(str(size) for size in sizes[:-1])} and {sizes[-1]}"
    _compare(loaded, subject, name, inputs[chosen], wanted[chosen.numpy()], sizes)
    subject.tell("outputs on synthetic inputs …")
    for kind, made in synthetic_inputs(inputs).items():
        _compare(loaded, subject, f"synthetic inputs: {kind}", made, reference_outputs(subject.net, made))
    for axis, size in _other_sizes(proto, inputs):
        made = resized(inputs[:RESIZED], axis, size)
        try:
            reference = reference_outputs(subject.net, made)
        except Exception:
            continue
        _compare(loaded, subject, f"axis {axis} of size {size}", made, reference)


def _other_sizes(proto: onnx.ModelProto, inputs: Tensor) -> Iterator[tuple[int, int]]:
    """Yield other sizes of each axis that is dynamic beside the batch."""
    for axis, dim in enumerate(proto.graph.input[0].type.tensor_type.shape.dim):
        if axis and not dim.HasField("dim_value"):
            size = inputs.shape[axis]
            yield from ((axis, other) for other in (size // 2, size + 1, 2 * size) if other > 0)


def _compare(
    loaded: Any, subject: Subject, name: str, inputs: Tensor, wanted: NDArray[Any], sizes: list[int] | None = None
) -> None:
    report = subject.report
    try:
        found = runtime.run_batches(loaded, {"input": inputs.numpy()}, sizes)["output"]
    except (RuntimeError, ValueError) as error:
        report.add("outputs", name, False, str(error))
        return
    if found.shape != wanted.shape:
        report.add("outputs", name, False, f"shape {list(found.shape)} instead of {list(wanted.shape)}")
        return
    differences = _differences(found, wanted)
    worst = np.argsort(-differences, kind="stable")[:SUSPECTS]
    worst = worst[~(differences[worst] <= report.tolerances.outputs_float)]
    allowed = np.zeros(0)
    if len(worst):
        allowed = allowed_differences(subject.net, inputs[worst], wanted[worst], report.tolerances)
    wrong = worst[~(differences[worst] <= allowed)]
    largest = float(differences.max())
    if not len(wrong):
        report.add("outputs", name, True, f"{len(inputs)} inputs, max {largest:.2g}", None, max_abs_diff_beyond=largest)
        return
    saved = _save(subject, name, inputs, found, wanted, wrong)
    report.add(
        "outputs", name, False,
        f"input {int(wrong[0])}: {differences[wrong[0]]:.2g} off, rounding explains "
        f"{allowed[list(worst).index(wrong[0])]:.2g}{saved}",
        None, max_abs_diff_beyond=largest,
    )  # fmt: skip


def _differences(found: NDArray[Any], wanted: NDArray[Any]) -> NDArray[np.float64]:
    """Return each sample's largest difference, infinite where one side alone is not finite, [N]."""
    with np.errstate(invalid="ignore"):
        apart = np.abs(found.astype(np.float64) - wanted)
    same = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
    apart = np.where(same, 0.0, np.where(np.isfinite(apart), apart, np.inf))
    return np.asarray(apart.reshape(len(apart), -1).max(axis=1, initial=0.0))


class LabelJudge:
    """Judges every label on which two sides disagree: can rounding have moved it?"""

    def __init__(self, subject: Subject, inputs: Tensor, wanted: NDArray[Any]) -> None:
        self._subject = subject
        self._inputs = inputs
        self._wanted = wanted
        self._allowed: dict[int, float] = {}

    def judge(self, found: NDArray[Any], name: str) -> None:
        """Add a check that lists the disagreements of one run, if there are any, and fails if one is unexplained."""
        wanted = self._wanted
        if not self._subject.source.task.labels or found.shape != wanted.shape or found.ndim < 2:
            return
        differing = (found.argmax(-1) != wanted.argmax(-1)).reshape(len(found), -1).any(1)
        samples = [int(i) for i in np.flatnonzero(differing)]
        if not samples:
            return
        differences = _differences(found, wanted)
        self._play_through([i for i in samples if i not in self._allowed])
        wrong = [i for i in samples if not differences[i] <= self._allowed[i]]
        ordered = [*wrong, *(i for i in samples if i not in wrong)]
        words = "; ".join(self._words(i, found, differences) for i in ordered[:LISTED])
        more = f"; and {len(samples) - LISTED} more" if len(samples) > LISTED else ""
        saved = _save(self._subject, f"{name} labels", self._inputs, found, wanted, np.array(wrong)) if wrong else ""
        verdict = f"{len(wrong)} of {len(samples)} not explained by rounding" if wrong else "rounding explains each"
        self._subject.report.add(
            "outputs", f"label disagreements, {name}", not wrong, f"{verdict}: {words}{more}{saved}"
        )  # fmt: skip

    def _play_through(self, samples: list[int]) -> None:
        if samples:
            allowed = allowed_differences(
                self._subject.net, self._inputs[samples], self._wanted[samples], self._subject.report.tolerances
            )
            self._allowed |= dict(zip(samples, allowed.tolist(), strict=True))

    def _words(self, sample: int, found: NDArray[Any], differences: NDArray[np.float64]) -> str:
        wanted = self._wanted[sample]
        text = f"sample {sample}: "
        if wanted.ndim == 1:
            ours, theirs = int(wanted.argmax()), int(found[sample].argmax())
            margin = float(wanted[ours] - wanted[theirs])
            text += f"{theirs}, PyTorch {ours} by a margin of {margin:.2g}, "
        return text + f"{differences[sample]:.2g} off, rounding explains {self._allowed[sample]:.2g}"


def _save(
    subject: Subject, name: str, inputs: Tensor, found: NDArray[Any], wanted: NDArray[Any], wrong: NDArray[Any]
) -> str:
    """Write the inputs on which both sides disagree, if asked for, and return where, as text."""
    folder = subject.save_inputs
    if folder is None:
        return ""
    path = folder / f"{''.join(c if c.isalnum() else '-' for c in name)}.npz"
    arrays: Mapping[str, NDArray[Any]] = {
        "inputs": inputs.numpy()[wrong], "found": found[wrong], "pytorch": wanted[wrong], "indices": np.asarray(wrong)
    }  # fmt: skip
    _write(path, arrays)
    return f"; saved in {path}"


def _write(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **dict(arrays))  # type: ignore[arg-type]
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}") from error
