"""The model's own part of an inference in C, by a strict grammar: constant arrays and structures, and calls.

There are no conditions, no loops but those over the input's sizes, no preprocessor lines and no expressions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool.verifying.c_text import CFault, Item, shown

INT = r"(?:- )?(?:0|[1-9]\d{0,9})"
LOWEST = r"\( - 2147483647 - 1 \)"  # -2^31, which C has no constant for
FLOAT = r"(?:- )?0x[01]\.[0-9a-f]+p[-+]\d+f"
TEXT = r'"(?:[^"\\]|\\[0-7]{3})*"'
BOUNDS = {"uint8_t": (0, 255), "int32_t": (-(2**31), 2**31 - 1)}
IN_WEIGHTS = {
    "model_weights": "uint8_t", "model_bias": "int32_t", "model_multiplier": "int32_t", "model_steps": "float",
    "model_table": "uint8_t", "model_floats": "float",
}  # fmt: skip
IN_MODEL = {
    "numbers": "int32_t", "axes": "int32_t", "multiplier": "int32_t", "grid": "int32_t", "distances": "int32_t",
    "shift": "uint8_t",
}  # fmt: skip
WINDOW = (
    "in_h", "in_w", "out_h", "out_w", "kernel_h", "kernel_w", "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h",
    "dilation_w",
)  # fmt: skip
POOL = frozenset({*WINDOW, "channels"})
LAYER = frozenset({
    *WINDOW, "spread_h", "spread_w", "in_c", "out_c", "group_c", "filters_a_group", "each", "in_zero", "out_zero",
    "low", "high", "row_bytes", "base", "step", "bits", "wide", "padded", "block", "weights", "encoding",
})  # fmt: skip
# What a layer has as well: of integers by multipliers, of integers by factors in float, of floats; an embedding has
# no more.
LAYERS = (
    LAYER | {"bias", "multiplier", "shift"}, LAYER | {"bias", "steps"}, LAYER | {"steps"}, LAYER,
)  # fmt: skip
POINTERS = {
    "weights": "model_weights", "bias": "model_bias", "multiplier": "model_multiplier", "steps": "model_steps"
}  # fmt: skip
ENCODINGS = ("PLAIN", "FIELDS", "TRITS")
UNARY = ("NEGATIVE", "ABSOLUTE", "RECTIFIED", "EXPONENTIAL", "ERROR_FUNCTION", "SIGMOID", "TANGENT", "SOFTPLUS")
BINARY = ("PLUS", "MINUS", "TIMES", "OVER", "LARGER", "SMALLER", "GREATER")
# Arguments of each kernel: a layer or pool (&), what is read, what is written, room in the arena, the float output,
# integers, floats, arrays of integers (ints), shifts or floats, a table or none, a word.
SIGNATURES = {name: tuple(kinds.split()) for name, kinds in {
    "conv": "layer read write room", "depthwise": "layer read write room",
    "conv_float": "layer read write room int int", "add": "read read write int int numbers",
    "multiply": "read read write int int numbers", "add_scaled": "read read write int int numbers floats",
    "multiply_scaled": "read read write int int numbers floats", "average_scaled": "pool read write floats int grid",
    "max_pool": "pool read write",
    "average_pool": "pool read write multiplier shift int grid", "look_up": "read write int table",
    "take": "read write axes int", "copy": "read write int int int table_or_none",
    "surround": "read write axes int int",
    "upsample": "read write int int int int int", "dequantize": "read output int int float",
    "binary": "binary read read write axes", "unary": "unary read write int",
    "matrices": "read read write int int int int int", "softmax": "read write int int",
    "normalize": "read write int int floats floats float", "mean": "read write int int",
    "choose": "read read read write int",
    "take_floats": "read write axes", "join_floats": "read write int int int", "to_floats": "read write int int float",
    "to_integers": "read write int float int int int", "memcpy": "output read int",
    "layer_of_floats": "layer read write room floats distances", "embed": "layer read write room int float",
    "pool_floats": "pool read write int int", "pad_floats": "read write axes float",
    "repeat_floats": "read write int int int int int",
    "blend_floats": "read write int int int int int",
}.items()}  # fmt: skip

# How kernels beside those of layers move results to grids.
ROUNDING = {
    **dict.fromkeys(("add", "multiply", "average_pool"), "fixed"),
    **dict.fromkeys(("add_scaled", "multiply_scaled", "average_scaled"), "float"),
}
_ARRAY = re.compile(r"((?:static |extern )?const) (\w+) ([a-z_]+)_(\d+) \[ ([1-9]\d*) \]")
_STRUCTURE = re.compile(
    rf"static const (layer|pool)_t (\w+) = {{ (?:NAMED \( ({TEXT}) \) )?"
    r"((?:\. \w+ = [\w ()-]+)(?: , \. \w+ = [\w ()-]+)*) } ;"
)  # fmt: skip
_ENUM = re.compile(r"enum { (MOST_TAPS|MOST_FILTERS) = ([1-9]\d{0,5}) } ;")
_LOOPS = " ".join(rf"for \( {v} = 0 ; {v} < ([1-9]\d*) ; {v} \+\+ \)" for v in "abcd")
_QUANTIZE_INPUT = re.compile(
    r"void model_quantize_input \( const float \* values , uint8_t \* input \) { int32_t a , b , c , d ; "
    + _LOOPS + r" \* input \+\+ = quantize \( values \[ " + r" \+ ".join(rf"{v} \* (0|[1-9]\d*)" for v in "abcd")
    + rf" \] , {FLOAT} , (0|[1-9]\d*) , (0|[1-9]\d*) , (0|[1-9]\d*) \) ; }}"
)  # fmt: skip
_RUN = re.compile(r"void model_run \( const (uint8_t|float|int32_t) \* input , float \* output , uint8_t \* arena \) {")
_RUN_TOKENS = 17
_PLACE = re.compile(
    r"(?:\( const uint8_t \* \) )?(input)|(arena) \+ (0|[1-9]\d{0,9})(?: \+ (0|[1-9]\d{0,9}))?"
    r"|\( uint8_t \* \) (output)|\( const uint8_t \* \) (model_floats_\d+)"
)


@dataclass(frozen=True)
class Array:
    """A constant array; `values` is empty for floats."""

    name: str
    kind: str
    size: int
    values: NDArray[np.int64]
    line: int


@dataclass(frozen=True)
class Place:
    """From which byte on, and of what: ``input``, ``arena``, ``output``, or a constant array of floats."""

    space: str
    at: int


@dataclass(frozen=True)
class Structure:
    """A layer or pool: its integers, the arrays and words by field, and the layer's name."""

    label: str
    numbers: Mapping[str, int]
    words: Mapping[str, str]


