"""The verification of one file, level by level."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from csqtool.data import DataSource, load_data
from csqtool.data.arrays import take
from csqtool.errors import ConfigError, FormatError, ModelError
from csqtool.files import read_bytes
from csqtool.finalize import rebuilt_net
from csqtool.finalized_file import from_tensors, parse_finalized, serialize
from csqtool.nn.net import QuantizedNet
from csqtool.quantized_model import QuantizedModel
from csqtool.task import Task
from csqtool.verify import layers, runtime, weights
from csqtool.verify.csq_decoder import decode
from csqtool.verify.csq_graph import graph_verdict
from csqtool.verify.csq_half import half_origin, half_problems
from csqtool.verify.gates import Gates
from csqtool.verify.report import VerifyReport

LAYER_SAMPLES = 64
FLOAT_TOLERANCE = 1e-4
MIN_AGREEMENT = {"off": 0.995, "on": 0.99}
MAX_MEAN_SHARE = 0.05  # mean difference against the outputs' own spread, where activations are quantized
MAX_METRIC_DIFFERENCE = 0.01


def verify(
    file: Path,
    against: Path,
    *,
    data: str | None = None,
    model: str | None = None,
    gates: Gates | None = None,
    samples: int | None = None,
) -> VerifyReport:
    """Compare an exported file with the finalized model it was made from.

    Args:
        file: an ``.onnx`` or ``.csq`` file.
        against: the finalized ``.safetensors`` file.
        data: data source whose test set is compared; None takes the one recorded in the finalized model.
        model: factory of the PyTorch module, instead of the recorded one.
        gates: limits on what is measured.
        samples: compare this many test samples, None all.

    Returns:
        The report; `passed` says whether every check holds.

    Raises:
        InputError: a file is missing or no file of its kind, or the model or data cannot be built.
    """
    content, reference = read_bytes(file), read_bytes(against)
    finalized = parse_finalized(reference, where=str(against))
    report = VerifyReport(str(file), str(against), len(content))
    if samples is not None and samples < 1:
        raise ConfigError(f"samples must be at least 1, got {samples}")
    source = _data(finalized, data, against)
    net = rebuilt_net(finalized, factory=model, near=against)
    digest = hashlib.sha256(reference).hexdigest()
    if file.suffix == ".csq":
        _verify_csq(content, finalized, digest, net, source, report, samples, model, against)
    else:
        _verify_onnx(content, finalized, digest, net, source, report, samples)
    (gates or Gates()).check(report, finalized)
    return report


def _data(model: QuantizedModel, data: str | None, near: Path) -> DataSource:
    recorded = model.info["data"]
    task = recorded["task"] if recorded["task"] in ("classification", "regression") else None
    return load_data(data or recorded["source"], task=task, near=near)


def _test_set(source: DataSource, report: VerifyReport, samples: int | None, level: str) -> tuple[Any, Any] | None:
    """Return inputs and targets to compare on, or None behind a failed check."""
    count = len(source.test) if samples is None else min(samples, len(source.test))
    if count == 0:
        report.add(level, "test data", False, f"the test set of {source.name} is empty: nothing was compared")
        return None
    inputs, targets = take(source.test, range(count))
    report.samples = count
    if not torch.isfinite(inputs.float()).all():
        report.add(level, "test data", False, f"the test inputs of {source.name} hold values that are not finite")
        return None
    return inputs, targets


def _add_problems(report: VerifyReport, level: str, name: str, problems: Iterable[weights.Problem], count: int) -> None:
    """Add one failed check a problem, or one that passed for all `count` places."""
    found = list(problems)
    for layer, text in found:
        report.add(level, name, False, text, layer)
    if not found:
        report.add(level, name, True, f"{count} equal, bit for bit")


# --- ONNX ------------------------------------------------------------------------------------------------


def _verify_onnx(
    content: bytes,
    model: QuantizedModel,
    digest: str,
    net: QuantizedNet,
    source: DataSource,
    report: VerifyReport,
    samples: int | None,
) -> None:
    proto = _parse_onnx(content, report.file)
    _onnx_integrity(proto, digest, report)
    _add_problems(
        report, "weights", "integers, scales, biases", weights.onnx_weight_problems(proto, model), len(model.layers)
    )
    if model.activations:
        problems = weights.onnx_activation_problems(proto, model)
        _add_problems(report, "weights", "activation quantizers", problems, len(model.activations))
    test = _test_set(source, report, samples, "outputs")
    if test is None:
        return
    inputs, targets = test
    _compare_layers(proto, model, net, inputs[:LAYER_SAMPLES], report)
    wanted = reference_outputs(net, inputs)
    results = {}
    for optimization in runtime.OPTIMIZATIONS:
        try:
            outputs = runtime.run_batches(runtime.session(content, optimization), {"input": inputs.numpy()})
        except RuntimeError as error:
            report.add("outputs", f"onnxruntime, optimizations {optimization}", False, str(error))
            continue
        results[optimization] = outputs["output"]
        compare_outputs(outputs["output"], wanted, source.task, not model.activations, optimization, report)
    if "on" in results:
        compare_task(results["on"], wanted, targets, source.task, report)


def _parse_onnx(content: bytes, where: str) -> onnx.ModelProto:
    from google.protobuf.message import DecodeError

    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except (DecodeError, RuntimeError) as error:
        raise FormatError(f"{where} is not an ONNX file: {error}") from error
    if not proto.graph.node or not proto.opset_import:
        raise FormatError(f"{where} is not an ONNX file: it holds no graph")
    if [i.name for i in proto.graph.input] != ["input"] or [o.name for o in proto.graph.output] != ["output"]:
        raise FormatError(f"{where} was not exported by csqtool: its graph must map 'input' to 'output'")
    return proto


def _onnx_integrity(proto: onnx.ModelProto, digest: str, report: VerifyReport) -> None:
    try:
        onnx.checker.check_model(proto, full_check=True)
        report.add("integrity", "onnx.checker", True, "full check")
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        report.add("integrity", "onnx.checker", False, str(error).strip().splitlines()[0])
    domains = sorted({o.domain for o in proto.opset_import} - {"", "ai.onnx"})
    report.add("integrity", "standard operators", not domains, "yes" if not domains else f"needs {', '.join(domains)}")
    recorded = next((p.value for p in proto.metadata_props if p.key == "csqtool.finalized_sha256"), None)
    detail = "made from this finalized model" if recorded == digest else "made from another finalized model"
    report.add("integrity", "origin", recorded == digest, detail if recorded else "no record of a finalized model")
    batch = proto.graph.input[0].type.tensor_type.shape.dim[:1]
    dynamic = bool(batch) and not batch[0].HasField("dim_value")
    report.add("integrity", "dynamic batch", dynamic, "yes" if dynamic else "the batch axis is fixed")
    broken = [
        t.name for t in proto.graph.initializer
        if t.data_type == onnx.TensorProto.FLOAT and not np.isfinite(onnx.numpy_helper.to_array(t)).all()
    ]  # fmt: skip
    report.add("integrity", "finite values", not broken, "yes" if not broken else "not finite", (broken or [None])[0])


def _compare_layers(
    proto: onnx.ModelProto, model: QuantizedModel, net: QuantizedNet, inputs: torch.Tensor, report: VerifyReport
) -> None:
    cuts = layers.reference_cuts(net, model, inputs)
    cut_proto, found = layers.cut_graph(proto, cuts)
    if missing := [cut.name for cut in cuts if cut not in found]:
        report.add("layers", "places", False, f"not in the graph: {', '.join(missing)}", missing[0])
    feeds = {cut.value + layers.FORCED: cut.reference for cut in found if cut.value != "output"}
    feeds["input"] = inputs.numpy()
    content = cut_proto.SerializeToString()
    for optimization in runtime.OPTIMIZATIONS:
        name = f"{len(found)} layers, teacher-forced, optimizations {optimization}"
        try:
            outputs = runtime.run_batches(runtime.session(content, optimization), feeds)
        except RuntimeError as error:
            report.add("layers", name, False, str(error))
            continue
        worst: dict[str, float] = {}
        wrong = 0
        for cut in found:
            holds, detail, figures = layers.compare_cut(cut, outputs[cut.value])
            worst = {key: max(value, worst.get(key, 0.0)) for key, value in figures.items()} | {
                key: value for key, value in worst.items() if key not in figures
            }
            if not holds:
                wrong += 1
                behind = layers.weights_behind(proto, cut.value, cuts, model)
                report.add("layers", f"{cut.name}, optimizations {optimization}", False, detail, behind or cut.name)
        if not wrong:
            words = {
                "steps": "steps off at most",
                "share": "of a layer's values at most",
                "max_abs_diff": "off in float",
            }
            detail = ", ".join(f"{value:.2g} {words[key]}" for key, value in worst.items())
            report.add("layers", name, True, detail, None, **worst)


# --- csq -------------------------------------------------------------------------------------------------


def _verify_csq(
    content: bytes,
    model: QuantizedModel,
    digest: str,
    net: QuantizedNet,
    source: DataSource,
    report: VerifyReport,
    samples: int | None,
    factory: str | None,
    near: Path,
) -> None:
    damaged: list[str] = []
    tensors, metadata, recorded = decode(content, where=report.file, damaged=damaged)
    for name in damaged:
        report.add("integrity", "checksum", False, "the tensor's checksum differs", name)
    if not damaged:
        report.add("integrity", "checksums", True, f"{len(tensors)} tensors")
    graph = graph_verdict(content, recorded, where=report.file)
    if graph is not None:
        report.add("integrity", "ONNX graph", *graph)
    rounded = half_origin(metadata)
    if rounded is not None:
        whole = hashlib.sha256(serialize(tensors, metadata)).hexdigest() == recorded
        report.add("integrity", "rounded model", whole, "its SHA-256 is " + ("right" if whole else "wrong"))
        recorded = rounded
    detail = "made from this finalized model" if recorded == digest else "made from another finalized model"
    report.add("integrity", "origin", recorded == digest, detail + (", float16" if rounded else ""))
    problems = half_problems if rounded else weights.csq_problems
    name = "tensors but for float16" if rounded else "all tensors"
    _add_problems(report, "weights", name, problems(tensors, metadata, model), len(tensors))
    test = _test_set(source, report, samples, "outputs")
    if test is None:
        return
    inputs, targets = test
    try:
        unpacked = rebuilt_net(from_tensors(tensors, metadata, where=report.file), factory=factory, near=near)
    except (FormatError, ModelError) as error:
        report.add("outputs", "unpacked model", False, str(error))
        return
    wanted, found = reference_outputs(net, inputs), reference_outputs(unpacked, inputs)
    difference = float(np.abs(found - wanted).max()) if found.shape == wanted.shape else float("inf")
    holds, detail = difference == 0, f"max difference {difference:g}, must be 0"
    if rounded:  # the task's metric decides; here only what can never be right fails
        holds, detail = bool(np.isfinite(difference)), f"max difference {difference:g}, float16"
    report.add("outputs", "unpacked model in PyTorch", holds, detail,
               None, max_abs_diff=difference, agreement=agreement(found, wanted))  # fmt: skip
    compare_task(found, wanted, targets, source.task, report)


# --- comparisons -----------------------------------------------------------------------------------------


@torch.no_grad()
def reference_outputs(net: QuantizedNet, inputs: torch.Tensor) -> NDArray[Any]:
    """Return the PyTorch network's outputs for all inputs."""
    parts: list[NDArray[Any]] = [
        net(inputs[s : s + runtime.BATCH]).numpy() for s in range(0, len(inputs), runtime.BATCH)
    ]
    return np.concatenate(parts)


