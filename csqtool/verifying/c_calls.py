"""Which calls of an inference in C compute each quantizer's integers and the output, against PyTorch's graph.

Both sides are cut at the quantizers. What a part is computed from must be the same, its layers must be the same, and it
may hold no more kernels than the graph has operators for them: a condition on values has nothing to be made of. What
the calls compute is compared by the levels that run them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx
from onnx import helper

from csqtool.nn.markers import MARKER_DOMAIN
from csqtool.verifying.c_grammar import Call, Source, text_of
from csqtool.verifying.c_memory import FROM_INPUT, JOINING, Memory

OUTPUT = ""  # the name of the last part
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
OF_FLOATS = ("layer_of_floats", "embed")  # layers whose results are traced under their own names
LAYERS = ("conv", "conv_float", "depthwise", *OF_FLOATS)
UNQUANTIZED = "the input in float"
# Kernels, and the operators of which a part must have as many at least.
OPERATORS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("add", "add_scaled"), ("Add", "Sub")), **dict.fromkeys(("multiply", "multiply_scaled"), ("Mul",)),
    **dict.fromkeys(("average_pool", "average_scaled"), ("AveragePool", "GlobalAveragePool", "ReduceMean")),
    "max_pool": ("MaxPool",), "upsample": ("Resize",), "mean": ("ReduceMean", "GlobalAveragePool"),
    "pool_floats": ("MaxPool", "AveragePool"), "pad_floats": ("Pad",), "surround": ("Pad",),
    "repeat_floats": ("Resize",),
    "blend_floats": ("Resize",),
    "matrices": ("MatMul",), "softmax": ("Softmax",), "normalize": ("LayerNormalization",),
    "binary PLUS": ("Add",), "binary MINUS": ("Sub",), "binary TIMES": ("Mul",), "binary OVER": ("Div",),
    "binary LARGER": ("Max", "Clip"), "binary SMALLER": ("Min", "Clip"), "unary NEGATIVE": ("Neg",),
    "unary ABSOLUTE": ("Abs",), "unary RECTIFIED": ("Relu",), "unary EXPONENTIAL": ("Exp",),
    "unary ERROR_FUNCTION": ("Erf",), "unary SIGMOID": ("Sigmoid",), "unary TANGENT": ("Tanh",),
    "unary SOFTPLUS": ("Softplus",), "binary GREATER": ("Greater",), "choose": ("Where",),
}  # fmt: skip
_ELU = {"binary SMALLER": 1, "unary EXPONENTIAL": 1, "binary MINUS": 1, "unary RECTIFIED": 1, "binary TIMES": 1,
        "binary PLUS": 1}  # fmt: skip
_LEAKY = {"unary RECTIFIED": 1, "binary SMALLER": 1, "binary TIMES": 1, "binary PLUS": 1}
_HARD_SIGMOID = {"binary TIMES": 1, "binary PLUS": 1, "binary LARGER": 1, "binary SMALLER": 1}
# Operators that several kernels compute in float, and these kernels (docs/c-inference.md, section 5.2).
FUNCTIONS: Mapping[str, Counter[str]] = {name: Counter(kernels) for name, kernels in {
    "Elu": _ELU, "Selu": {**_ELU, "binary TIMES": 2}, "LeakyRelu": _LEAKY, "PRelu": _LEAKY,
    "HardSigmoid": _HARD_SIGMOID, "HardSwish": {**_HARD_SIGMOID, "binary TIMES": 2},
    "BatchNormalization": {"binary TIMES": 1, "binary PLUS": 1}, "Pow": {"binary TIMES": 2},
    "Mish": {"unary SOFTPLUS": 1, "unary TANGENT": 1, "binary TIMES": 1},
}.items()}  # fmt: skip
COPIES = frozenset({"take", "copy", "take_floats", "join_floats"})  # which compute nothing
LAST = frozenset({"look_up", "to_integers", "dequantize", "memcpy"})  # one of these at most, at the end
# What may be in a part with a table: a function of quantized values, not of what is computed from them.
BESIDE_TABLES = frozenset({"take", "copy", "copy through a table", "upsample", "max_pool", "look_up", "surround"})


@dataclass
class Part:
    """What is computed between quantizers.

    Attributes:
        sources: the quantizers whose integers it reads.
        layers: how often each layer runs.
        kinds: kernels, or operators of the graph.
        ends: kernels that compute the result itself.
        line: of the last call.
    """

    sources: set[str] = field(default_factory=set)
    layers: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    ends: list[str] = field(default_factory=list)
    line: int = 0


def problems(
    source: Source, memory: Memory, graph: onnx.GraphProto, adding: Collection[str]
) -> Iterator[tuple[int, str]]:
    """Yield lines of model.c and what PyTorch's graph does not explain there.

    Args:
        source: the calls.
        memory: which has followed them.
        graph: a capture with marker nodes, from `csqtool.verifying.expected_graph.captured`.
        adding: layers without an input quantizer, whose biases may be on no grid of integers.
    """
    wanted, first = expected_parts(graph, adding)
    found = parts(source, memory, first)
    for name in [*wanted, *(found.keys() - wanted.keys())]:
        called = name or "the output"
        if name not in wanted or name not in found:
            yield found[name].line if name in found else 0, f"{called} is {'unknown' if name in found else 'missing'}"
            continue
        part, other = found[name], wanted[name]
        if part.sources != other.sources:
            texts = [", ".join(sorted(one.sources)) or "nothing" for one in (part, other)]
            yield part.line, f"{called} is computed from {texts[0]}, not from {texts[1]}"
        if part.layers != other.layers:
            texts = [", ".join(sorted(one.layers.elements())) or "none" for one in (part, other)]
            yield part.line, f"{called} has the layers {texts[0]}, not {texts[1]}"
        for text in _beyond(part, other):
            yield part.line, f"{called}: {text}"


def _beyond(part: Part, wanted: Part) -> Iterator[str]:
    """Yield the kernels of a part that its operators do not explain."""
    for kind, count in sorted(part.kinds.items()):
        if kind in OPERATORS:
            most = sum(wanted.kinds[operator] for operator in OPERATORS[kind])
            most += sum(wanted.kinds[name] * kernels[kind] for name, kernels in FUNCTIONS.items())
        elif kind == "to_floats":
            most = len(wanted.sources)
        elif kind == "copy through a table":
            most = wanted.kinds["joined"]
        else:
            most = 1 if kind in LAST else count
        if count > most:
            yield f"{kind}: {count} of them, where PyTorch's graph explains {most}"
    last = [kind for kind in part.kinds if kind in LAST]
    if len(last) > 1 or any(kind not in part.ends for kind in last):
        yield f"{' and '.join(last)} must be its one last call"
    tables = [kind for kind in ("look_up", "copy through a table") if part.kinds[kind]]
    if tables and (len(tables) > 1 or part.layers or part.kinds.keys() - BESIDE_TABLES):
        yield "a table of what is not quantized"


def parts(source: Source, memory: Memory, first: str) -> dict[str, Part]:
    """Return the parts of `model_run` by the quantizers that they end in; the input's is called `first`."""
    marked: dict[int, str] = {FROM_INPUT: first or UNQUANTIZED}
    ends: dict[str, set[int]] = {}
    for number, call in enumerate(source.calls):
        if call.kernel == "TRACE_VALUES":
            name = text_of(call.arguments[0])
            if _is_own_result(name, [source.calls[n] for n in memory.reads[number] if n >= 0], source):
                continue
            ends[name] = memory.reads[number]
            marked |= dict.fromkeys(memory.reads[number], name)
    ends[OUTPUT] = memory.output_from
    used = set().union(*memory.reads)
    found: dict[str, Part] = {}
    for name, begins in ends.items():
        part = found[name] = Part()
        seen: set[int] = set()
        left = sorted(begins)
        while left:
            number = left.pop()
            if number in marked and not (number in begins and marked[number] == name):
                part.sources.add(marked[number])
            elif number not in seen:
                seen.add(number)
                call = source.calls[number]
                part.line = max(part.line, call.line)
                kind = _kind(call.kernel, call.arguments)
                if kind in LAYERS:
                    part.layers[source.structures[call.arguments[0]].label] += 1
                else:
                    part.kinds[kind] += 1
                part.ends += [kind] * (number in begins)
                left += sorted(memory.reads[number])
                left += [n for n in _beside(source, number) if n not in used]
    return found