@dataclass(frozen=True)
class Call:
    """A call of a kernel, or ``TRACE_VALUES``; arguments are places, integers, and names or words."""

    kernel: str
    arguments: tuple[Any, ...]
    line: int


@dataclass
class Source:
    """What model.c and weights.c hold beside the kernels.

    Attributes:
        arrays: by name.
        structures: layers and pools, by name.
        most: ``MOST_TAPS`` and ``MOST_FILTERS``.
        input: sizes and strides of the four loops over the input, where it is quantized.
        input_type: of `model_run`.
        calls: of `model_run`, in order.
        in_float: whether its code rounds the sums of layers in float32.
    """

    arrays: dict[str, Array] = field(default_factory=dict)
    structures: dict[str, Structure] = field(default_factory=dict)
    most: dict[str, int] = field(default_factory=dict)
    input: list[tuple[int, int]] = field(default_factory=list)
    input_type: str = ""
    calls: list[Call] = field(default_factory=list)
    in_float: bool = False

    @property
    def forms(self) -> set[str]:
        """How calls move results to grids: by integers (``fixed``), in float32 (``float``), or both."""
        found = set()
        for call in self.calls:
            if call.kernel in ("conv", "depthwise") and (layer := self.structures.get(call.arguments[0])):
                found.add("float" if "steps" in layer.words else "fixed")
            elif call.kernel in ROUNDING:
                found.add(ROUNDING[call.kernel])
        return found

    def add(self, file: str, item: Item, weights: str = "") -> None:
        """Add a declaration or function.

        Args:
            file: where it is.
            item: the declaration or function.
            weights: what an array of the weights begins with, such as ``const``; empty where there are none.

        Raises:
            CFault: the grammar does not have it.
        """
        try:
            if item.tokens[0] == "void":
                (self._run if "model_run" in item.tokens[:2] else self._input)(file, item)
            elif item.tokens[0] == "enum":
                found = _ENUM.fullmatch(item.text)
                if found is None:
                    raise ValueError
                self.most[_new(found[1], self.most)] = int(found[2])
            elif item.tokens[2:3] in (["layer_t"], ["pool_t"]):
                self._structure(item.text)
            else:
                self._array(item, weights)
        except ValueError as error:
            raise CFault(file, item.line, f"not explained: {item.shown}{_reason(error)}") from error

    def _array(self, item: Item, weights: str) -> None:
        end = item.tokens.index("]") + 1 if "]" in item.tokens else 0
        before, kind, stem, name, size = array_head(item.tokens[:end])
        if (before, IN_WEIGHTS.get(stem)) != (weights or None, kind) and (before, IN_MODEL.get(stem)) != (
            "static const", kind,
        ):  # fmt: skip
            raise ValueError("such an array is not known")
        if item.tokens[end] != "=" or item.tokens[-1] != ";":
            raise ValueError
        values = _values(item.tokens[end + 1 : -1], kind)
        if len(values) != size:
            raise ValueError(f"it has {len(values)} numbers")
        numbers = np.zeros(0, np.int64) if kind == "float" else np.array(values, np.int64)
        self.arrays[_new(name, self.arrays)] = Array(name, kind, size, numbers, item.line)

    def _structure(self, text: str) -> None:
        found = _STRUCTURE.fullmatch(text)
        if found is None or not re.fullmatch(rf"{found[1]}_\d+", found[2]):
            raise ValueError
        pairs = re.findall(r"\. (\w+) = ([\w ()-]+?)(?= , |$)", found[4])
        fields = dict(pairs)
        wanted = (POOL,) if found[1] == "pool" else LAYERS
        if len(fields) != len(pairs) or fields.keys() not in wanted:
            raise ValueError(f"its fields are {shown(', '.join(key for key, _ in pairs))}")
        named = {key: value for key, value in fields.items() if key in POINTERS or key == "encoding"}
        for key, value in named.items():
            if value not in ENCODINGS if key == "encoding" else not re.fullmatch(rf"{POINTERS[key]}_\d+", value):
                raise ValueError(f"{key} is {shown(value)}")
        numbers = {key: _integer(value) for key, value in fields.items() if key not in named}
        self.structures[_new(found[2], self.structures)] = Structure(text_of(found[3] or '""'), numbers, named)

    def _input(self, file: str, item: Item) -> None:
        found = _QUANTIZE_INPUT.fullmatch(item.text)
        if found is None or self.input:
            raise ValueError
        numbers = [int(number) for number in found.groups()]
        if max(numbers[8:]) > 255:
            raise ValueError("its grid has more than 256 integers")
        self.input = list(zip(numbers[:4], numbers[4:8], strict=True))

    def _run(self, file: str, item: Item) -> None:
        head = _RUN_TOKENS
        found = _RUN.fullmatch(" ".join(item.tokens[:head]))
        if found is None or item.tokens[-1] != "}" or self.calls:
            raise ValueError
        self.input_type = found[1]
        statement: list[str] = []
        begins = item.line
        for token, line in zip(item.tokens[head:-1], item.lines[head:-1], strict=True):
            if token != ";":
                statement.append(token)
                begins = line if len(statement) == 1 else begins
                continue
            tokens, statement = statement, []
            if tokens == ["(", "void", ")", "arena"] and not self.calls:
                continue
            try:
                self.calls.append(_call(tokens, begins))
            except ValueError as error:
                text = shown(" ".join(tokens))
                raise CFault(file, begins, f"not explained: {text}{_reason(error)}") from error
        if statement or not self.calls:
            raise ValueError


