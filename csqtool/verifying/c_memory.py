"""Follows the calls of an inference in C: each within what it is given, on what was computed, and used later."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool.verifying.c_extents import USES, Span, traced
from csqtool.verifying.c_grammar import Call, Place, Source

NEVER, ROOM = -1, -2  # bytes that nothing has written, and those of a kernel's own memory
FROM_INPUT = -3  # who computed the input
MOST_CALLS = 2**15 - 1
IN_PLACE = frozenset({
    "add", "multiply", "add_scaled", "multiply_scaled", "look_up", "unary", "binary", "choose", "softmax", "normalize",
})  # fmt: skip

JOINING = ("copy", "join_floats")  # of values side by side, perhaps not all are used


class Memory:
    """Follows the calls of `model_run`.

    Attributes:
        reads: of each call that was followed, the calls whose results it reads; `FROM_INPUT` is the input.
        output_from: the calls that write the output.

    Args:
        source: the calls and their constants.
        input_size: integers of the input.
        output_size: floats of the output.
        arena_size: bytes of the arena.
    """

    def __init__(self, source: Source, input_size: int, output_size: int, arena_size: int) -> None:
        self._source = source
        self._sizes = {"input": input_size, "output": 4 * output_size, "arena": arena_size}
        self._sizes |= {a.name: 4 * a.size for a in source.arrays.values() if a.kind == "float"}
        self._owner = {name: np.full(self._sizes[name], NEVER, np.int16) for name in ("arena", "output")}
        self.reads: list[set[int]] = []
        self.output_from: set[int] = set()
        self._arrays: set[str] = set()
        self._structures: set[str] = set()

    def problems(self) -> list[tuple[int, str]]:
        """Return lines and what is wrong there, or [] if everything is in place."""
        source, found = self._source, []
        if len(source.calls) > MOST_CALLS:
            return [(source.calls[MOST_CALLS].line, f"more than {MOST_CALLS} calls")]
        for number, call in enumerate(source.calls):
            try:
                self._follow(number, call)
            except ValueError as error:
                return [(call.line, f"{call.kernel}: {error}")]
        if (self._owner["output"] == NEVER).any():
            found.append((source.calls[-1].line, "not every number of the output is written"))
        self.output_from = set(np.unique(self._owner["output"]).tolist())
        useful = self.output_from.union(*(r for call, r in zip(source.calls, self.reads, strict=True)
                                          if call.kernel != "TRACE_VALUES"))  # fmt: skip
        for number, call in enumerate(source.calls):
            if call.kernel not in ("TRACE_VALUES", *JOINING) and number not in useful:
                found.append((call.line, f"{call.kernel}: nothing uses what it computes"))
        for name, array in source.arrays.items():
            if name not in self._arrays:
                found.append((array.line, f"{name}: nothing uses it"))
        unused = sorted(source.structures.keys() - self._structures)
        return [*found, *((0, f"{name}: nothing uses it") for name in unused)]

    def _follow(self, number: int, call: Call) -> None:
        if call.kernel == "TRACE_VALUES":
            self.reads.append(self._read(traced(call)))
            return
        arguments = [self._resolved(argument) for argument in call.arguments]
        uses = USES[call.kernel](self._source, *arguments)
        spans = [*uses.reads, uses.write, *([uses.room] if uses.room else [])]
        for span in spans:
            self._check(span)
        for span in uses.reads:
            same = span == uses.write and call.kernel in IN_PLACE
            if (span.meets(uses.write) and not same) or (uses.room and span.meets(uses.room)):
                raise ValueError("it writes over what it reads")
        if uses.room and uses.write.meets(uses.room):
            raise ValueError("its own memory is what it writes")
        self.reads.append(set().union(*map(self._read, uses.reads)))
        if uses.room:
            self._bytes(uses.room)[:] = ROOM
        self._bytes(uses.write)[:] = number

    def _resolved(self, argument: Any) -> Any:
        source = self._source
        if not isinstance(argument, str):
            if isinstance(argument, Place) and argument.space in source.arrays:
                self._arrays.add(argument.space)
            return argument
        if argument in source.structures:
            structure = source.structures[argument]
            self._structures.add(argument)
            self._arrays |= set(structure.words.values())
            return structure
        if argument in source.arrays:
            self._arrays.add(argument)
            return source.arrays[argument]
        if argument.rpartition("_")[2].isdigit():
            raise ValueError(f"{argument} is not there")
        return argument

    def _check(self, span: Span) -> None:
        if min(span.count, span.rows) < 1 or (span.rows > 1 and span.step < span.count):
            raise ValueError("a size below 1, or rows that overlap")
        if span.place.space not in self._sizes:
            raise ValueError(f"{span.place.space} is not there")
        size = self._sizes[span.place.space]
        if span.place.at < 0 or span.end > size:
            raise ValueError(f"bytes {span.place.at} to {span.end} of {span.place.space}, which has {size}")

    def _read(self, span: Span) -> set[int]:
        """Return the calls whose results are read."""
        self._check(span)
        if span.place.space not in self._owner:
            return {FROM_INPUT} if span.place.space == "input" else set()
        owners = set(np.unique(self._bytes(span)).tolist())
        if owners & {NEVER, ROOM}:
            raise ValueError(f"{span.place.space} from byte {span.place.at} on holds nothing that was computed")
        return owners

    def _bytes(self, span: Span) -> NDArray[np.int16]:
        """Return who computed the bytes, [rows, count], to read or to write; the span was checked."""
        owner = self._owner[span.place.space][span.place.at :]
        return np.lib.stride_tricks.as_strided(
            owner, (span.rows, span.count), (span.step * owner.itemsize, owner.itemsize)
        )