def agreement(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Return the share of samples with the same label; 0 where shapes differ."""
    if found.shape != wanted.shape or found.ndim < 2:
        return 0.0
    return float((found.argmax(-1) == wanted.argmax(-1)).mean())


def compare_outputs(
    found: NDArray[Any],
    wanted: NDArray[Any],
    task: Task,
    float_activations: bool,
    optimization: str,
    report: VerifyReport,
) -> None:
    """Add the check of all outputs at one optimization level."""
    name = f"onnxruntime, optimizations {optimization}"
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
        "cosine": float((found.astype(np.float64) * wanted).sum() / norms) if norms else 0.0,
    }
    if task.labels:
        figures["agreement"] = agreement(found, wanted)
    if float_activations:
        holds = figures["max_abs_diff"] <= FLOAT_TOLERANCE and figures.get("agreement", 1.0) == 1.0
    else:
        spread = max(float(wanted.std()), 1e-12)
        holds = figures["mean_abs_diff"] <= MAX_MEAN_SHARE * spread
        holds &= figures.get("agreement", 1.0) >= MIN_AGREEMENT[optimization]
    words = [
        f"max {figures['max_abs_diff']:.2g}",
        f"mean {figures['mean_abs_diff']:.2g}",
        f"cosine {figures['cosine']:.6f}",
    ]
    if task.labels:
        words.append(f"agreement {figures['agreement']:.2%}")
    report.add("outputs", name, holds, ", ".join(words), None, **figures)


def compare_task(
    found: NDArray[Any], wanted: NDArray[Any], targets: torch.Tensor, task: Task, report: VerifyReport
) -> None:
    """Add the check of the task's metric on both sides."""
    measure: Callable[[NDArray[Any]], float] = lambda outputs: task.metric(torch.from_numpy(outputs), targets)  # noqa: E731
    if found.shape != wanted.shape:
        report.add("task", task.metric_name, False, "outputs of another shape")
        return
    metric, reference = measure(found), measure(wanted)
    holds = abs(metric - reference) <= MAX_METRIC_DIFFERENCE
    detail = f"{metric:.4f}, PyTorch {reference:.4f}"
    report.add("task", task.metric_name, holds, detail, None, metric=metric, metric_reference=reference)
