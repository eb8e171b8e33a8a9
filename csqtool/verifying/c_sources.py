"""Every line of an inference in C, explained before anything is compiled: known code by digests, the rest by grammar.

Comments and white space carry no meaning. `c_known.json` holds the digests of what is the same for all models; a test
keeps it equal to what is written. Nothing of the exporter is used.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import onnx

from csqtool.verifying.c_calls import problems
from csqtool.verifying.c_grammar import Source, array_head
from csqtool.verifying.c_memory import Memory
from csqtool.verifying.c_text import CFault, Item, items

MOST_BYTES = 1 << 28  # of the input, the output, or the arena
IMPLEMENTATION = "#if defined(MODEL_IMPLEMENTATION) && !defined(MODEL_IMPLEMENTED)"
GUARDS = {"model.h": "MODEL_H", "weights.h": "MODEL_WEIGHTS_H"}
INCLUDED = "files"  # the part that includes model.h and weights.h; one header needs neither
INTEGERS = "uint8_t"  # the type of a quantized input
_TYPE = "#define MODEL_INPUT_TYPE "
_SIZE = "#define MODEL_{}_SIZE "
_DIGEST = "#define MODEL_FINALIZED_SHA256 "


@functools.cache
def known() -> Mapping[str, Mapping[str, str]]:
    """Return digests by file and what each is part of: of model.c its items, in order, of others the whole file."""
    text = (importlib.resources.files("csqtool.verifying") / "c_known.json").read_text(encoding="utf-8")
    found: dict[str, dict[str, str]] = json.loads(text)
    return found


class Inference:
    """The sources of an inference.

    Attributes:
        faults: what is not explained.
        sizes: ``INPUT``, ``OUTPUT`` and ``ARENA``.
        sha256: of the finalized model that it names.
        input_type: of an input, in C.
        source: its constants and calls.

    Args:
        files: model.h, and model.c, weights.c and weights.h if model.h does not hold everything.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.faults: list[str] = []
        self.sizes: dict[str, int] = {}
        self.sha256 = ""
        self.input_type = INTEGERS
        self.source = Source()
        self._known: list[str] = []  # digests of what is known
        self._memory: Memory | None = None
        self._declared: dict[str, tuple[str, int]] = {}
        self._each("model.h", files["model.h"], self._header)
        if "weights.h" in files:
            for name, part in (
                ("weights.h", self._weights_h), ("weights.c", self._weights_c), ("model.c", self._model_c)
            ):  # fmt: skip
                self._each(name, files[name], part)
        if not self.faults:
            self._check_parts("weights.h" in files)
            self._whole("weights.h" in files)

    @property
    def rounds_in_float(self) -> bool:
        """Whether its calls move results to their grids in float32, not by integers."""
        return self.source.forms == {"float"}

    def _each(self, file: str, content: bytes, part: Callable[[str, Sequence[Item]], None]) -> None:
        guards = (f"#ifndef {GUARDS[file]}", IMPLEMENTATION) if file in GUARDS else ()
        try:
            part(file, items(file, content, guards))
        except CFault as fault:
            self.faults.append(str(fault))

    def _all(self, file: str, found: Sequence[Item], explain: Callable[[Item], None]) -> None:
        """Explain each item; one that is not explained does not hide another."""
        for item in found:
            try:
                explain(item)
            except CFault as fault:
                self.faults.append(str(fault))

    def _header(self, file: str, found: Sequence[Item]) -> None:
        if len(found) > 4 and found[4].text.startswith(_TYPE):
            self.input_type = found[4].text.removeprefix(_TYPE)
        wanted = frame(self.input_type)
        values = _match(file, found, wanted)
        self.sizes = {name: int(size) for name, size in zip(("INPUT", "OUTPUT", "ARENA"), values, strict=False)}
        self.sha256 = values[-1]
        if max(self.input_bytes, 4 * self.sizes["OUTPUT"], self.sizes["ARENA"]) > MOST_BYTES:
            raise CFault(file, found[3].line, "sizes beyond all memory of devices")
        rest = found[len(wanted) :]
        if rest:
            _match(file, [*rest[:2], *rest[-1:]], [IMPLEMENTATION, "#define MODEL_IMPLEMENTED", "#endif"])
            self._all(file, rest[2:-1], lambda item: self._code(file, item, "static const"))

    @property
    def input_bytes(self) -> int:
        """Bytes of an input."""
        return self.sizes["INPUT"] * (1 if self.input_type == INTEGERS else 4)

    def _weights_h(self, file: str, found: Sequence[Item]) -> None:
        _match(file, [*found[:3], *found[-1:]], ["#ifndef MODEL_WEIGHTS_H", "#define MODEL_WEIGHTS_H",
                                               "#include <stdint.h>", "#endif"])  # fmt: skip
        self._all(file, found[3:-1], lambda item: self._extern(file, item))

    def _extern(self, file: str, item: Item) -> None:
        try:
            if item.tokens[-1] != ";":
                raise ValueError
            before, kind, _, name, size = array_head(item.tokens[:-1])
            if before != "extern const" or name in self._declared:
                raise ValueError
        except ValueError as error:
            raise CFault(file, item.line, f"not explained: {item.shown}") from error
        self._declared[name] = kind, size

    def _weights_c(self, file: str, found: Sequence[Item]) -> None:
        _match(file, found[:1], ['#include "weights.h"'])
        self._all(file, found[1:], lambda item: self._array(file, item))

    def _array(self, file: str, item: Item) -> None:
        if item.tokens[0] != "const":
            raise CFault(file, item.line, f"not explained: {item.shown}")
        self.source.add(file, item, "const")

    def _model_c(self, file: str, found: Sequence[Item]) -> None:
        self._all(file, found, lambda item: self._code(file, item))

    def _code(self, file: str, item: Item, weights: str = "") -> None:
        """Explain what model.c holds: known items in their order, each once, and the model's own."""
        order = list(known()["model.c"])
        if item.sha256 not in order:
            self.source.add(file, item, weights)
            return
        if self._known and order.index(item.sha256) <= order.index(self._known[-1]):
            raise CFault(file, item.line, f"known code, in another order or twice: {item.shown}")
        self._known.append(item.sha256)

    def _check_parts(self, in_files: bool) -> None:
        """Check that each known part is there as a whole: of a kernel, also what is for other compilers alone."""
        parts = {known()["model.c"][digest] for digest in self._known}
        wanted = parts - {INCLUDED} | {"includes", "trace", *([INCLUDED] if in_files else [])}
        if not parts.isdisjoint(("on_grid", "load", "save")):  # floats are those of the page by this alone
            wanted.add("precision")
        if {"round_sums", "round_sums_float"} <= parts:
            self.faults.append("model.c: it rounds the sums of layers in two ways")
        self.source.in_float = "round_sums_float" in parts
        for digest, part in known()["model.c"].items():
            if part in wanted and digest not in self._known:
                self.faults.append(f"model.c: a piece of its {part} is missing")
        if INCLUDED in parts - wanted:
            self.faults.append("model.h: it includes files that it must not need")

    def _whole(self, in_files: bool) -> None:
        """Explain the parts together: arrays and their declarations, the input, and what calls read and write."""
        source = self.source
        if in_files:
            stored = {a.name: (a.kind, a.size) for a in source.arrays.values() if a.name.startswith("model_")}
            self.faults += [f"weights.h: {name} is declared otherwise than it is stored, or one of both is missing"
                            for name, _ in sorted(stored.items() ^ self._declared.items())][:1]  # fmt: skip
        if bool(source.input) != (self.input_type == INTEGERS) or not source.calls:
            self.faults.append("model.c: model_quantize_input or model_run is missing, or one too many")
        elif source.input_type != self.input_type:
            self.faults.append(f"model.c: the input of model_run is {source.input_type}, not {self.input_type}")
        if self.faults:
            return
        count, last = 1, 0
        for size, step in source.input:
            count, last = count * size, last + (size - 1) * step
        if source.input and (count != self.sizes["INPUT"] or last >= count):
            self.faults.append(f"model.c: model_quantize_input moves {count} values, up to the one with number {last}")
            return
        if len(source.forms) > 1:
            self.faults.append("model.c: it moves some results to their grids by integers, others in float")
            return
        memory = Memory(source, self.input_bytes, self.sizes["OUTPUT"], self.sizes["ARENA"])
        self.faults += self._placed(memory.problems())
        self._memory = memory

    def _placed(self, found: Iterable[tuple[int, str]]) -> list[str]:
        file = "model.c" if self._declared else "model.h"
        return [f"{file}:{line}: {text}" if line else f"{file}: {text}" for line, text in found]

    def beyond(self, graph: onnx.GraphProto, adding: Collection[str]) -> list[str]:
        """Return what PyTorch's graph does not explain, see `csqtool.verifying.c_calls`; there must be no faults."""
        assert self._memory is not None
        return self._placed(problems(self.source, self._memory, graph, adding))


