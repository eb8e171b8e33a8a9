"""What a caller sees of an inference: model.h, and the function that quantizes an input."""

from __future__ import annotations

from math import prod

from exporters.c.float_steps import FloatValue, Numbers
from exporters.c.memory import Plan
from exporters.c.program import Program, Value
from exporters.c.text import literal


def header(program: Program, plan: Plan, head: str, finalized_sha256: str) -> str:
    """Return model.h.

    Args:
        program: what is written.
        plan: where its values lie.
        head: the file's first lines.
        finalized_sha256: of the finalized model.
    """
    value, out = program.input, list(program.output_shape)
    return (
        f"{head}#ifndef MODEL_H\n#define MODEL_H\n\n#include <stdint.h>\n\n"
        f"#define MODEL_INPUT_SIZE {value.elements} /* {list(value.shape)} in PyTorch */\n{_input_type(value)}"
        f"#define MODEL_OUTPUT_SIZE {prod(out)} /* {out} in PyTorch */\n"
        f"#define MODEL_ARENA_SIZE {max(1, plan.size)} /* bytes; {plan.least} are in use at a time */\n"
        f'#define MODEL_FINALIZED_SHA256 "{finalized_sha256}"\n\n{_functions(value)}\n\n#endif\n'
    )


def _functions(value: Value | FloatValue) -> str:
    rest = (
        "The arena takes what is computed on\n"
        "   the way; nothing else is written, so several arenas can be in use at the same time. */\n"
    )
    if isinstance(value, FloatValue):
        return (
            f"/* Computes the output from an input, both in PyTorch's order. {rest}"
            f"void model_run(const {_type(value)} *input, float *output, uint8_t *arena);"
        )
    grid = value.grid
    return (
        f"/* Quantizes an input {list(value.shape)}, in PyTorch's order, to integers of\n"
        f"   (integer - {grid.zero_point}) * {float(grid.scale):.9g}, in the order that model_run reads: "
        f"{_order(value)}. */\n"
        "void model_quantize_input(const float *values, uint8_t *input);\n\n"
        f"/* Computes the output, in PyTorch's order, from a quantized input. {rest}"
        "void model_run(const uint8_t *input, float *output, uint8_t *arena);"
    )


def _input_type(value: Value | FloatValue) -> str:
    what = " /* numbers of rows, such as tokens */" if isinstance(value, Numbers) else ""
    return f"#define MODEL_INPUT_TYPE {_type(value)}{what}\n" if isinstance(value, FloatValue) else ""


def _type(value: Value | FloatValue) -> str:
    if isinstance(value, Value):
        return "uint8_t"
    return "int32_t" if isinstance(value, Numbers) else "float"


def run_declared(value: Value | FloatValue) -> str:
    """Return the first line of the function that computes the output."""
    return f"void model_run(const {_type(value)} *input, float *output, uint8_t *arena) {{\n"


def quantize_input(value: Value | FloatValue) -> str:
    """Return the function that quantizes an input; nothing where the input is not quantized."""
    if isinstance(value, FloatValue):
        return ""
    grid = value.grid
    missing = 4 - len(value.stored)
    sizes = [1] * missing + list(value.stored)
    strides = [0] * missing + [prod(value.shape[axis + 1 :]) for axis in value.order]  # in PyTorch's order
    arguments = f"{literal(grid.scale)}, {grid.zero_point}, {grid.low}, {grid.high}"
    loops = "".join(
        f"    {'    ' * depth}for ({v} = 0; {v} < {n}; {v}++)\n"
        for depth, (v, n) in enumerate(zip("abcd", sizes, strict=True))
    )
    index = " + ".join(f"{v} * {s}" for v, s in zip("abcd", strides, strict=True))
    return (
        "void model_quantize_input(const float *values, uint8_t *input) {\n    int32_t a, b, c, d;\n"
        f"{loops}{' ' * 20}*input++ = quantize(values[{index}], {arguments});\n}}\n\n"
    )


def _order(value: Value) -> str:
    return "[" + ", ".join(f"axis {axis}" for axis in value.order) + "]"
