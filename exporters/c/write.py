"""An integer program as C99: model.h, model.c, weights.c and weights.h, an example, a Makefile and a CMakeLists.txt."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Any

import numpy as np

from exporters.c.float_layers import Embedding, FloatConv
from exporters.c.float_steps import FloatPart, FloatStep, FloatValue
from exporters.c.interface import header, quantize_input, run_declared
from exporters.c.memory import Plan
from exporters.c.parts import KERNELS, code_of
from exporters.c.program import (
    INPUT,
    MOST_FILTERS,
    AveragePool,
    Binary,
    Concat,
    Conv,
    Dequantize,
    Grid,
    MaxPool,
    Program,
    Step,
    Table,
    Take,
    Upsample,
    Value,
    Window,
)
from exporters.c.project import CMAKE, MAIN, MAKEFILE, UNQUANTIZED_MAIN
from exporters.c.text import array, commented, escaped, literal, structure


class Writer:
    """Writes one program.

    Args:
        program: with weights stored.
        plan: where its values lie.
        finalized_sha256: of the finalized model.
        version: of csqtool.
    """

    def __init__(self, program: Program, plan: Plan, finalized_sha256: str, version: str) -> None:
        self._program = program
        self._plan = plan
        self._sha256 = finalized_sha256
        self._version = version
        self._constants: list[str] = []
        self._weights: list[str] = []
        self._declared: list[str] = []
        self._used: set[str] = set()
        self._tables: dict[bytes, str] = {}
        self._runs = Counter(step.layer for step in program.steps if isinstance(step, Conv))

    def files(self) -> dict[str, bytes]:
        """Return the files by name; model.h comes last, and is what the others need."""
        source = self._program.input
        calls = [self._call(number, step) for number, step in enumerate(self._program.steps)]
        depthwise = [s.q[0].size for s in self._program.steps if isinstance(s, Conv) and s.channel_wise]
        most = {"MOST_TAPS": max(depthwise)} if depthwise else {}
        most |= {"MOST_FILTERS": MOST_FILTERS} if "conv" in self._used else {}
        self._used |= {"quantize"} if isinstance(source, Value) else set()
        what = "integer inference" if isinstance(source, Value) else "inference"
        head = f"/* Written by csqtool {self._version}: {what}, defined in docs/c-inference.md. */\n\n"
        parts = [
            head, code_of(self._used, most), "\n", *self._constants, "\n", quantize_input(source), run_declared(source),
            "" if any("arena" in call for call in calls) else "    (void)arena;\n", *calls, "}\n",
        ]  # fmt: skip
        weights = f'{head}#include "weights.h"\n\n' + "\n".join(self._weights)
        declared = (
            f"{head}#ifndef MODEL_WEIGHTS_H\n#define MODEL_WEIGHTS_H\n\n#include <stdint.h>\n\n"
            + "".join(self._declared) + "\n#endif\n"
        )  # fmt: skip
        files = {
            "weights.h": declared, "weights.c": weights, "model.c": "".join(parts),
            "main.c": head + (MAIN if isinstance(source, Value) else UNQUANTIZED_MAIN),
            "Makefile": MAKEFILE, "CMakeLists.txt": CMAKE,
            "model.h": header(self._program, self._plan, head, self._sha256),
        }  # fmt: skip
        return {name: text.encode() for name, text in files.items()}

    # -- calls ---------------------------------------------------------------------------------------------------

    def _call(self, number: int, step: Step) -> str:
        match step:
            case FloatConv():
                line = self._layer_of_floats(number, step)
            case Embedding():
                line = self._embed(number, step)
            case Conv():
                line = self._conv(number, step)
            case Binary():
                line = self._binary(number, step)
            case MaxPool() | AveragePool():
                line = self._pool(number, step)
            case Table():
                table = self._table(step.table)
                line = f"look_up({self._at(step.inputs[0])}, {self._to(step)}, {step.inputs[0].elements}, {table})"
                self._used.add("look_up")
            case Take():
                line = self._take(number, step)
            case Concat():
                line = self._concat(step)
            case Upsample():
                h, w = ([1, *step.inputs[0].shape[1:]] if len(step.inputs[0].shape) == 2 else step.inputs[0].shape[1:])[
                    -2:
                ]
                self._used.add("upsample")
                line = (
                    f"upsample({self._at(step.inputs[0])}, {self._to(step)}, {h}, {w}, {step.inputs[0].shape[0]}, "
                    f"{step.factors[0]}, {step.factors[1]})"
                )
            case Dequantize():
                value = step.inputs[0]
                self._used.add("dequantize")
                line = (
                    f"dequantize({self._at(value)}, output, {value.elements}, {value.grid.zero_point}, "
                    f"{literal(value.grid.scale)})"
                )
            case FloatStep():
                line = self._float(number, step)
            case _:
                raise AssertionError(step)
        comment = f"    /* {commented(step.place)} */\n" if step.place else ""
        return comment + "".join(f"    {one};\n" for one in line.split(";")) + self._traced(step)

    def _traced(self, step: Step) -> str:
        if isinstance(step, FloatConv | Embedding) and self._runs[step.layer] == 1:
            sizes = (*step.output.shape, 4)  # bytes of the floats that the layer returns
            numbers = ", ".join(map(str, (*sizes, *range(len(sizes)))))
            return f"    TRACE_VALUES({escaped(step.layer)}, {self._to(step)}, {len(sizes)}, {numbers});\n"
        value = step.placed
        if value is None:
            return ""
        numbers = ", ".join(map(str, (*value.stored, *value.order))) or "0"  # of a single number, nothing is read
        return f"    TRACE_VALUES({escaped(step.place)}, {self._to(step)}, {len(value.order)}, {numbers});\n"

    def _at(self, value: Value | FloatValue) -> str:
        if isinstance(value, FloatValue) and value.data is not None:
            return f"(const uint8_t *){self._floats(value.data)}"
        if isinstance(value, FloatPart) and value.offset:
            return f"arena + {self._plan.offsets[value.buffer] + value.offset}"
        if value.buffer == INPUT:
            return "input" if isinstance(value, Value) else "(const uint8_t *)input"
        return f"arena + {self._plan.offsets[value.buffer]}"

    def _to(self, step: Step) -> str:
        return "(uint8_t *)output" if step.output is None else self._at(step.output)

    def _conv(self, number: int, step: Conv) -> str:
        name, w = f"layer_{number}", step.window
        source = step.inputs[0]
        grid = step.output.grid if step.on_grid else Grid(np.float32(1), 0)
        fields = self._weights_of(number, step)
        # The zero point of the input is part of the bias.
        moved = step.bias - source.grid.zero_point * step.q.astype(np.int64).sum(axis=(1, 2, 3))
        self._declare("int32_t", f"model_bias_{number}", moved)
        fields["bias"] = f"model_bias_{number}"
        if step.steps is None:
            self._declare("int32_t", f"model_multiplier_{number}", [f.multiplier for f in step.factors])
            fields |= {"multiplier": f"model_multiplier_{number}", "shift": step.factors[0].shift}
        else:
            self._declare("float", f"model_steps_{number}", step.steps)
            fields["steps"] = f"model_steps_{number}"
        self._layer(number, step, fields, source.grid.zero_point, grid)
        room = f"arena + {self._plan.scratch[number]}"
        if not step.on_grid:
            self._used |= {"blocks", "conv", "conv_float"}
            positions = w.out_size[0] * w.out_size[1]
            distances = (positions, 1) if step.channels_first else (1, len(step.q))
            return f"conv_float(&{name}, {self._at(source)}, {self._to(step)}, {room}, {distances[0]}, {distances[1]})"
        if step.channel_wise:
            self._used |= {"depthwise", "round_sums" if step.steps is None else "round_sums_float"}
            return f"depthwise(&{name}, {self._at(source)}, {self._to(step)}, {room})"
        self._used |= {"blocks", "conv", "conv_quantized", "round_sums" if step.steps is None else "round_sums_float"}
        return f"conv(&{name}, {self._at(source)}, {self._to(step)}, {room})"

    def _weights_of(self, number: int, step: Conv) -> dict[str, Any]:
        """Declare a layer's weights and return the field that names them."""
        self._declare("uint8_t", f"model_weights_{number}", step.stored.rows.reshape(-1))
        return {"weights": f"model_weights_{number}"}

    def _layer(self, number: int, step: Conv, fields: dict[str, Any], in_zero: int, grid: Grid) -> None:
        """Define the constants of a layer."""
        stored, w = step.stored, step.window
        channels = w.in_size[0] * w.in_size[1]
        fields |= _window_fields(w) | {
            "in_c": step.inputs[0].elements // channels, "out_c": len(step.q), "group_c": step.q.shape[3],
            "filters_a_group": len(step.q) // step.groups, "each": int(step.of_each),
            "in_zero": in_zero, "out_zero": grid.zero_point, "low": grid.low, "high": grid.high,
            "row_bytes": stored.rows.shape[1], "base": stored.base, "step": stored.step, "bits": stored.bits,
            "encoding": stored.encoding, "wide": int(stored.is_wide),
            "padded": step.padded, "block": step.block,
        }  # fmt: skip
        self._constants.append(structure("layer_t", f"layer_{number}", fields, f"NAMED({escaped(step.layer)})"))
        self._used |= {"filters"}

    def _layer_of_floats(self, number: int, step: FloatConv) -> str:
        fields = self._weights_of(number, step)
        self._declare("float", f"model_steps_{number}", step.steps)
        self._layer(number, step, fields | {"steps": f"model_steps_{number}"}, 0, Grid(np.float32(1), 0))
        self._constants.append(array("static const int32_t", f"distances_{number}", step.distances))
        self._used |= {"blocks", "layer_of_floats"}
        return (
            f"layer_of_floats(&layer_{number}, {self._at(step.inputs[0])}, {self._to(step)}, "
            f"arena + {self._plan.scratch[number]}, {self._floats(step.offsets)}, distances_{number})"
        )

    def _embed(self, number: int, step: Embedding) -> str:
        self._layer(number, step, self._weights_of(number, step), 0, Grid(np.float32(1), 0))
        self._used.add("embed")
        return (
            f"embed(&layer_{number}, {self._at(step.inputs[0])}, {self._to(step)}, "
            f"arena + {self._plan.scratch[number]}, {step.inputs[0].elements}, {literal(step.scale)})"
        )

    def _binary(self, number: int, step: Binary) -> str:
        a, b = step.inputs
        assert step.output is not None
        grid = step.output.grid
        fixed = [] if step.floats is not None else [*step.multipliers, step.shift]
        numbers = [a.grid.zero_point, b.grid.zero_point, *fixed, grid.zero_point, grid.low, grid.high]
        self._constants.append(array("static const int32_t", f"numbers_{number}", numbers))
        kind = ("multiply" if step.multiplies else "add") + ("" if step.floats is None else "_scaled")
        more = "" if step.floats is None else f", {self._floats(step.floats)}"
        self._used.add(kind)
        return (
            f"{kind}({self._at(a)}, {self._at(b)}, {self._to(step)}, {a.elements}, {b.elements}, "
            f"numbers_{number}{more})"
        )

    def _pool(self, number: int, step: MaxPool | AveragePool) -> str:
        source = step.inputs[0]
        window = self._pool_constants(number, step.window, source.shape[0])
        if isinstance(step, MaxPool):
            self._used.add("max_pool")
            return f"max_pool({window}, {self._at(source)}, {self._to(step)})"
        assert step.output is not None
        grid = step.output.grid
        numbers = [source.grid.zero_point, grid.zero_point, grid.low, grid.high]
        self._constants.append(array("static const int32_t", f"grid_{number}", numbers))
        kernel, factors = "average_scaled", "" if step.floats is None else self._floats(step.floats)
        if step.floats is None:
            kernel, factors = "average_pool", f"multiplier_{number}, shift_{number}"
            for kind, what, values in (
                ("int32_t", "multiplier", [f.multiplier for f in step.factors]),
                ("uint8_t", "shift", [f.shift for f in step.factors]),
            ):
                self._constants.append(array(f"static const {kind}", f"{what}_{number}", values))
        self._used.add(kernel)
        count = prod(step.window.kernel) if step.counts_padding else 0
        return f"{kernel}({window}, {self._at(source)}, {self._to(step)}, {factors}, {count}, grid_{number})"

    def _pool_constants(self, number: int, window: Window, channels: int) -> str:
        """Define the constants of a pooling and return what a kernel takes."""
        fields = {**_window_fields(window), "channels": channels}
        del fields["spread_h"], fields["spread_w"]
        self._constants.append(structure("pool_t", f"pool_{number}", fields))
        self._used.add("pool")
        return f"&pool_{number}"

    def _take(self, number: int, step: Take) -> str:
        value = step.inputs[0]
        assert step.output is not None
        stored = value.stored
        distances = [prod(stored[i + 1 :]) for i in range(len(stored))]
        columns = zip(
            step.output.stored, step.starts, step.strides, [stored[a] for a in step.axes],
            [distances[a] for a in step.axes], strict=True,
        )  # fmt: skip
        rows = [(1, 0, 1, 1, 0)] * (4 - len(step.axes)) + list(columns)  # axes of size 1 in front
        self._constants.append(array("static const int32_t", f"axes_{number}", [n for row in rows for n in row]))
        self._used.add("take")
        return f"take({self._at(value)}, {self._to(step)}, axes_{number}, {value.grid.zero_point})"

    def _concat(self, step: Concat) -> str:
        assert step.output is not None
        self._used.add("copy")
        stored = step.output.stored
        outer, inner = prod(stored[: step.axis]), prod(stored[step.axis + 1 :])
        at, calls = 0, []
        for value, table in zip(step.inputs, step.tables, strict=True):
            run = value.stored[step.axis] * inner
            lookup = "NULL" if table is None else self._table(table)
            calls.append(
                f"copy({self._at(value)}, {self._to(step)} + {at}, {outer}, {run}, "
                f"{stored[step.axis] * inner}, {lookup})"
            )
            at += run
        return ";".join(calls)

    def _float(self, number: int, step: FloatStep) -> str:
        if step.kernel in KERNELS:
            self._used.add(step.kernel)
        if step.kernel in ("unary", "softmax"):
            self._used.add("exponential")
        arguments = []
        for argument in step.arguments:
            match argument:
                case Value() | FloatValue():
                    arguments.append(self._at(argument))
                case Window():
                    channels = step.inputs[0].shape[0]
                    arguments.append(self._pool_constants(number, argument, channels))
                case np.ndarray() if argument.dtype == np.float32:
                    arguments.append(self._floats(argument))
                case np.ndarray():
                    self._constants.append(array("static const int32_t", f"axes_{number}", argument))
                    arguments.append(f"axes_{number}")
                case str():
                    arguments.append(argument)
                case _:
                    arguments.append(literal(argument))
        return f"{step.kernel}({', '.join(arguments)})"

    # -- constants -----------------------------------------------------------------------------------------------

    def _table(self, values: Any) -> str:
        key = values.tobytes()
        if key not in self._tables:
            self._tables[key] = f"model_table_{len(self._tables)}"
            self._declare("uint8_t", self._tables[key], values)
        return self._tables[key]

    def _floats(self, values: Any) -> str:
        """Return the name of an array of floats; equal ones are written once."""
        key = b"floats" + values.tobytes()
        if key not in self._tables:
            self._tables[key] = f"model_floats_{len(self._tables)}"
            self._declare("float", self._tables[key], values.reshape(-1))
        return self._tables[key]

    def _declare(self, kind: str, name: str, values: Any) -> None:
        self._weights.append(array(f"const {kind}", name, values))
        self._declared.append(f"extern const {kind} {name}[{len(values)}];\n")


def _window_fields(w: Window) -> dict[str, int]:
    pairs = {
        "in": w.in_size,
        "out": w.out_size,
        "kernel": w.kernel,
        "stride": w.stride,
        "pad": w.pad,
        "dilation": w.dilation,
        "spread": w.spread,
    }
    return {f"{what}_{axis}": pair[i] for what, pair in pairs.items() for i, axis in enumerate("hw")}