def array_head(tokens: list[str]) -> tuple[str, str, str, str, int]:
    """Return what is before an array's type, its type, its name without the number, its name, and its size.

    Raises:
        ValueError: it is no array.
    """
    found = _ARRAY.fullmatch(" ".join(tokens))
    if found is None:
        raise ValueError
    return found[1], found[2], found[3], f"{found[3]}_{found[4]}", int(found[5])


def text_of(literal: str) -> str:
    """Return the text of a string literal, whose escapes are octal."""
    content = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8) & 255), literal[1:-1])
    return content.encode("latin-1").decode("utf-8", errors="replace")


def _new(name: str, known: Mapping[str, object]) -> str:
    if name in known:
        raise ValueError(f"{name} is there twice")
    return name


def _reason(error: ValueError) -> str:
    return f" ({error})" if str(error) else ""


def _integer(text: str) -> int:
    if re.fullmatch(LOWEST, text):
        return -(2**31)
    if not re.fullmatch(INT, text) or not -(2**31) < (number := int(text.replace(" ", ""))) < 2**31:
        raise ValueError(f"{shown(text)} is not a number of 32 bits")
    return number


def _values(tokens: list[str], kind: str) -> list[int]:
    """Return the numbers between braces, of floats only how many there are."""
    if len(tokens) == 1 and kind != "float":  # plain integers: one token
        text = tokens[0]
        if text[0] != "{":
            raise ValueError
        if re.search(r"(?<!\d)0\d|\d{11}", text):
            raise ValueError("a number with zeros in front, or too many digits")
        try:
            values = [int(part) for part in text[1:-1].split(",")]
        except ValueError:
            raise ValueError("it holds something else than numbers") from None
    else:
        text = " ".join(tokens)
        if text[:2] != "{ " or text[-2:] != " }":
            raise ValueError
        parts = text[2:-2].split(" , ")
        if kind == "float":
            if not all(re.fullmatch(FLOAT, part) for part in parts):
                raise ValueError("it holds something else than floats in hexadecimal")
            return [0] * len(parts)
        values = [_integer(part) for part in parts]
    low, high = BOUNDS[kind]
    if min(values) < low or max(values) > high:
        raise ValueError(f"a number does not fit {kind}")
    return values


