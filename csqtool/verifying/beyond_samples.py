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
from csqtool.nn.signature import named_inputs, recorded_inputs
from csqtool.onnx_isolated import IsolatedSession
from csqtool.trees import chosen, samples, tensors
from csqtool.verifying import runtime
from csqtool.verifying.outputs import Arrays, differences_of, reference_outputs, titled
from csqtool.verifying.rounding import allowed_differences
from csqtool.verifying.subject import Subject
from csqtool.verifying.synthetic import resized, synthetic_inputs

BATCHES = (1, 2, 7, 64)
WHOLE = 1000  # samples in the largest batch, at most
SUSPECTS = 16  # samples whose rounding is played through, those with the largest differences
RESIZED = 4
LISTED = 10


def compare_beyond(proto: onnx.ModelProto, subject: Subject, inputs: Any, wanted: Arrays) -> None:
    """Compare both sides on the test samples in other batches, at other sizes, and on inputs that no test set holds.

    Args:
        proto: the file.
        subject: what it is compared with.
        inputs: those of the test samples.
        wanted: PyTorch's outputs for them.
    """
    count = samples(inputs)
    try:
        loaded = IsolatedSession(subject.content, "on", threads=subject.threads)
    except RuntimeError as error:
        subject.report.add("outputs", "other batches and inputs", False, str(error))
        return
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    sizes = [*BATCHES, min(WHOLE, count)]
    positions = torch.cat([order[torch.arange(size) % len(order)] for size in sizes])
    name = f"permuted, in batches of {', '.join(str(size) for size in sizes[:-1])} and {sizes[-1]}"
    permuted = {output: array[positions.numpy()] for output, array in wanted.items()}
    _compare(loaded, subject, name, chosen(inputs, positions, count), permuted, sizes)
    subject.tell("outputs on synthetic inputs …")
    for kind, made in synthetic_inputs(inputs).items():
        _compare(loaded, subject, f"synthetic inputs: {kind}", made, reference_outputs(subject.net, made))
    few = chosen(inputs, slice(RESIZED), count)
    for axis, size in _other_sizes(proto, inputs):
        made = resized(few, axis, size)
        try:
            reference = reference_outputs(subject.net, made)
        except Exception:
            continue
        _compare(loaded, subject, f"axis {axis} of size {size}", made, reference)