def frame(input_type: str) -> tuple[str, ...]:
    """Return the items of model.h for an input of a type; what ends with a space is followed by a value."""
    names = [_SIZE.format(name) for name in ("INPUT", "OUTPUT", "ARENA")]
    run = f"void model_run ( const {input_type} * input , float * output , uint8_t * arena ) ;"
    quantize = "void model_quantize_input ( const float * values , uint8_t * input ) ;"
    if input_type == INTEGERS:
        middle = [*names, _DIGEST, quantize, run]
    elif input_type in ("float", "int32_t"):
        middle = [names[0], f"{_TYPE}{input_type}", *names[1:], _DIGEST, run]
    else:
        middle = [names[0], f"{_TYPE}float"]
    return ("#ifndef MODEL_H", "#define MODEL_H", "#include <stdint.h>", *middle, "#endif")


def _match(file: str, found: Sequence[Item], wanted: Sequence[str]) -> list[str]:
    """Compare items with their texts; return the values after those that end with a space."""
    values: list[str] = []
    for i, text in enumerate(wanted):
        if i >= len(found):
            raise CFault(file, 0, f"it ends before {text}")
        value = r'"([0-9a-f]{64})"' if text == _DIGEST else r"([1-9]\d{0,8})" if text[-1] == " " else ""
        match = re.fullmatch(re.escape(text) + value, found[i].text)
        if match is None:
            raise CFault(file, found[i].line, f"not explained: {found[i].shown}, where {text.strip()} must be")
        values += match.groups()
    return values
