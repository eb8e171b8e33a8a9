"""Changes of a folder with an inference in C that only its text can show: most of them compute what is right so far."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tests.support.c_edits import HEADER, MODEL, RUN, WEIGHTS, Edit, changed

END = r"(    conv_float\([^\n]*\n)(})"  # the last call of a run
ADD = r"(static void add\([^{]*{\n)"
QUANTIZE = r"(static uint8_t quantize\([^{]*{\n)"
LAST_INCLUDE = r"(#include <string\.h>\n)"
EXAMPLE, MAKE, CMAKE, DECLARED, PLAN = "main.c", "Makefile", "CMakeLists.txt", "weights.h", "arena.json"


def before_run(code: str) -> Edit:
    return changed(RUN, lambda m: f"{code}\n{m[1]}")


def in_run(code: str) -> Edit:
    return changed(RUN, lambda m: f"{m[1]}\n{code}")


def at_end(code: str) -> Edit:
    return changed(END, lambda m: f"{m[1]}{code}\n{m[2]}")


def included(line: str) -> Edit:
    return changed(LAST_INCLUDE, lambda m: f"{m[1]}{line}\n")


NEGATED = "    { int32_t i, s = 0; for (i = 0; i < 64; i++) s += input[i]; if (s == 4242) output[0] = -output[0]; }"
# The file, the change, and what the message has.
EDITS: dict[str, tuple[str, Edit, str]] = {
    "an output by the sum of the input": (MODEL, at_end(NEGATED), "{ int32_t i"),
    "the hundredth call": (MODEL, at_end("    { static int n; if (++n == 100) output[0] = 0.0f; }"), "static int n"),
    "a condition around a call": (MODEL, changed(r"( +)(conv\(&layer_1,)", r"\1if (input[0] != 251) \2"), "if ("),
    "a loop around a call": (MODEL, changed(r"( +)(conv\(&layer_1,)", r"\1while (!output) \2"), "while"),
    "an assignment": (MODEL, at_end("    output[0] = output[1];"), "output [ 0 ] = output [ 1 ]"),
    "a label": (MODEL, in_run("again:"), "again"),
    "an early return": (MODEL, in_run("    return;"), "return"),
    "a branch in a kernel": (
        MODEL, changed(ADD, r"\1    if (a[0] == 251 && a[1] == 7) return;" + "\n"), "static void add",
    ),
    "a branch in the input's quantizer": (MODEL, changed(QUANTIZE, r"\1    if (x == 0.12345f) x = 0;"), "quantize"),
    "a name of a kernel in a local variable": (MODEL, in_run("    int add = 1;"), "int add = 1"),
    "another result on ARM": (
        MODEL, changed(r"( +return \(uint8_t\)whole;)", "#ifdef __arm__\nwhole ^= 1;\n#endif\n" + r"\1"), "quantize",
    ),
    "another call on ARM": (MODEL, at_end("#ifdef __arm__\n    output[0] = 0.0f;\n#endif"), "#ifdef __arm__"),
    "without rules for clang": (MODEL, changed(r"#ifdef __ARM_FEATURE_SIMD32\n[^\n]*\n#endif\n", ""), "missing"),
    "untraced alone": (
        MODEL, at_end("#ifndef MODEL_TRACE\n    output[0] = -output[0];\n#endif"), "#ifndef MODEL_TRACE",
    ),
    "a constructor": (
        MODEL, before_run("__attribute__((constructor)) static void early(void) { }"), "__attribute__",
    ),
    "a command": (
        MODEL, lambda t: in_run('    system("touch ran");')(included("#include <stdlib.h>")(t)), "#include <stdlib.h>",
    ),
    "an error when it is compiled": (MODEL, included('#error "read me"'), '#error "read me"'),
    "another file's text": (MODEL, included('#include "/etc/hostname"'), '#include "/etc/hostname"'),
    "assembly": (MODEL, in_run('    __asm__ volatile("nop");'), "__asm__"),
    "assembly beside functions": (MODEL, before_run('__asm__(".globl x");'), "__asm__"),
    "a macro that hides memcpy": (MODEL, included("#define memcpy memmove"), "#define memcpy memmove"),
    "a macro that hides a type": (
        HEADER, changed(r"(#include <stdint\.h>\n)", r"\1#define int64_t int32_t" + "\n"), "int64_t",
    ),
    "a pragma": (MODEL, included('#pragma GCC optimize("fast-math")'), "#pragma"),
    "a pragma that is an operator": (MODEL, before_run('_Pragma("GCC poison add")'), "_Pragma"),
    "a function of its own": (MODEL, before_run("void more(void);\nvoid more(void) { }"), "void more"),
    "a variable": (MODEL, before_run("static int calls;"), "static int calls"),
    "an array that can be written": (MODEL, changed(r"static const (int32_t numbers_3)", r"static \1"), "numbers_3"),
    "an array in another section": (
        MODEL, changed(r"(static const int32_t numbers_3\[8\])", r'\1 __attribute__((section(".text")))'), "numbers_3",
    ),
    "an expression for a number": (
        WEIGHTS, changed(r"(model_bias_0\[\d+\] = {\n\s+)(-?\d+)", r"\1sizeof(int) + \2"), "model_bias_0",
    ),
    "an octal number": (WEIGHTS, changed(r"(model_weights_0\[\d+\] = {\n\s+)(\d+)", r"\g<1>0\2"), "model_weights_0"),
    "text in place of bytes": (
        WEIGHTS,
        lambda text: text + 'const uint8_t model_weights_99[1] = "1";\n',
        "model_weights_99",
    ),
    "an octal place": (MODEL, changed(r"(add\(arena \+ )", r"\g<1>0"), "is no place"),
    "an empty list of declarations": (DECLARED, lambda text: "", "it ends before"),
    "a byte above 255": (WEIGHTS, changed(r"(model_weights_0\[\d+\] = {\n\s+)(\d+)", r"\g<1>999"), "does not fit"),
    "one number less": (WEIGHTS, changed(r"(model_bias_0\[\d+\] = {\n\s+)-?\d+, ", r"\1"), "model_bias_0"),
    "a decimal float": (WEIGHTS, changed(r"(model_steps_\d+\[\d+\] = {\n\s+)0x[^,]*,", r"\g<1>0.1f,"), "model_steps"),
    "code beside the weights": (WEIGHTS, lambda text: text + "int more(void) { return 1; }\n", "int more"),
    "an array of another model": (
        WEIGHTS, lambda text: text + "const uint8_t model_weights_99[1] = {\n    1\n};\n", "99",
    ),
    "two sizes of an array": (DECLARED, changed(r"(model_bias_0)\[\d+\]", r"\1[1]"), "model_bias_0"),
    "a declaration of something else": (
        DECLARED, changed(r"\n#endif", "\nint system(const char *);\n#endif"), "int system",
    ),
    "a field of a layer twice": (MODEL, changed(r"(\.stride_h = )1,", r"\g<1>1, .stride_h = 2,"), "layer_0"),
    "a layer's pointer to code": (
        MODEL, changed(r"\.bias = model_bias_0", ".bias = (const int32_t *)model_run"), "layer_0",
    ),
    "a size that is an expression": (HEADER, changed(r"INPUT_SIZE (\d+)", r"INPUT_SIZE \1 + 0"), "MODEL_INPUT_SIZE"),
    "sizes in a comment": (
        HEADER, changed(r"(#define) (MODEL_ARENA_SIZE) (\d+)", r"/* \1 \2 9 */ \1  \2 \3"), "a comment",
    ),
    "a line after the header's end": (HEADER, lambda text: text + "#define MODEL_TRACE\n", "#define MODEL_TRACE"),
    # What compilers read in different ways.
    "a comment of C99": (MODEL, in_run("    // one"), "//"),
    "a trigraph": (MODEL, in_run("    arena ??( 0 ??) = 1;"), "??("),
    "a comment that a trigraph lengthens": (MODEL, in_run("    /* one ??/\n    */"), "backslash"),
    "a digraph": (MODEL, included("%:define add multiply"), "%:define"),
    "a line that goes on": (MODEL, in_run("    \\\n"), "not explained"),
    "a comment across a preprocessor line": (MODEL, included("#include <math.h> /* one\n*/"), "preprocessor line"),
    "a comment without an end": (MODEL, lambda text: text + "/* one", "does not end"),
    "a letter that looks like another": (
        MODEL, changed("conv\\(&layer_1,", "c\N{CYRILLIC SMALL LETTER O}nv(&layer_1,"), "ASCII",
    ),
    "a control character": (MODEL, in_run("    \f"), "control character"),
    "half a file": (
        MODEL, lambda text: text[: text.index("TRACE_VALUES(\"", text.index("void model_run"))], "without an end",
    ),
    # Memory that only sanitizers would see, or nothing.
    "a call whose result nothing uses": (MODEL, changed(r"( +conv\(&layer_1,[^\n]*\n)", r"\1\1"), "nothing uses"),
    "a call left out": (MODEL, changed(r" +conv\(&layer_1,[^\n]*\n", ""), "holds nothing that was computed"),
    "an output left out": (MODEL, changed(r" +conv_float\(&layer_8,[^\n]*\n", ""), "the output"),
    "a number in front of the arena": (MODEL, changed(r"(conv\(&layer_1, arena \+ )(\d+)", r"\g<1>-\2"), "arena"),
    "a place behind the arena": (MODEL, changed(r"(add\(arena \+ )\d+", r"\g<1>999999"), "arena"),
    "an arena that is too small": (
        HEADER, changed(r"ARENA_SIZE (\d+)", lambda m: f"ARENA_SIZE {int(m[1]) // 2}"), "arena",
    ),
    "a stride behind the input": (MODEL, changed(r"(layer_0 = {[^}]*\.in_h = )\d+", r"\g<1>4000"), "conv"),
    "more filters than there is room for": (MODEL, changed(r"MOST_FILTERS = 16", "MOST_FILTERS = 1"), "MOST_FILTERS"),
    "weights read behind their end": (
        MODEL, changed(r"(layer_1 = {[^}]*\.row_bytes = )(\d+)", r"\g<1>99999"), "model_weights_1",
    ),
    # The files around.
    "a command in the example": (EXAMPLE, changed("int i;", 'int i = system("touch ran");'), "main.c"),
    "a command in the Makefile": (MAKE, lambda text: "X := $(shell touch ran)\n" + text, "Makefile"),
    "flags in the Makefile": (MAKE, changed("-O3", "-Ofast"), "Makefile"),
    "a command in CMakeLists.txt": (
        CMAKE, lambda text: text + "execute_process(COMMAND touch ran)\n", "CMakeLists.txt",
    ),
    "a plan that is none": (PLAN, lambda text: "[]", "arena.json"),
    "a plan of another arena": (PLAN, changed(r'"arena_bytes": (\d+)', r'"arena_bytes": 1\1'), "arena.json"),
}  # fmt: skip

# What else lies in the folder: its name, and how it is made.
EXTRA: dict[str, Callable[[Path], object]] = {
    "stdint.h": lambda path: path.write_text("#error"),
    "more.c": lambda path: path.write_text("int more;"),
    "README": lambda path: path.write_text("make run"),
    ".hidden": lambda path: path.write_bytes(b""),
    "example": lambda path: path.write_bytes(b"\x7fELF"),
    "folder": Path.mkdir,
    "link": lambda path: path.symlink_to("/"),
    "pipe": os.mkfifo,
    "\x1b[2Jname": lambda path: path.write_bytes(b""),
}

# What changes nothing that a compiler sees.
HARMLESS: dict[str, tuple[str, Edit]] = {
    "other indentation": (MODEL, changed(r"\n    +", "\n\t", 0)),
    "a call over several lines": (MODEL, changed(r"add\(arena", "add(\n  arena")),
    "everything in few lines": (WEIGHTS, changed(r"(?<=,)\n\s+", " ", 0)),
    "line ends of Windows": (MODEL, changed(r"\n", "\r\n", 0)),
    "comments": (MODEL, changed(r"(void model_run[^\n]*\n)", r"\1/* first\n   'second' \"third */ /**/")),
    "comments among numbers": (WEIGHTS, changed(r"(model_bias_0\[\d+\] = {\n)", r"\1 /* biases */")),
    "no comments": (MODEL, changed(r"/\*(?:[^*]|\*(?!/))*\*/", "", 0)),
    "a plan in one line": (PLAN, changed(r"\n *", "", 0)),
    "the example's indentation": (EXAMPLE, changed(r"\n    ", "\n  ", 0)),
}
