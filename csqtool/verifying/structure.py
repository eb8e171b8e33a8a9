"""The structure level: every part of an ONNX file is what PyTorch's own graph of the finalized model asks for.

A comparison of samples finds only what the samples reach. Here the file's graph and a fresh capture of the finalized
network get one expression for each value (`csqtool.verifying.terms`), and the outputs' expressions must be the same:
equal for all inputs, not for those that were tried. What is not part of that expression must not be in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import onnx

from csqtool.errors import FormatError
from csqtool.forks import beside
from csqtool.onnx_file import flattened
from csqtool.verifying import expected_graph
from csqtool.verifying.accounting import account
from csqtool.verifying.expected_graph import ExpectedGraph, NotCapturedError
from csqtool.verifying.graph_values import GraphValues
from csqtool.verifying.rounded_constants import rounded_constants
from csqtool.verifying.subject import Subject
from csqtool.verifying.term_rules import COMMUTATIVE
from csqtool.verifying.terms import Number, Terms
from csqtool.verifying.weights import Problem

NETWORK = "network"  # what --allow-unaccounted calls a network that torch cannot capture


@contextmanager
def expected_beside(proto: onnx.ModelProto, subject: Subject) -> Iterator[Callable[[], ExpectedGraph]]:
    """Begin to capture the finalized network, on another core if there is one, and yield what waits for the graph.

    Args:
        proto: the file, of which the axes of dynamic size are taken.
        subject: what it is compared with.
    """
    dims = [list(value.type.tensor_type.shape.dim) for value in proto.graph.input]
    dynamic = [axis for axis, dim in enumerate(dims[0]) if axis and not dim.HasField("dim_value")] if dims else []

    def capture() -> onnx.ModelProto:
        # A new network: what one remembers of the inputs that it has seen must not get into the graph.
        return expected_graph.captured(subject.build_net(subject.model), subject.model, dynamic)

    with beside(capture, onnx.ModelProto.SerializeToString, onnx.ModelProto.FromString) as capture_made:
        yield lambda: expected_graph.expected_of(capture_made(), subject.model)


def check_structure(
    proto: onnx.ModelProto, flat: onnx.ModelProto, subject: Subject, expected: Callable[[], ExpectedGraph]
) -> bool:
    """Add the checks of the structure level and return whether all hold.

    Args:
        proto: the file.
        flat: the same without functions and Constant nodes.
        subject: what it is compared with.
        expected: returns the graph that it must hold, or raises `NotCapturedError`.
    """
    counted = f"{len(flat.graph.node)} nodes and {len(flat.graph.initializer)} tensors"
    several = subject.model.info.inputs or ()
    inputs = {i.name for i in several} if len(several) > 1 else set()
    held = _add(subject, "nothing left over", account(proto, flat, inputs), f"{counted}, all needed")
    return (
        _add(subject, "dataflow", _dataflow_problems(flat, subject, expected), "PyTorch's own, for all inputs") and held
    )


def _add(subject: Subject, name: str, problems: Iterator[Problem], holds: str) -> bool:
    """Add a failed check for each problem that the user has not allowed, and name those that he has."""
    allowed, held = subject.allow_unaccounted, True
    excused = []
    for place, text in dict.fromkeys(problems):
        if place in allowed:
            excused.append(f"{place} ({text})")
        else:
            held = subject.report.add("structure", name, False, f"not accounted: {place}: {text}", place)
    if held:
        detail = f"not accounted, but allowed: {'; '.join(excused)}" if excused else holds
        subject.report.add("structure", name, True, detail)
    return held


def _dataflow_problems(
    flat: onnx.ModelProto, subject: Subject, capture: Callable[[], ExpectedGraph]
) -> Iterator[Problem]:
    try:
        expected = capture()
        wanted = flattened(expected.proto, where="the capture")
    except (NotCapturedError, FormatError) as error:
        yield NETWORK, str(error)
        return
    yield from _signature_problems(flat.graph, wanted.graph)
    opset = next((o.version for o in flat.opset_import if o.domain in ("", "ai.onnx")), 0)
    terms = Terms()
    reference = GraphValues(wanted, terms, opset=opset, integers=expected.integers)
    for name in (output.name for output in wanted.graph.output):
        reference.number(name)
    equivalent = expected.equivalent | rounded_constants(flat, wanted, _exact(expected, subject))
    found = GraphValues(flat, terms, opset=opset, equivalent=equivalent)
    names = {number: name for name, number in reversed(found.numbers.items())}
    for output in flat.graph.output:
        if output.name in {value.name for value in wanted.graph.output}:
            one, other = reference.number(output.name), found.number(output.name)
            places = list(_differences(one, other, output.name, terms, names))
            yield from places
            if one != other and not places:
                yield output.name, "another expression than in PyTorch's graph"


def _exact(expected: ExpectedGraph, subject: Subject) -> set[bytes]:
    """Return the bytes of all constants that a file must hold exactly: the model's own, quantized or not."""
    own = {tensor.tobytes() for tensor in subject.model.tensors.values()}
    return own | {
        onnx.numpy_helper.to_array(t).tobytes() for t in expected.proto.graph.initializer
        if t.name in expected.integers or "::" in t.name
    }  # fmt: skip


