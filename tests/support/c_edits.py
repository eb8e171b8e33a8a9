"""Ways to break an inference in C: each a file, a change of its text, and the level at which verify must fail."""

from __future__ import annotations

import re
from collections.abc import Callable

Edit = Callable[[str], str]
RUN = r"(void model_run\([^{]*{)"  # where the code of a run begins


def changed(pattern: str, to: str | Callable[[re.Match[str]], str], count: int = 1) -> Edit:
    """Replace what a pattern finds, which must be there."""

    def edit(text: str) -> str:
        found, times = re.subn(pattern, to, text, count=count)
        assert times, pattern
        assert found != text
        return found

    return edit


def first_number(array: str, change: Callable[[int], int]) -> Edit:
    return changed(rf"({array}\[\d+\] = {{\n\s+)(-?\d+)", lambda m: m[1] + str(change(int(m[2]))))


def exchanged(one: str, other: str) -> Edit:
    """Exchange two names everywhere."""
    names = {one: other, other: one}
    return changed(rf"\b({one}|{other})\b", lambda m: names[m[1]], 0)


def in_layer(number: int, field: str, change: Callable[[int], int]) -> Edit:
    """Change a number among the constants of a layer."""
    return changed(rf"(layer_{number} = {{[^}}]*?\.{field} = )(-?\d+)", lambda m: m[1] + str(change(int(m[2]))))


def number_of(array: str, index: int, change: Callable[[int], int]) -> Edit:
    """Change a number of an array of one line."""
    pattern = rf"({array}\[\d+\] = {{\s+(?:-?\d+, ){{{index}}})(-?\d+)"
    return changed(pattern, lambda m: m[1] + str(change(int(m[2]))))


def two_values_share_their_place(text: str) -> str:
    """Let the first layer of the residual block write over its input, which the addition needs later."""
    source, output = re.search(r"conv\(&layer_1, arena \+ (\d+), arena \+ (\d+),", text).groups()
    start, end = text.index("conv(&layer_1,"), text.index("    add(")
    return text[:start] + changed(rf"arena \+ {output}\b", f"arena + {source}", 0)(text[start:end]) + text[end:]


def a_quantizer_is_not_handed_out(text: str) -> str:
    return changed(r'    TRACE_VALUES\("[^\n]*\n', "")(text)


