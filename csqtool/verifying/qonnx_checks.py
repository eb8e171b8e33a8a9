"""What is checked of a QONNX file beside what every ONNX file is held to."""

from __future__ import annotations

from dataclasses import replace

from csqtool.errors import FormatError
from csqtool.onnx_file import parse_onnx
from csqtool.onnx_isolated import checker_problem, qonnx_facts
from csqtool.verifying.qonnx_reader import NotReadError, is_qonnx, lowered, width_problems, without_folding
from csqtool.verifying.subject import Subject
from csqtool.verifying.weights import Problem

UNTYPED = "FLOAT32"  # what datatype inference calls an activation that has a zero point
BIPOLAR = "BIPOLAR"


def in_standard_operators(subject: Subject) -> Subject | None:
    """Return what to verify in place of a QONNX file: the same in standard operators; of other files, the file itself.

    The finalized model is then one whose BatchNorms are not folded, as in the file.

    Returns:
        None, and a failed check, if the file has a quantizer that is not read.
    """
    report = subject.report
    proto = parse_onnx(subject.content, where=report.file)
    if not is_qonnx(proto):
        return subject
    problem = checker_problem(subject.content)
    report.add("integrity", "onnx.checker, as it is", problem is None, problem or "full check")
    try:
        found = lowered(proto)
        content = found.proto.SerializeToString()
    except (NotReadError, FormatError) as error:
        report.add("integrity", "QONNX operators", False, str(error))
        return None
    report.add("integrity", "QONNX operators", True, f"{len(found.quantizers)} quantizers")
    problems = [*found.problems, *width_problems(found, subject.model)]
    subject.add_problems("weights", "bit widths of quantizers", problems, len(found.quantizers), holds="as searched")
    return replace(subject, content=content, model=without_folding(subject.model), qonnx=subject.content)


def check_datatypes(subject: Subject) -> None:
    """Compare the types that qonnx infers with the finalized model's bit widths, and report its cost of an inference.

    Args:
        subject: a QONNX file in standard operators.
    """
    assert subject.qonnx is not None
    report = subject.report
    subject.tell(f"{report.file}: datatypes in qonnx …")
    try:
        facts = qonnx_facts(subject.qonnx)
    except RuntimeError as error:
        report.add("weights", "datatypes in qonnx", False, str(error))
        return
    quantizers = lowered(parse_onnx(subject.qonnx, where=report.file)).quantizers
    problems: list[Problem] = []
    untyped = 0
    for name, quantizer in quantizers.items():
        kind, bits = facts["types"].get(name, ("nothing", 0))
        if quantizer.zero_point or quantizer.bits == 1:
            untyped += kind == UNTYPED  # qonnx has no type for them, which is no fault of the file
        elif bits != quantizer.bits or kind == UNTYPED:
            problems.append((quantizer.weight or name, f"qonnx infers {kind}, not {quantizer.bits} bits"))
    holds = "have the searched bits"
    if untyped:
        holds += f"; {untyped} with a zero point or one bit have no type in qonnx"
    subject.add_problems("weights", "datatypes in qonnx", problems, len(quantizers) - untyped, holds=holds)
    left_out = f"; without {', '.join(facts['left_out'])}" if facts["left_out"] else ""
    detail = f"{facts['bops']:,.0f} bit operations, {facts['macs']:,.0f} products, zero weights left out{left_out}"
    report.add("weights", "cost in qonnx", True, detail, None, bops=facts["bops"], macs=facts["macs"])
