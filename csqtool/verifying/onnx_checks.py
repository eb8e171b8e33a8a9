"""All levels for an ONNX file, run in onnxruntime."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from csqtool.errors import FormatError
from csqtool.model_info import Input
from csqtool.nn.signature import named_inputs, output_names
from csqtool.onnx_file import flattened, foreign_operators, parse_onnx, stored_tensors
from csqtool.onnx_isolated import IsolatedSession, checker_problem
from csqtool.onnx_session import CPU
from csqtool.trees import chosen, samples
from csqtool.verifying import layers, runtime
from csqtool.verifying.accounting import is_bounded
from csqtool.verifying.backends import Backend
from csqtool.verifying.beyond_samples import LabelJudge, compare_beyond
from csqtool.verifying.coded_weights import coded_problems, is_coded
from csqtool.verifying.findings import LEVELS, LayerFinding, VerifyReport
from csqtool.verifying.float_folding import batch_norm_epsilons
from csqtool.verifying.followed import followed
from csqtool.verifying.layer_verdicts import Comparison, WeightsBehind, likely_cause
from csqtool.verifying.outputs import Arrays, Judge, compare_levels, compare_outputs, compare_task, reference_outputs
from csqtool.verifying.recurrent import recurrent_layers, recurrent_problems
from csqtool.verifying.structure import check_structure, expected_beside
from csqtool.verifying.subject import Subject
from csqtool.verifying.weights import (
    named_tensors,
    onnx_activation_problems,
    onnx_tensor_problems,
    onnx_weight_problems,
)

LAYER_SAMPLES = 64
LAYER_BYTES = 1 << 29  # values of both sides that the layers level holds at a time


def verify_onnx(subject: Subject) -> None:
    """Check an ONNX file.

    Raises:
        FormatError: it is no ONNX file, or none that csqtool exported.
    """
    model, report = subject.model, subject.report
    proto = parse_onnx(subject.content, where=report.file)
    names = [i.name for i in proto.graph.input], [o.name for o in proto.graph.output]
    described = model.info.inputs or (Input("input", ()),)
    wanted_names = [i.name for i in described], ["output"]
    if model.info.inputs:
        wanted_names = wanted_names[0], output_names(subject.net.model, described, subject.net.kept_outputs)
    if names != wanted_names:
        raise FormatError(
            f"{report.file} maps {', '.join(names[0])} to {', '.join(names[1])}; the model maps "
            f"{', '.join(wanted_names[0])} to {', '.join(wanted_names[1])}"
        )
    subject.tell(f"{report.file}: integrity and weights …")
    with expected_beside(proto, subject) as expected:  # it takes longest, so it begins first and is asked for last
        flat = flattened(proto, where=report.file)
        _check_integrity(proto, subject)
        runnable = _check_numbers(proto, flat, report) and is_bounded(proto)
        _check_weights(proto, flat, subject)
        if runnable:
            _compare_runs(proto, flat, subject)
        subject.tell(f"{report.file}: structure …")
        check_structure(proto, flat, subject, expected)
    report.checks.sort(key=lambda check: LEVELS.index(check.level))


def _check_weights(proto: onnx.ModelProto, flat: onnx.ModelProto, subject: Subject) -> None:
    model = subject.model
    subject.add_problems("weights", "integers, scales, biases", onnx_weight_problems(flat, model), len(model.layers))
    if coded := sum(is_coded(node) for node in proto.graph.node):
        subject.add_problems("weights", "coded integers, bit after bit", coded_problems(proto, model), coded)
    if recurrent := recurrent_layers(model, subject.net.model):
        problems = recurrent_problems(flat, recurrent)
        subject.add_problems("weights", "recurrent layers, in ONNX's order of gates", problems, len(recurrent))
    if model.activations:
        problems = onnx_activation_problems(flat, model)
        subject.add_problems("weights", "activation quantizers", problems, len(model.activations))
    float_tensors = named_tensors(flat, model)
    if float_tensors:
        problems = onnx_tensor_problems(float_tensors, model, batch_norm_epsilons(subject.net.model))
        subject.add_problems("weights", "tensors in float", problems, len(float_tensors))


def _compare_runs(proto: onnx.ModelProto, flat: onnx.ModelProto, subject: Subject) -> None:
    """Run both sides: the layers level and those after it."""
    test = subject.test_set()
    if test is None:
        return
    inputs, targets = test
    count = samples(inputs)
    subject.tell(f"layers on {min(LAYER_SAMPLES, count)} samples …")
    _compare_layers(flat, subject, chosen(inputs, slice(LAYER_SAMPLES), count))
    wanted = reference_outputs(subject.net, inputs)
    compare_beyond(proto, subject, inputs, wanted)
    for backend in subject.backends:
        _compare_backend(backend, flat, subject, inputs, targets, wanted)


def feeds_of(subject: Subject, inputs: Any) -> dict[str, NDArray[Any]]:
    """Return a batch's inputs by the names that they have in the file."""
    described = subject.model.info.inputs or (Input("input", ()),)
    named = named_inputs(inputs, described, subject.net.model)
    return {name: tensor.numpy() for name, tensor in named.items()}


