"""``verify --bisect``: the smallest set of nodes that make a file differ from PyTorch.

Every place of the layers level is given PyTorch's values, so that no difference reaches the next one; what differs then
is computed wrongly between two places, and `csqtool.verifying.node_search` looks for the nodes there. The result is
checked as delta debugging does (Zeller & Hildebrandt, 2002): with PyTorch's values in the place of these nodes' values
every place and the outputs agree, and with any one of the nodes left as it was they do not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from csqtool.data import first_samples
from csqtool.errors import FormatError
from csqtool.nn.signature import named_inputs, recorded_inputs
from csqtool.onnx_file import flattened, parse_onnx
from csqtool.onnx_isolated import IsolatedSession
from csqtool.trees import chosen, samples
from csqtool.verifying import layers, runtime
from csqtool.verifying.accounting import is_bounded
from csqtool.verifying.beyond_samples import compare_samples
from csqtool.verifying.expected_graph import NotCapturedError, expected_graph
from csqtool.verifying.findings import BisectedNode, Bisection, VerifyReport
from csqtool.verifying.given_values import GivenValues
from csqtool.verifying.layer_verdicts import Comparison
from csqtool.verifying.node_search import Culprit, NodeSearch
from csqtool.verifying.outputs import Arrays, reference_outputs
from csqtool.verifying.subject import Subject
from csqtool.verifying.synthetic import synthetic_inputs

SAMPLES = 16
SEARCHED = 32  # places whose nodes are looked for; where more differ, the others are named by the node that ends them
VALUES_BYTES = 1 << 28  # PyTorch's values at all places
LEVELS = ("off", "on")


def bisect(subject: Subject) -> Bisection:
    """Return the smallest set of nodes of an ONNX file that make it differ; the verdict stays what it is."""
    report = subject.report
    try:
        proto = parse_onnx(subject.content, where=report.file)
        flat = flattened(proto, where=report.file)
    except FormatError as error:
        return Bisection("not found", str(error), [], False)
    if not is_bounded(proto):
        return Bisection("not found", "the file has control flow and is not run", [], False)
    subject.tell("bisecting …")
    tried = 0
    try:
        for name, inputs in _inputs(subject):
            tried += samples(inputs)
            for optimization in LEVELS:
                trial = _Trial(subject, flat, inputs, optimization)
                if trial.problems({}):
                    return _minimal(trial, name)
    except RuntimeError as error:
        return Bisection("not found", f"onnxruntime cannot run the file: {error}", [], False)
    agreed = f"every place and every output agrees with PyTorch on {tried} inputs"
    failed = ", ".join(dict.fromkeys(check.level for check in report.failures))
    return Bisection("agrees", f"{agreed}; what fails is at the level {failed}" if failed else agreed, [], False)


def _inputs(subject: Subject) -> Iterator[tuple[str, Any]]:
    """Yield sets of inputs, those that the outputs differ most on first."""
    found = first_samples(subject.source.test, subject.samples)
    if found is None:
        return
    inputs, _ = found
    count = samples(inputs)
    size = _sample_count(subject, chosen(inputs, slice(2), count))
    wanted = reference_outputs(subject.net, inputs)
    outputs = runtime.run_batches(
        IsolatedSession(subject.content, "off", threads=subject.threads), _feeds(subject, inputs)
    )
    apart = sum(_apart(outputs[name], array) for name, array in wanted.items() if name in outputs)
    worst = np.argsort(-np.broadcast_to(apart, count), kind="stable")[:size]
    yield "the test samples that differ most", chosen(inputs, torch.from_numpy(np.sort(worst)), count)
    yield "one test sample", chosen(inputs, slice(1), count)
    for kind, made in synthetic_inputs(inputs).items():
        yield f"synthetic inputs: {kind}", chosen(made, slice(size), samples(made))


def _apart(found: NDArray[Any], wanted: NDArray[Any]) -> NDArray[np.float64]:
    if found.shape != wanted.shape:
        return np.zeros(len(wanted))
    apart = np.nan_to_num(np.abs(found.astype(np.float64) - wanted), nan=np.inf)
    return np.asarray(apart.reshape(len(apart), -1).max(axis=1, initial=0.0))


def _sample_count(subject: Subject, two: Any) -> int:
    cuts = layers.reference_cuts(subject.net, subject.model, two)
    sample_bytes = sum(cut.reference.nbytes for cut in cuts) / samples(two)
    return int(min(max(VALUES_BYTES / max(sample_bytes, 1), 1), SAMPLES))


def _feeds(subject: Subject, inputs: Any) -> Arrays:
    named = named_inputs(inputs, recorded_inputs(subject.model.info), subject.net.model)
    return {name: tensor.numpy() for name, tensor in named.items()}


class _Trial:
    """Runs the file on some inputs, with some of its values replaced by PyTorch's."""

    def __init__(self, subject: Subject, flat: onnx.ModelProto, inputs: Any, optimization: str) -> None:
        self.subject = subject
        self.optimization = optimization
        self._inputs = inputs
        self.graph = GivenValues(flat, _feeds(subject, inputs), subject.threads)
        self.cuts = layers.in_graph(flat, layers.reference_cuts(subject.net, subject.model, inputs))
        self._outputs = {cut.name: cut.reference for cut in self.cuts if cut.is_output}
        self._forced = {cut.value: cut.reference for cut in self.cuts if not cut.is_output}

    def problems(self, instead: Mapping[str, NDArray[Any]]) -> list[str]:
        """Return the values that differ with these replaced: of places, and ``outputs`` if it runs on its own."""
        given = self._forced | dict(instead)
        found = self.graph.run([cut.value for cut in self.cuts], given, self.optimization)
        wrong = []
        for cut in self.cuts:
            comparison = Comparison(cut, self.subject.report.tolerances)
            comparison.add(found[cut.value], cut)
            if cut.value not in instead and not comparison.verdict()[0]:
                wrong.append(cut.value)
        outputs = self.graph.run(self._outputs, instead, self.optimization)
        outputs |= {name: instead[name] for name in self._outputs if name in instead}
        scratch = VerifyReport.begin("", "", 0, 0.0, self.subject.report.tolerances)
        alone = dataclasses.replace(self.subject, report=scratch, save_inputs=None)
        compare_samples(alone, "outputs", self._inputs, outputs, self._outputs)
        return [*wrong, *(["outputs"] if scratch.failures else [])]

    def search(self) -> NodeSearch:
        subject = self.subject
        reference = None
        try:
            expected = expected_graph(subject.build_net(subject.model), subject.model, ())
            flat = flattened(expected.proto, where="the capture")
            reference = GivenValues(flat, _feeds(subject, self._inputs), subject.threads)
            return NodeSearch(self.graph, self.cuts, reference, subject.report.tolerances)
        except (NotCapturedError, FormatError, RuntimeError):
            return NodeSearch(self.graph, self.cuts, None, subject.report.tolerances)