def _beside(source: Source, number: int) -> Iterator[int]:
    """Yield the calls that join values side by side with what a call joins; later calls may take some of them only."""
    for step in (-1, 1):
        other = number + step
        while source.calls[number].kernel in JOINING and 0 <= other < len(source.calls):
            if source.calls[other].kernel != source.calls[number].kernel:
                break
            yield other
            other += step


def _is_own_result(name: str, calls: Sequence[Call], source: Source) -> bool:
    """Return whether what is traced is the result of the one layer of floats whose name it has."""
    return len(calls) == 1 and calls[0].kernel in OF_FLOATS and source.structures[calls[0].arguments[0]].label == name


def _kind(kernel: str, arguments: tuple[object, ...]) -> str:
    if kernel in ("unary", "binary"):
        return f"{kernel} {arguments[0]}"
    return "copy through a table" if kernel == "copy" and arguments[-1] != "NULL" else kernel


def expected_parts(graph: onnx.GraphProto, adding: Collection[str]) -> tuple[dict[str, Part], str]:
    """Return the parts of PyTorch's graph by the quantizers that they end in, and the input's quantizer.

    Layers in `adding` may add their biases in float, as an operator Add does.
    """
    makers = {name: node for node in graph.node for name in node.output}
    entry, first = graph.input[0].name, ""
    live = {entry}  # what depends on the input
    found: dict[str, Part] = {}
    for node in graph.node:
        if not live.isdisjoint(node.input):
            live |= set(node.output)
        if _is_quantizer(node):
            if node.input[0] == entry:
                first = _name(node)
            else:
                found[_name(node)] = _part(node.input[0], makers, live, adding)
    found[OUTPUT] = _part(graph.output[0].name, makers, live, adding)
    return found, first


