"""The inputs of a verification: a file's bytes, the finalized model, its PyTorch network and the test data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from csqtool.data import DataSource, first_samples
from csqtool.data.datasets import Batch
from csqtool.nn.quantized_net import QuantizedNet
from csqtool.quantized_model import QuantizedModel
from csqtool.trees import samples, tensors
from csqtool.verifying.backends import Backend
from csqtool.verifying.findings import VerifyReport
from csqtool.verifying.weights import Problem


@dataclass(frozen=True)
class Subject:
    """One file under verification; checks add their verdicts to its report.

    Attributes:
        content: the file; one that is QONNX in standard operators.
        model: the finalized model that it must equal.
        finalized_sha256: of the finalized model's file.
        net: the finalized model as a PyTorch network.
        build_net: turns another finalized model of the same module into a network.
        source: data and task.
        samples: compare this many test samples, None all.
        report: the report that verdicts are added to.
        tell: called with a line for each check that begins.
        backends: what runs ONNX files.
        threads: onnxruntime's threads for the comparison of layers; 0 is its own choice.
        allow_unaccounted: parts of a graph that the structure level may leave unexplained, by name.
        save_inputs: folder for inputs on which the two sides disagree, None keeps none.
        qonnx: a QONNX file as it is; None for others.
    """

    content: bytes
    model: QuantizedModel
    finalized_sha256: str
    net: QuantizedNet
    build_net: Callable[[QuantizedModel], QuantizedNet]
    source: DataSource
    samples: int | None
    report: VerifyReport
    tell: Callable[[str], None]
    backends: Sequence[Backend]
    threads: int
    allow_unaccounted: frozenset[str] = frozenset()
    save_inputs: Path | None = None
    qonnx: bytes | None = None

    def check_origin(self, recorded: str | None) -> None:
        """Check that the file records the hash of this finalized model."""
        if recorded is None:
            detail = "no record of a finalized model"
        else:
            detail = f"made from {'this' if recorded == self.finalized_sha256 else 'another'} finalized model"
        self.report.add("integrity", "origin", recorded == self.finalized_sha256, detail)

    def add_problems(
        self, level: str, name: str, problems: Iterable[Problem], count: int, *, holds: str = "equal, bit for bit"
    ) -> None:
        """Add a failed check for each problem; without any, one that passed for all `count` places, as `holds` says."""
        found = list(problems)
        for layer, text in found:
            self.report.add(level, name, False, text, layer)
        if not found:
            self.report.add(level, name, True, f"{count} {holds}")

    def test_set(self) -> Batch | None:
        """Return inputs and targets to compare on; None, and a failed check, if they cannot be used."""
        called, found = self.source.part_name("test"), first_samples(self.source.test, self.samples)
        if found is None:
            self.report.add("outputs", "test data", False, f"{called} is empty: nothing was compared")
            return None
        inputs, targets = found
        self.report.samples = samples(inputs)
        if not all(torch.isfinite(tensor).all() for tensor in tensors(inputs)):
            self.report.add("outputs", "test data", False, f"{called} holds inputs that are not finite")
            return None
        return inputs, targets