def _other_sizes(proto: onnx.ModelProto, inputs: Any) -> Iterator[tuple[int, int]]:
    """Yield other sizes of each axis of the first input that is dynamic beside the batch."""
    first = next(tensors(inputs))
    for axis, dim in enumerate(proto.graph.input[0].type.tensor_type.shape.dim):
        if axis and not dim.HasField("dim_value"):
            size = first.shape[axis]
            yield from ((axis, other) for other in (size // 2, size + 1, 2 * size) if other > 0)


def _compare(
    loaded: Any, subject: Subject, name: str, inputs: Any, wanted: Arrays, sizes: list[int] | None = None
) -> None:
    try:
        feeds = named_inputs(inputs, recorded_inputs(subject.model.info), subject.net.model)
        found = runtime.run_batches(loaded, {key: tensor.numpy() for key, tensor in feeds.items()}, sizes)
    except (RuntimeError, ValueError) as error:
        subject.report.add("outputs", name, False, str(error))
        return
    compare_samples(subject, name, inputs, found, wanted)


def compare_samples(subject: Subject, name: str, inputs: Any, found: Arrays, wanted: Arrays) -> None:
    """Add the check that no sample's outputs are further from PyTorch's than rounding explains.

    Args:
        subject: gets the check.
        name: the check's name.
        inputs: those of N samples.
        found: the file's outputs.
        wanted: PyTorch's.
    """
    report = subject.report
    largest = 0.0
    suspects: dict[str, NDArray[np.int64]] = {}
    differences: dict[str, NDArray[np.float64]] = {}
    for output, reference in wanted.items():
        if output not in found or found[output].shape != reference.shape:
            shape = list(found[output].shape) if output in found else "none"
            title = titled(name, output, wanted)
            report.add("outputs", title, False, f"shape {shape} instead of {list(reference.shape)}")
            return
        apart = differences[output] = differences_of(found[output], reference)
        largest = max(largest, float(apart.max()))
        worst = np.argsort(-apart, kind="stable")[:SUSPECTS]
        suspects[output] = worst[~(apart[worst] <= report.tolerances.outputs_float)]
    allowed = _allowed(subject, inputs, wanted, np.unique(np.concatenate(list(suspects.values()))))
    failed = False
    for output, worst in suspects.items():
        wrong = np.array([i for i in worst if not differences[output][i] <= allowed[output][i]], np.int64)
        if len(wrong):
            failed = True
            title, first = titled(name, output, wanted), int(wrong[0])
            saved = _save(subject, title, inputs, found[output], wanted[output], wrong)
            report.add(
                "outputs", title, False,
                f"input {first}: {differences[output][first]:.2g} off, rounding explains "
                f"{allowed[output][first]:.2g}{saved}",
                None, max_abs_diff_beyond=float(differences[output].max()),
            )  # fmt: skip
    if not failed:
        detail = f"{samples(inputs)} inputs, max {largest:.2g}"
        report.add("outputs", name, True, detail, None, max_abs_diff_beyond=largest)


def _allowed(
    subject: Subject, inputs: Any, wanted: Arrays, positions: NDArray[np.int64]
) -> dict[str, dict[int, float]]:
    """Return what rounding explains of the samples at some positions, by output."""
    if not len(positions):
        return {name: {} for name in wanted}
    few = chosen(inputs, torch.from_numpy(positions), samples(inputs))
    of_few = {name: array[positions] for name, array in wanted.items()}
    allowed = allowed_differences(subject.net, few, of_few, subject.report.tolerances)
    return {name: dict(zip(positions.tolist(), values.tolist(), strict=True)) for name, values in allowed.items()}


class LabelJudge:
    """Judges every label on which two sides disagree: can rounding have moved it?"""

    def __init__(self, subject: Subject, inputs: Any, wanted: Arrays, scores: str | None) -> None:
        self._subject = subject
        self._inputs = inputs
        self._outputs = wanted
        self._scores = scores
        self._allowed: dict[int, float] = {}

    def judge(self, outputs: Arrays, name: str) -> None:
        """Add a check that lists the disagreements of one run, if there are any, and fails if one is unexplained."""
        if self._scores is None or self._scores not in outputs:
            return
        found, wanted = outputs[self._scores], self._outputs[self._scores]
        if found.shape != wanted.shape or found.ndim < 2:
            return
        differing = (found.argmax(-1) != wanted.argmax(-1)).reshape(len(found), -1).any(1)
        disagreeing = [int(i) for i in np.flatnonzero(differing)]
        if not disagreeing:
            return
        differences = differences_of(found, wanted)
        self._play_through([i for i in disagreeing if i not in self._allowed])
        wrong = [i for i in disagreeing if not differences[i] <= self._allowed[i]]
        ordered = [*wrong, *(i for i in disagreeing if i not in wrong)]
        words = "; ".join(self._words(i, found, differences) for i in ordered[:LISTED])
        more = f"; and {len(disagreeing) - LISTED} more" if len(disagreeing) > LISTED else ""
        saved = _save(self._subject, f"{name} labels", self._inputs, found, wanted, np.array(wrong)) if wrong else ""
        verdict = f"{len(wrong)} of {len(disagreeing)} not explained by rounding" if wrong else "rounding explains each"
        self._subject.report.add(
            "outputs", f"label disagreements, {name}", not wrong, f"{verdict}: {words}{more}{saved}"
        )  # fmt: skip

    def _play_through(self, wanted: list[int]) -> None:
        assert self._scores is not None
        positions = np.array(wanted, np.int64)
        self._allowed |= _allowed(self._subject, self._inputs, self._outputs, positions)[self._scores]

    def _words(self, sample: int, found: NDArray[Any], differences: NDArray[np.float64]) -> str:
        assert self._scores is not None
        wanted = self._outputs[self._scores][sample]
        text = f"sample {sample}: "
        if wanted.ndim == 1:
            ours, theirs = int(wanted.argmax()), int(found[sample].argmax())
            margin = float(wanted[ours] - wanted[theirs])
            text += f"{theirs}, PyTorch {ours} by a margin of {margin:.2g}, "
        return text + f"{differences[sample]:.2g} off, rounding explains {self._allowed[sample]:.2g}"


def _save(
    subject: Subject, name: str, inputs: Any, found: NDArray[Any], wanted: NDArray[Any], wrong: NDArray[Any]
) -> str:
    """Write the inputs on which both sides disagree, if asked for, and return where, as text."""
    folder = subject.save_inputs
    if folder is None:
        return ""
    path = folder / f"{''.join(c if c.isalnum() else '-' for c in name)}.npz"
    named = {"inputs": inputs} if isinstance(inputs, Tensor) else {
        f"inputs.{key}": tensor
        for key, tensor in named_inputs(inputs, recorded_inputs(subject.model.info), subject.net.model).items()
    }  # fmt: skip
    arrays = {key: tensor.numpy()[wrong] for key, tensor in named.items()}
    arrays |= {"found": found[wrong], "pytorch": wanted[wrong], "indices": np.asarray(wrong)}
    _write(path, arrays)
    return f"; saved in {path}"


def _write(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **dict(arrays))  # type: ignore[arg-type]
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}") from error