def _minimal(trial: _Trial, inputs: str) -> Bisection:
    """Return the nodes that differ on these inputs, after the check that they suffice and that each is needed."""
    wrong = [cut for cut in trial.cuts if cut.value in trial.problems({})]
    if not wrong:
        text = f"on {inputs}, each place has PyTorch's values for PyTorch's inputs to it: the difference builds up"
        return Bisection("not found", f"{text} over several", [], False)
    search = trial.search()
    found: dict[str, tuple[Culprit, layers.Cut]] = {}
    for position, cut in enumerate(wrong):
        whole = [Culprit(cut.value, cut.reference, False, ())]
        for culprit in search.culprits(cut) if position < SEARCHED else whole:
            found.setdefault(culprit.value, (culprit, cut))
    chosen = {value: culprit.instead for value, (culprit, _) in found.items()}
    left = trial.problems(chosen)
    if not left:
        for value in list(chosen):
            without = {name: array for name, array in chosen.items() if name != value}
            if without and not trial.problems(without):
                chosen = without
    nodes = [
        BisectedNode(
            name=value, operator=trial.graph.makers[value].op_type, action="remove" if culprit.can_go else "replace",
            place=cut.name, behind=list(culprit.behind),
        )
        for value, (culprit, cut) in found.items()
        if value in chosen
    ]  # fmt: skip
    several = f"these {len(nodes)} nodes" if len(nodes) > 1 else "this node"
    level = "" if trial.optimization == "off" else ", optimizations on"
    if left:
        text = (
            f"on {inputs}{level}, PyTorch's values in the place of {several} are not enough: {', '.join(left)} differ"
        )
    else:
        text = f"on {inputs}{level}, the file agrees with PyTorch's values in the place of {several}, and not without"
    return Bisection("found", text, nodes, not left)
