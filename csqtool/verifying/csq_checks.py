"""All levels of verification for a `.csq` file, read by the verifier's own decoder."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import zlib
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from csqtool.errors import FormatError
from csqtool.finalized_file import from_tensors, serialize
from csqtool.nn.quantized_net import QuantizedNet
from csqtool.quantized_model import QuantizedModel
from csqtool.verifying.backends import load_backends
from csqtool.verifying.csq_c_reader import c_checksums
from csqtool.verifying.csq_decoder import decode
from csqtool.verifying.csq_graph import graph_verdict
from csqtool.verifying.csq_half import half_origin, half_problems
from csqtool.verifying.findings import VerifyReport
from csqtool.verifying.inference_checks import is_inference, verify_inference
from csqtool.verifying.onnx_checks import verify_onnx
from csqtool.verifying.outputs import agreement, both_sides, compare_task
from csqtool.verifying.subject import Subject
from csqtool.verifying.weights import csq_problems


def verify_csq(subject: Subject) -> None:
    """Check a `.csq` file.

    Raises:
        FormatError: it is no `.csq` file.
    """
    report = subject.report
    damaged: list[str] = []
    subject.tell(f"{report.file}: integrity and weights …")
    tensors, metadata, recorded = decode(subject.content, where=report.file, damaged=damaged)
    for name in damaged:
        report.add("integrity", "checksum", False, "the tensor's checksum differs", name)
    if not damaged:
        report.add("integrity", "checksums", True, f"{len(tensors)} tensors")
        _compare_with_c(tensors, subject)
    if is_inference(metadata):
        if not damaged:
            verify_inference(subject, tensors, metadata, recorded)
        return
    graph = None if damaged else graph_verdict(subject.content, tensors, recorded, where=report.file)
    if graph is not None:
        report.add("integrity", "ONNX graph", *graph[:2])
    rounded = half_origin(metadata)
    if rounded is not None:
        whole = hashlib.sha256(serialize(tensors, metadata)).hexdigest() == recorded
        report.add("integrity", "rounded model", whole, f"its SHA-256 is {'right' if whole else 'wrong'}")
    subject.check_origin(rounded or recorded)
    problems = half_problems if rounded else csq_problems
    words = "equal, bit for bit" + ", or rounded to float16" * (rounded is not None)
    subject.add_problems(
        "weights", "all tensors", problems(tensors, metadata, subject.model), len(tensors), holds=words
    )
    both = both_sides(subject, lambda: from_tensors(tensors, metadata, where=report.file), "unpacked model")
    if both is None:
        return
    wanted, found, judge = both.wanted, both.found, both.judge
    difference, relative = (max(values) for values in zip(*(_apart(found[n], wanted[n]) for n in wanted), strict=True))
    figures = {"max_abs_diff": difference, "max_rel_diff": relative}
    if judge.scores is not None:
        figures["agreement"] = agreement(found[judge.scores], wanted[judge.scores])
    holds, detail = difference == 0, f"max difference {difference:g}, must be 0"
    if rounded:  # the task's metric decides; only outputs that are not finite fail here
        holds, detail = bool(np.isfinite(difference)), f"max difference {difference:g}, float16"
    report.add("outputs", "unpacked model in PyTorch", holds, detail, None, **figures)
    compare_task(found, wanted, both.targets, judge, report)
    if graph is None:
        report.add("structure", "graph", True, "the package holds none: its tensors run in the module's own code")
    elif graph[0]:
        _verify_graph(graph[2], both.model, both.net, recorded, subject)


def _apart(found: NDArray[Any], wanted: NDArray[Any]) -> tuple[float, float]:
    """Return the largest difference of an output, and the same divided by its largest value."""
    if found.shape != wanted.shape:
        return float("inf"), float("inf")
    wide = wanted.astype(np.float64)
    difference = float(np.abs(found - wide).max())
    return difference, difference / max(float(np.abs(wide).max()), 1e-12)


def _verify_graph(
    content: bytes, model: QuantizedModel, net: QuantizedNet, finalized_sha256: str, subject: Subject
) -> None:
    """Put the ONNX file in a package through all levels, against the finalized model that the package unpacks to."""
    report = subject.report
    inner = VerifyReport.begin(f"{report.file}: graph", report.against, len(content), report.average_bit_width,
                               report.tolerances)  # fmt: skip
    try:
        verify_onnx(dataclasses.replace(
            subject, content=content, model=model, net=net, finalized_sha256=finalized_sha256, report=inner,
            backends=load_backends(("onnxruntime",), subject.threads),
        ))  # fmt: skip
    except FormatError as error:
        inner.add("integrity", "ONNX file", False, str(error))
    for level in inner.missing():
        inner.add(level, "reached", False, "nothing was compared at this level")
    for check in inner.checks:
        report.add_check(msgspec.structs.replace(check, name=f"graph: {check.name}"))
    report.layers.extend(inner.layers)


def _c_header() -> bytes:
    """Return the C reader, ``csq.h``: a resource of the codec, whose code the verifier does not use."""
    return (importlib.resources.files("csqtool") / "csq" / "c" / "csq.h").read_bytes()


def _compare_with_c(tensors: dict[str, NDArray[Any]], subject: Subject) -> None:
    """Add the check that the C reader decodes the same tensors, if a C compiler is installed."""
    try:
        found = c_checksums(subject.content, _c_header())
    except RuntimeError as error:
        subject.report.add("integrity", "C reader", False, str(error))
        return
    if found is None:
        return
    wanted = {name: zlib.crc32(a.astype(a.dtype.newbyteorder("<")).tobytes()) for name, a in tensors.items()}
    differing = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    detail = f"{differing[0]} differs" if differing else f"decodes the same {len(found)} tensors"
    subject.report.add("integrity", "C reader", not differing, detail, differing[0] if differing else None)
