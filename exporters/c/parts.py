"""What is the same for all models in model.c: includes, the macros of a trace, kernels and their order."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from exporters.c.text import kernel

INCLUDES = """#include "model.h"

#include <stddef.h>
#include <string.h>
#ifdef __ARM_FEATURE_SIMD32
#include <arm_acle.h> /* products of pairs */
#endif

#include "weights.h"
"""
TRACE = r"""
#ifdef MODEL_TRACE /* the program that verifies this code defines these two functions */
void model_trace_values(const char *place, uint8_t *values, int32_t rank, const int32_t *sizes_and_axes);
void model_trace_filter(const char *layer, int32_t filter, const int8_t *integers, int32_t count, int32_t next,
                        int32_t bias, int32_t multiplier, int32_t shift, float step);
#define NAMED(text) .name = text,
#define TRACE_VALUES(place, values, rank, ...) \
    model_trace_values(place, values, rank, (const int32_t[]){__VA_ARGS__})
#define TRACE_FILTER(l, c, w) \
    model_trace_filter((l)->name, c, w, (l)->kernel_h * (l)->kernel_w * (l)->group_c, (l)->wide ? (l)->padded : 0, \
                       (l)->bias ? (l)->bias[c] : 0, (l)->multiplier ? (l)->multiplier[(c) * (l)->each] : 0, \
                       (l)->shift, (l)->steps ? (l)->steps[(c) * (l)->each] : 0.0f)
#else
#define NAMED(text)
#define TRACE_VALUES(place, values, rank, ...)
#define TRACE_FILTER(l, c, w)
#endif
"""
KERNELS = (  # in the order in which they are written
    "precision", "common", "on_grid", "quantize", "filters", "blocks", "conv", "round_sums", "round_sums_float",
    "conv_quantized", "conv_float", "depthwise", "add", "add_scaled", "multiply", "multiply_scaled", "pool", "max_pool",
    "window_sum", "average_pool", "average_scaled", "look_up", "take", "surround", "copy", "upsample", "dequantize",
    "load", "save", "exponential", "unary", "binary", "matrices", "softmax", "normalize", "mean", "take_floats",
    "pad_floats", "repeat_floats", "blend_floats", "pool_floats", "join_floats", "choose", "to_floats", "to_integers",
    "layer_of_floats", "embed",
)  # fmt: skip
NEEDS = {  # what kernels are made of
    **dict.fromkeys(("round_sums", "add", "multiply"), ("common",)),
    **dict.fromkeys(("round_sums_float", "add_scaled", "multiply_scaled"), ("precision", "on_grid")),
    "average_pool": ("common", "pool", "window_sum"), "average_scaled": ("precision", "on_grid", "pool", "window_sum"),
    "to_integers": ("quantize",),
}  # fmt: skip


def code_of(used: Collection[str], most: Mapping[str, int]) -> str:
    """Return the includes, macros and kernels of model.c.

    Args:
        used: kernels that are called.
        most: constants that some of them need, by name, written in front of `filters`.
    """
    needed = {*used, *(one for name in used for one in NEEDS.get(name, ()))}
    floats = {one for one in ("load", "save") for name in used if f"{one}(" in kernel(name)}
    needed |= {*floats, "precision"} if floats else set()
    includes = INCLUDES.replace("#include <stddef.h>", "#include <float.h>\n#include <stddef.h>")
    parts = [includes if "precision" in needed else INCLUDES, TRACE]
    for name in KERNELS:
        if name == "filters":
            parts += [f"\nenum {{ {key} = {value} }};\n" for key, value in most.items()]
        if name in needed:
            parts.append(f"\n{kernel(name)}")
    return "".join(parts)