def _compare_backend(
    backend: Backend, flat: onnx.ModelProto, subject: Subject, inputs: Any, targets: Any, wanted: Arrays
) -> None:
    """Compare a backend's outputs with PyTorch's at each of its levels, and these with one another."""
    report, count = subject.report, samples(inputs)
    max_samples = backend.max_samples
    inputs, targets = (chosen(part, slice(max_samples), count) for part in (inputs, targets))
    wanted = {name: array[:max_samples] for name, array in wanted.items()}
    count = samples(inputs)
    judge = Judge.of(subject.source.task, subject.net, chosen(inputs, slice(2), count))
    feeds = feeds_of(subject, inputs)
    on_cpu = getattr(backend, "provider", None) == CPU
    reads_qonnx = getattr(backend, "reads_qonnx", False)
    content = subject.qonnx if subject.qonnx is not None and reads_qonnx else subject.content
    results = {}
    labels = LabelJudge(subject, inputs, wanted, judge.scores)
    for level in backend.levels:
        name = f"{backend.name}, optimizations {level}" if len(backend.levels) > 1 else backend.name
        subject.tell(f"outputs on {count} samples, {name} …")
        try:
            outputs = backend.run(content, level, feeds)
        except RuntimeError as error:
            report.add("outputs", name, False, str(error))
            continue
        results[level] = outputs
        follow = partial(followed, subject, flat, inputs, outputs, wanted, level)
        compare_outputs(outputs, wanted, judge, not subject.model.activations, name, level, report,
                        follow if on_cpu else None)  # fmt: skip
        labels.judge(outputs, name)
    compare_levels(results, judge, report)
    if max_samples is None and backend.levels[-1] in results:  # a metric of few samples says nothing
        compare_task(results[backend.levels[-1]], wanted, targets, judge, report)


def _check_integrity(proto: onnx.ModelProto, subject: Subject) -> None:
    report = subject.report
    problem = checker_problem(subject.content)
    report.add("integrity", "onnx.checker", problem is None, problem or "full check")
    foreign = foreign_operators(proto)
    report.add("integrity", "standard operators", not foreign, "yes" if not foreign else f"needs {', '.join(foreign)}")
    recorded = next((p.value for p in proto.metadata_props if p.key == "csqtool.finalized_sha256"), None)
    subject.check_origin(recorded)
    fixed = [value.name for value in (*proto.graph.input, *proto.graph.output) if _is_fixed(value)]
    report.add("integrity", "dynamic batch", not fixed, f"the batch axis of {fixed[0]} is fixed" if fixed else "yes")


def _is_fixed(value: onnx.ValueInfoProto) -> bool:
    """Return whether an input or output has no first axis of dynamic size, the batch."""
    batch = value.type.tensor_type.shape.dim[:1]
    return not batch or batch[0].HasField("dim_value")