def _part(end: str, makers: Mapping[str, onnx.NodeProto], live: set[str], adding: Collection[str]) -> Part:
    part, seen, left = Part(), set(), [end]  # type: Part, set[str], list[str]
    while left:
        name = left.pop()
        if name not in live or name in seen:
            continue
        seen.add(name)
        node = makers.get(name)
        if node is None:
            part.sources.add(UNQUANTIZED)
            continue
        if _is_quantizer(node):
            part.sources.add(_name(node))
            continue
        left += node.input
        if node.output[0] != name and node.output[0] in seen:
            continue  # another output of an operator that is counted
        seen.add(node.output[0])
        at = {**dict.fromkeys(PRODUCTS, 1), "Gather": 0}.get(node.op_type)
        weight = None if at is None else _weight(node.input[at], makers)
        if weight is not None:
            part.layers[weight] += 1
            part.kinds["Add"] += weight in adding and len(node.input) > 2
        else:
            part.kinds[node.op_type] += 1
            part.kinds["joined"] += len(node.input) * (node.op_type == "Concat")
    return part


def _weight(name: str, makers: Mapping[str, onnx.NodeProto]) -> str | None:
    """Return the layer whose weight a value is, None if it is none."""
    node = makers.get(name)
    while node is not None and node.op_type == "Transpose":
        node = makers.get(node.input[0])
    return _name(node) if node is not None and (node.domain, node.op_type) == (MARKER_DOMAIN, "Weight") else None


def _is_quantizer(node: onnx.NodeProto) -> bool:
    return (node.domain, node.op_type) == (MARKER_DOMAIN, "Activation")


def _name(node: onnx.NodeProto) -> str:
    name: bytes = next(helper.get_attribute_value(a) for a in node.attribute if a.name == "name")
    return name.decode()