def _signature_problems(found: onnx.GraphProto, wanted: onnx.GraphProto) -> Iterator[Problem]:
    """Yield inputs and outputs that have another name, type or shape; names of dynamic axes do not matter."""
    for kind, these, those in (("input", found.input, wanted.input), ("output", found.output, wanted.output)):
        names, wanted_names = [v.name for v in these], [v.name for v in those]
        if names != wanted_names:
            yield ", ".join(names) or kind, f"the {kind}s are {', '.join(names)}, not {', '.join(wanted_names)}"
            continue
        for one, other in zip(these, those, strict=True):
            if one.type.tensor_type.elem_type != other.type.tensor_type.elem_type:
                yield one.name, f"an {kind} of another type"
            sizes, wanted_sizes = _sizes(one), _sizes(other)
            if sizes != wanted_sizes:
                yield one.name, f"an {kind} of shape {sizes}, not {wanted_sizes}"


def _sizes(value: onnx.ValueInfoProto) -> list[int | None]:
    return [d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim]


def _differences(
    wanted: Number, found: Number, place: str, terms: Terms, names: dict[Number, str]
) -> Iterator[Problem]:
    """Yield where two expressions differ, as far from the output as both still have the same operator."""
    queue, seen = [(wanted, found, place)], set()
    while queue:
        one, other, at = queue.pop()
        if one == other or (one, other) in seen:
            continue
        seen.add((one, other))
        here = names.get(other, at)
        a, b = terms[one], terms[other]
        if a.operator != b.operator or len(a.inputs) != len(b.inputs):
            yield here, f"{_words(other, terms)}, where PyTorch's graph has {_words(one, terms)}"
            continue
        if a.attributes != b.attributes:
            yield here, _attribute_words(other, one, terms)
        elif sorted(a.inputs) == sorted(b.inputs):
            yield here, f"{b.operator}: operands in another order than in PyTorch's graph"
            continue
        left, right = list(a.inputs), list(b.inputs)
        if a.operator in COMMUTATIVE:  # numbers sort them, and a number says nothing about what was meant
            shared = next((number for number in left if number in right), None)
            if shared is not None:
                left.remove(shared)
                right.remove(shared)
        queue += [(x, y, here) for x, y in zip(left, right, strict=True)]


def _words(number: Number, terms: Terms) -> str:
    value = terms.value(number)
    if value is None:
        return "nothing" if not number else terms[number].operator
    kind = "integers' values" if terms[number].operator == "integers" else "constant"
    return f"a {kind}, {value.dtype}{list(value.shape)}"


def _attribute_words(found: Number, wanted: Number, terms: Terms) -> str:
    one, other = terms.value(found), terms.value(wanted)
    if one is not None and other is not None:
        if one.dtype == other.dtype and one.shape == other.shape:
            return f"{int((one != other).sum())} of {one.size} values differ from PyTorch's"
        return f"{_words(found, terms)}, where PyTorch's graph has {_words(wanted, terms)}"
    has, should = dict(terms[found].attributes), dict(terms[wanted].attributes)
    which = next(k for k in sorted({*has, *should}) if has.get(k) != should.get(k))
    if isinstance(has.get(which), bytes) or isinstance(should.get(which), bytes):
        return f"{terms[found].operator}: another {which} than in PyTorch's graph"
    return f"{terms[found].operator}: {which} is {has.get(which)}, in PyTorch's graph {should.get(which)}"