MODEL, WEIGHTS, HEADER = "model.c", "weights.c", "model.h"
MUTATIONS: dict[str, tuple[str, Edit, str]] = {
    "a weight": (WEIGHTS, first_number("model_weights_1", lambda v: v ^ 1), "weights"),
    "a bias": (WEIGHTS, first_number("model_bias_0", lambda v: v + 1), "weights"),
    "a multiplier": (WEIGHTS, first_number("model_multiplier_2", lambda v: v + 1), "weights"),
    "a shift": (MODEL, changed(r"\.shift = (\d+)", lambda m: f".shift = {int(m[1]) + 1}"), "weights"),
    "rounding down": (
        MODEL,
        changed(r"product \+ below_half \+ is_odd", "product + 0 * (below_half + is_odd)"),
        "layers",
    ),
    "padding with ones": (MODEL, changed(r"memset\(to, l->in_zero,", "memset(to, l->in_zero + 1,"), "layers"),
    "channels in another order": (
        MODEL,
        changed(r"out\[i\] = \(uint8_t\)whole", "out[count - 1 - i] = (uint8_t)whole"),
        "layers",
    ),
    "a bound of a quantizer": (MODEL, changed(r"\.low = 0,\s+\.high = 255", ".low = 3, .high = 255"), "layers"),
    "a stride": (MODEL, changed(r"\.pad_h = 1,\s+\.pad_w = 1", ".pad_h = 0, .pad_w = 2"), "layers"),
    "a factor of the addition": (MODEL, first_number("numbers_3", lambda v: v + 1), "layers"),
    "an arena overlap": (MODEL, two_values_share_their_place, "layers"),
    "an arena that is too small": (
        HEADER,
        changed(r"ARENA_SIZE (\d+)", lambda m: f"ARENA_SIZE {int(m[1]) // 2}"),
        "structure",
    ),
    "a quantizer left out": (MODEL, a_quantizer_is_not_handed_out, "structure"),
    "a layer left out": (MODEL, changed(r"conv\(&layer_1,", "if (!arena) conv(&layer_1,"), "structure"),
    "scores in another order": (
        MODEL,
        changed(
            r"(conv_float\(&\w+, [^,]*, )\(uint8_t \*\)output, (.*), 1, (\d+)\)",
            r"\1(uint8_t *)(output + \3 - 1), \2, -1, -\3)",
        ),
        "outputs",
    ),
    "the size of the input": (HEADER, changed(r"INPUT_SIZE 64", "INPUT_SIZE 65"), "structure"),
    "a step of the output": (WEIGHTS, changed(r"(model_steps_\d+\[\d+\] = {\n\s+0x1\.)(\w)", r"\g<1>8\2"), "weights"),
    "a warning": (MODEL, changed(RUN, r"\1\n    int unused;"), "integrity"),
    "another model": (HEADER, changed(r'SHA256 "\w', 'SHA256 "x'), "integrity"),
    "a shift that C does not define": (
        MODEL,
        changed(RUN, r"\1\n    arena[0] = (uint8_t)(1 << (32 + arena[0]));"),
        "structure",
    ),
}
# The rest of the table; run before a release.
MORE: dict[str, tuple[str, Edit, str]] = {
    "biases of two layers exchanged": (MODEL, exchanged("model_bias_1", "model_bias_2"), "weights"),
    "multipliers of two layers exchanged": (MODEL, exchanged("model_multiplier_1", "model_multiplier_2"), "weights"),
    "weights of two layers exchanged": (MODEL, exchanged("model_weights_0", "model_weights_4"), "weights"),
    "the lowest integer of a layer": (MODEL, in_layer(1, "base", lambda v: v - 1), "weights"),
    "the step between integers": (MODEL, in_layer(1, "step", lambda v: -v), "weights"),
    "the bits of an integer": (MODEL, in_layer(1, "bits", lambda v: v - 1), "weights"),
    "another encoding": (MODEL, changed(r"\.encoding = FIELDS", ".encoding = TRITS"), "weights"),
    "the bytes of a filter": (MODEL, in_layer(1, "row_bytes", lambda v: v - 1), "weights"),
    "one multiplier for all channels": (MODEL, in_layer(1, "each", lambda v: 0), "weights"),
    "the last weight alone": (
        WEIGHTS,
        changed(r"(model_weights_6\[\d+\] = {[^}]*?)(\d+)(\s*})", lambda m: f"{m[1]}{int(m[2]) ^ 16}{m[3]}"),
        "weights",
    ),
    "a bias in the last layer": (WEIGHTS, first_number("model_bias_8", lambda v: -v), "weights"),
    "an input's zero point": (MODEL, in_layer(0, "in_zero", lambda v: v ^ 1), "layers"),
    "an output's zero point": (MODEL, in_layer(2, "out_zero", lambda v: v ^ 1), "layers"),
    "an upper bound": (MODEL, in_layer(4, "high", lambda v: v // 2), "layers"),
    "a dilation": (MODEL, in_layer(6, "dilation_h", lambda v: v + 1), "layers"),
    "groups taken for one": (MODEL, changed(r"x \+ c / l->filters_a_group \* l->group_c", "x"), "layers"),
    "a kernel upside down": (
        MODEL,
        changed(r"y0 \+ ky \* l->dilation_h", "y0 + (l->kernel_h - 1 - ky) * l->dilation_h"),
        "layers",
    ),
    "no upper saturation": (
        MODEL,
        changed(
            r"    if \(steps > high\) steps = high;\n    return \(int32_t\)steps",
            "    (void)high;\n    return (int32_t)steps",
        ),
        "layers",
    ),
    "no ReLU": (MODEL, changed(r"    if \(steps < low\) steps = low;\n", "    (void)low;\n"), "layers"),
    "bias left out": (MODEL, changed(r"memcpy\(sums, l->bias \+ c,", "memset(sums, 0 * c,"), "layers"),
    "bias twice": (MODEL, changed(r"sums\[0\] = s0;", "sums[0] += s0;", 0), "layers"),
    "sums of sixteen bits": (MODEL, changed(r"sums\[0\] = s0;", "sums[0] = (int16_t)s0;", 0), "layers"),
    "products of 32 bits": (
        MODEL,
        changed(r"\(int64_t\)sums\[i\] \* multiplier\[i\]", "sums[i] * multiplier[i]"),
        "structure",
    ),
    "a tap left out": (
        MODEL,
        changed(
            r"for \(ky = 0; ky < l->kernel_h; ky\+\+\)\n(\s+for \(kx)", r"for (ky = 1; ky < l->kernel_h; ky++)\n\1"
        ),
        "layers",
    ),
    "the other branch of the addition": (
        MODEL,
        changed(r"add\(arena \+ 2048, arena \+ 0,", "add(arena + 2048, arena + 1024,"),
        "layers",
    ),
    "the addition subtracts": (MODEL, changed(r"first \+ second", "first - second"), "layers"),
    "a zero point of the addition": (MODEL, number_of("numbers_3", 1, lambda v: v + 1), "layers"),
    "the shift of the addition": (MODEL, number_of("numbers_3", 4, lambda v: v - 1), "layers"),
    "the average's divisor": (MODEL, changed(r"multiplier_7, shift_7, 16,", "multiplier_7, shift_7, 15,"), "layers"),
    "a pool without its last row": (MODEL, changed(r"(pool_7 = {[^}]*\.kernel_h = )4", r"\g<1>3"), "layers"),
    "a layer run twice": (MODEL, changed(r"(    conv\(&layer_6[^\n]*\n)", r"\1\1"), "structure"),
    "the input's scale": (MODEL, changed(r"(\], 0x1\.\w{5})(\w)", lambda m: m[1] + f"{int(m[2], 16) ^ 2:x}"), "layers"),
    "the input's order": (MODEL, changed(r"b \* 8 \+ c \* 1", "b * 1 + c * 8"), "layers"),
    "the input rounded down": (MODEL, changed(r"rest > 0\.5f", "rest > 2.0f"), "layers"),
    "NaN taken for something": (
        MODEL,
        changed(r"if \(!\(steps > -1024\.0f\)\) steps = -1024\.0f", "if (!(steps > -1024.0f)) steps = 3.0f"),
        "layers",
    ),
    "right while it is traced alone": (
        MODEL,
        changed(
            r"(\n    conv_float\(&layer_8[^\n]*\n)", r"\1#ifndef MODEL_TRACE\n    output[0] = -output[0];\n#endif\n"
        ),
        "outputs",
    ),
    "scores by the number of the call": (
        MODEL,
        changed(
            r"(\n    conv_float\(&layer_8[^\n]*\n)",
            r"\1    { static int calls; if (++calls > 20) output[0] = 9.0f; }\n",
        ),
        "outputs",
    ),
    "a write behind the arena": (MODEL, changed(RUN, r"\1\n    arena[MODEL_ARENA_SIZE] = 1;"), "structure"),
    "a read before the input": (MODEL, changed(RUN, r"\1\n    arena[0] = input[-1];"), "structure"),
    "a read behind the weights": (MODEL, in_layer(8, "row_bytes", lambda v: v + 1), "structure"),
    "a division by zero": (
        MODEL,
        changed(RUN, r"\1\n    arena[0] = (uint8_t)(1 / (MODEL_INPUT_SIZE - 64));"),
        "integrity",
    ),
    "no end": (MODEL, changed(RUN, r"\1\n    while (input) arena[0]++;"), "structure"),
    "an exit": (
        MODEL,
        lambda text: text.replace("#include <string.h>", "#include <string.h>\n#include <stdlib.h>").replace(
            "    conv(&layer_0,", "    if (input[0] < 255) exit(0);\n    conv(&layer_0,"
        ),
        "structure",
    ),
    "output left as it was": (
        MODEL,
        changed(r"\n    conv_float\(&layer_8", "\n    if (input[0] > 254) conv_float(&layer_8"),
        "structure",
    ),
    "a name of a quantizer": (MODEL, changed(r'TRACE_VALUES\("pool.output"', 'TRACE_VALUES("pool.input"'), "structure"),
    "a name of a layer": (MODEL, changed(r'NAMED\("mix.0.weight"\)', 'NAMED("mix.1.weight")'), "structure"),
    "a traced copy": (
        MODEL,
        changed(r'TRACE_VALUES\("pool.output", arena \+ 160', 'TRACE_VALUES("pool.output", arena + 161'),
        "layers",
    ),
}
# Of an inference that rounds in float32.
LAST_DIGIT = r"(0x1\.\w{5})(\w)"
IN_FLOAT: dict[str, tuple[str, Edit, str]] = {
    "the last bit of a factor in float": (
        WEIGHTS,
        changed(rf"(model_steps_2\[\d+\] = {{\n\s+){LAST_DIGIT}", lambda m: f"{m[1]}{m[2]}{int(m[3], 16) ^ 2:x}"),
        "weights",
    ),
    "factors of two layers exchanged": (MODEL, exchanged("model_steps_1", "model_steps_2"), "weights"),
    "one factor for all channels": (MODEL, in_layer(1, "each", lambda v: 0), "weights"),
    "a factor of the addition in float": (
        WEIGHTS, changed(r"(model_floats_0\[2\] = {\n\s+0x1\.)(\w)", r"\g<1>8\2"), "layers",
    ),
    "a factor of the average in float": (
        WEIGHTS, changed(r"(model_floats_1\[16\] = {[^}]*0x1\.)(\w)(\w*p[-+]\d+f\s*})", r"\g<1>8\2\3"), "layers",
    ),
    "the number that rounds": (MODEL, changed(r"12582912\.0f", "12582913.0f"), "layers"),
    "a number that rounds to even halves": (MODEL, changed(r"12582912\.0f", "6291456.0f"), "layers"),
    "the bits of the number that rounds": (MODEL, changed("0x4b400000", "0x4b400001"), "layers"),
    "half a step less": (MODEL, changed(r"steps \+ 12582912\.0f", "(steps - 0.5f) + 12582912.0f"), "layers"),
    "an output's zero point in float": (MODEL, in_layer(2, "out_zero", lambda v: v ^ 1), "layers"),
    "a zero point of the addition in float": (MODEL, number_of("numbers_3", 1, lambda v: v + 1), "layers"),
    "no upper bound in float": (
        MODEL, changed(r"if \(bits > none \+ high\) bits = none \+ high;", "(void)high;"), "layers",
    ),
    "factors taken for others": (MODEL, changed(r"factor\[i\], zero", "factor[count - 1 - i], zero"), "layers"),
}  # fmt: skip