def _check_numbers(proto: onnx.ModelProto, flat: onnx.ModelProto, report: VerifyReport) -> bool:
    """Check that values are finite and scales above zero; otherwise integer kernels may abort the process."""
    invalid = [
        name for name, tensor in stored_tensors(proto)
        if tensor.data_type == onnx.TensorProto.FLOAT and not np.isfinite(onnx.numpy_helper.to_array(tensor)).all()
    ]  # fmt: skip
    invalid += [
        f"{node.output[0]}.{attribute.name}" for node in proto.graph.node for attribute in node.attribute
        if not np.isfinite([attribute.f, *attribute.floats]).all()
    ]  # fmt: skip
    report.add(
        "integrity",
        "finite values",
        not invalid,
        "yes" if not invalid else "not finite",
        invalid[0] if invalid else None,
    )
    scales = {node.input[1]: node.output[0] for node in flat.graph.node
              if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 1}  # fmt: skip
    wrong = [
        scales[tensor.name] for tensor in flat.graph.initializer
        if tensor.name in scales and not (onnx.numpy_helper.to_array(tensor) > 0).all()
    ]  # fmt: skip
    report.add("integrity", "scales above zero", not wrong, "no" if wrong else "yes", wrong[0] if wrong else None)
    return not invalid and not wrong


def _compare_layers(proto: onnx.ModelProto, subject: Subject, inputs: Any) -> None:
    model, report = subject.model, subject.report
    count = samples(inputs)
    two = chosen(inputs, slice(2), count)
    cuts = layers.reference_cuts(subject.net, model, two)
    cut_proto, found = layers.cut_graph(proto, cuts)
    if missing := sorted({cut.name for cut in cuts} - {cut.name for cut in found}):
        report.add("layers", "places", False, f"not in the graph: {', '.join(missing)}", missing[0])
    sample_bytes = sum(cut.reference.nbytes for cut in cuts) / samples(two)
    size = int(min(max(LAYER_BYTES / 2 / max(sample_bytes, 1), 1), LAYER_SAMPLES))
    references = layers.References(subject.net, model, inputs, found, size, lambda part: feeds_of(subject, part))
    groups = layers.in_groups(cut_proto, found, LAYER_BYTES / 2 * samples(two))
    behind_of = WeightsBehind(proto, found, model)
    wrong = {check.layer for check in report.failures if check.level == "weights" and check.layer}
    held: set[str] = set()  # with optimizations off, which come first
    for optimization in runtime.OPTIMIZATIONS:
        name = f"{len(found)} layers, teacher-forced, optimizations {optimization}"
        comparisons = {cut.name: Comparison(cut, report.tolerances) for cut in found}
        try:
            for part, group in groups:
                loaded = IsolatedSession(part.SerializeToString(), optimization, threads=subject.threads)
                for feeds, wanted in references.batches(part, group):
                    outputs = runtime.run_once(loaded, feeds)
                    for cut in group:
                        comparisons[cut.name].add(outputs[cut.value], wanted[cut.name])
        except RuntimeError as error:
            report.add("layers", name, False, str(error))
            continue
        worst: dict[str, float] = {}
        failed = 0
        for cut in found:
            holds, detail, figures = comparisons[cut.name].verdict()
            report.layers.append(LayerFinding(cut.name, optimization, holds, detail, figures))
            for key, value in figures.items():
                worst[key] = max(value, worst.get(key, 0.0))
            if holds and optimization == runtime.OPTIMIZATIONS[0]:
                held.add(cut.name)
            if not holds:
                failed += 1
                behind = behind_of(cut.value)
                cause = likely_cause(cut, behind, figures, wrong, cut.name in held)
                name_of_it = f"{cut.name}, optimizations {optimization}"
                report.add("layers", name_of_it, False, f"{detail}; {cause}", behind or cut.name)
        if not failed:
            words = {
                "steps": "steps off at most",
                "share": "of a layer's values at most",
                "max_abs_diff": "off in float",
            }
            detail = ", ".join(f"{value:.2g} {words[key]}" for key, value in worst.items())
            report.add("layers", name, True, detail, None, **worst)