def _call(tokens: list[str], line: int) -> Call:
    if len(tokens) < 3 or tokens[1] != "(" or tokens[-1] != ")":
        raise ValueError
    kernel, parts = tokens[0], [[]]  # type: str, list[list[str]]
    for token in tokens[2:-1]:
        if token == ",":  # no argument holds one
            parts.append([])
        else:
            parts[-1].append(token)
    texts = [" ".join(part) for part in parts]
    if kernel == "TRACE_VALUES":
        if len(texts) < 4 or not re.fullmatch(TEXT, texts[0]):
            raise ValueError
        return Call(kernel, (texts[0], _place(texts[1], "write"), *map(_integer, texts[2:])), line)
    kinds = SIGNATURES.get(kernel)
    if kinds is None or len(kinds) != len(texts):
        raise ValueError("no such kernel" if kinds is None else f"it takes {len(kinds)} arguments")
    return Call(kernel, tuple(_argument(text, kind) for text, kind in zip(texts, kinds, strict=True)), line)


_NAMES = {
    "layer": r"& (layer_\d+)", "pool": r"& (pool_\d+)", "table": r"(model_table_\d+)", "floats": r"(model_floats_\d+)",
    "table_or_none": r"(model_table_\d+|NULL)", "unary": f"({'|'.join(UNARY)})", "binary": f"({'|'.join(BINARY)})",
    "float": f"({FLOAT})", "output": "(output)", **{stem: rf"({stem}_\d+)" for stem in IN_MODEL},
}  # fmt: skip


def _argument(text: str, kind: str) -> Place | int | str:
    if kind == "int":
        return _integer(text)
    if kind in ("read", "write", "room"):
        return _place(text, kind)
    found = re.fullmatch(_NAMES[kind], text)
    if found is None:
        raise ValueError(f"{shown(text)} is no argument for {kind}")
    return Place("output", 0) if kind == "output" else found[1]


def _place(text: str, kind: str) -> Place:
    found = _PLACE.fullmatch(text)
    allowed = {"read": ("input", "arena", "floats"), "write": ("arena", "output"), "room": ("arena",)}[kind]
    if found is None:
        raise ValueError(f"{shown(text)} is no place")
    space = found[1] or found[2] or found[5] or found[6]
    if ("floats" if found[6] else space) not in allowed:
        raise ValueError(f"{shown(text)} cannot be what it {kind}s" if kind != "room" else "no room in the arena")
    return Place(space, int(found[3] or 0) + int(found[4] or 0))
