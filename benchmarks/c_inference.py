"""The C inference of the samples: flash and RAM beside weights of a byte, and speed beside onnxruntime's int8 kernels.

    python benchmarks/c_inference.py [name ...]    # prints Markdown; some minutes

The networks are rounded to three planes in each layer without training, with 8-bit activations: that changes no size
and no speed. Flash is `.text` (code and constants) and `.data` of model.c and weights.c, for Cortex-M4 where
arm-none-eabi-gcc is installed, otherwise for this machine. Instructions are those of a Cortex-M4 in QEMU, at -Os, where
its tools are installed. Speed is the least CPU time of interleaved runs, one sample, one thread. A second table
compares `--requantize float` with `fixed`; flash there is that of a Cortex-M4 with an FPU.
"""

from __future__ import annotations

import argparse
import copy
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from csqtool.exporting import ExportReport
from csqtool.factories import build_model
from csqtool.nn.post_training import post_training_model
from csqtool.verifying.c_cortex import missing_tools, run_on_device
from csqtool.verifying.c_program import CFolder
from exporters.c import to_c
from exporters.c.options import COptions
from exporters.onnx import OnnxOptions, to_onnx

HERE = Path(__file__).parent
SAMPLES = {
    "digits CNN": ("digits_cnn/model.py:digits_cnn", (1, 8, 8)),
    "digits autoencoder": ("digits_autoencoder/model.py:digits_autoencoder", (1, 8, 8)),
    "digits transformer": ("digits_vit/model.py:digits_vit", (1, 8, 8)),
    "keyword DS-CNN": ("keyword_ds_cnn/model.py:ds_cnn", (1, 49, 10)),
    "ResNet-20": ("resnet_cifar/model.py:resnet20", (3, 32, 32)),
    "MobileNetV2, 96×96": ("mobilenet_v2/model.py:mobilenet_v2", (3, 96, 96)),
}
PLANES = 3
PASSES = 5
TIMING = r"""
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "model.h"

static float values[MODEL_INPUT_SIZE], output[MODEL_OUTPUT_SIZE];
static uint8_t arena[MODEL_ARENA_SIZE];
#ifndef MODEL_INPUT_TYPE
static uint8_t input[MODEL_INPUT_SIZE];
#endif

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t); /* other load on the machine does not count */
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int main(void) {
    double best = 1e9, end;
    int i;
    for (i = 0; i < MODEL_INPUT_SIZE; i++) values[i] = (float)rand() / (float)RAND_MAX * 4.0f - 2.0f;
    end = now() + 0.5;
    do {
        const double start = now();
#ifdef MODEL_INPUT_TYPE
        model_run(values, output, arena);
#else
        model_quantize_input(values, input);
        model_run(input, output, arena);
#endif
        if (now() - start < best) best = now() - start;
    } while (now() < end);
    printf("%.9g\n", best);
    return 0;
}
"""


def calibrated(spec: str, shape: tuple[int, ...]) -> tuple[Any, torch.Tensor]:
    """Return a sample network whose BatchNorm fits its weights, and inputs."""
    torch.manual_seed(0)
    module = build_model(str(HERE.parent / "sample_models" / spec), {})
    inputs = torch.randn(16, *shape)
    module.train()
    with torch.no_grad():
        for _ in range(20):
            module(inputs)
    return module.eval(), inputs


def written(files: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "timing.c").write_text(TIMING)
    return folder


def flash_bytes(folder: Path, *, fpu: bool = False) -> int:
    """Return the bytes of code and constants at -Os; `fpu`: of a Cortex-M4 that computes floats in hardware."""
    arm = shutil.which("arm-none-eabi-gcc") is not None
    prefix, flags = ("arm-none-eabi-", ["-mcpu=cortex-m4", "-mthumb"]) if arm else ("", [])
    if arm and fpu:
        flags += ["-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"]
    total = 0
    for name in ("model", "weights"):
        command = [f"{prefix}gcc", "-std=c99", "-Os", *flags, "-c", f"{name}.c", "-o", f"{name}.o"]
        subprocess.run(command, cwd=folder, check=True)
        done = subprocess.run([f"{prefix}size", f"{name}.o"], cwd=folder, check=True, capture_output=True, text=True)
        text, data = done.stdout.splitlines()[1].split()[:2]
        total += int(text) + int(data)
    return total


def program(folder: Path) -> Path:
    command = ["gcc", "-std=c99", "-O3", "-march=native", "timing.c", "model.c", "weights.c", "-o", "timing"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "timing"


def session_of(content: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def best_seconds(session: onnxruntime.InferenceSession, sample: np.ndarray) -> float:
    best, end = float("inf"), time.process_time() + 0.5
    while time.process_time() < end:
        start = time.process_time()
        session.run(None, {"input": sample})
        best = min(best, time.process_time() - start)
    return best


def instructions(folder: Path, inputs: np.ndarray) -> int | None:
    """Return the instructions of an inference on a Cortex-M4, None where the tools are missing."""
    if missing_tools():
        return None
    with tempfile.TemporaryDirectory() as here:
        return run_on_device(CFolder(folder), Path(here), inputs).instructions


def arena_of(report: ExportReport) -> tuple[int, int]:
    line = next(note for note in report.notes if note.startswith("arena"))
    size, least = (int(word) for word in line.split() if word.isdigit())
    return size, least


def row(name: str, folder: Path) -> str:
    spec, shape = SAMPLES[name]
    module, inputs = calibrated(spec, shape)
    model = post_training_model(copy.deepcopy(module), [inputs], planes=PLANES, act_bits=8)
    packed, report = to_c(model, copy.deepcopy(module), COptions())
    as_bytes, _ = to_c(model, copy.deepcopy(module), COptions(weights="int8"))
    folders = [written(packed, folder / "packed"), written(as_bytes, folder / "int8")]
    flash, flash_int8 = map(flash_bytes, folders)
    arena, least = arena_of(report)
    in_float = post_training_model(copy.deepcopy(module), [inputs], planes=PLANES, act_bits=None)
    floats, _ = to_c(in_float, copy.deepcopy(module), COptions(content="inference"))
    programs = [program(one) for one in (*folders, written(floats, folder / "float"))]
    sessions = [
        session_of(to_onnx(model, copy.deepcopy(module), OnnxOptions(weights="int8"))[0]),
        session_of(to_onnx(in_float, copy.deepcopy(module), OnnxOptions())[0]),
    ]
    times = [float("inf")] * 5
    for _ in range(PASSES):
        for i, one in enumerate(programs):
            done = subprocess.run([one], check=True, capture_output=True, text=True)
            times[i] = min(times[i], float(done.stdout))
        for i, session in enumerate(sessions):
            times[3 + i] = min(times[3 + i], best_seconds(session, inputs[:1].numpy()))
    c, c_int8, c_float, ort, ort_float = times
    counts = [instructions(one, inputs[:1].numpy()) for one in folders]
    shown = "– | –" if None in counts else f"{counts[0] / 1e6:.2f} | {counts[0] / counts[1]:.2f}"
    return (
        f"| {name} | {flash:,} | {flash_int8:,} | {flash / flash_int8:.2f} | {arena:,} | {arena / least:.2f} | "
        f"{shown} | {c * 1e3:.3f} | {c_int8 / c:.2f} | {c_float / c:.1f} | "
        f"{c / ort:.2f} | {c / ort_float:.2f} |"
    )


def rounding_row(name: str, folder: Path) -> str:
    """Return a row of the second table: rounding in float32 against rounding by integers."""
    spec, shape = SAMPLES[name]
    module, inputs = calibrated(spec, shape)
    model = post_training_model(copy.deepcopy(module), [inputs], planes=PLANES, act_bits=8)
    folders = [
        written(to_c(model, copy.deepcopy(module), COptions(requantize=how))[0], folder / how)
        for how in ("fixed", "float")
    ]
    fixed, in_float = (flash_bytes(one, fpu=True) for one in folders)
    programs = [program(one) for one in folders]
    times = [float("inf")] * 2
    for _ in range(PASSES):
        for i, one in enumerate(programs):
            done = subprocess.run([one], check=True, capture_output=True, text=True)
            times[i] = min(times[i], float(done.stdout))
    counts = [instructions(one, inputs[:1].numpy()) for one in folders]
    shown = "– | –" if None in counts else f"{counts[1] / 1e6:.2f} | {counts[1] / counts[0]:.3f}"
    ms, ratio = times[1] * 1e3, times[1] / times[0]
    return f"| {name} | {in_float:,} | {in_float - fixed:+,} | {shown} | {ms:.3f} | {ratio:.3f} |"


def table(titles: Sequence[str], rows: Callable[[str, Path], str], names: Sequence[str]) -> None:
    print(f"| {' | '.join(titles)} |")
    print("| --- " + "| ---: " * (len(titles) - 1) + "|")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            print(rows(name, Path(folder)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=", ".join(SAMPLES))
    names = parser.parse_args().names or list(SAMPLES)
    torch.set_num_threads(1)
    arm = shutil.which("arm-none-eabi-gcc")
    compiler = subprocess.run([arm or "gcc", "--version"], check=True, capture_output=True, text=True)
    flash = f"{compiler.stdout.splitlines()[0]}, `-Os`{', Cortex-M4' if arm else ''}"
    speed = f"{platform.machine()}, gcc `-O3 -march=native`, onnxruntime {onnxruntime.__version__}, one thread"
    print(f"Flash: {flash}. Speed: {speed}.\n")
    titles = ("network", "flash, bytes", "with `--weights int8`", "ratio", "arena, bytes", "over least",
              "million instructions, M4", "over int8", "ms packed",
              "int8 weights / packed", "float C / packed", "packed / onnxruntime int8",
              "packed / onnxruntime float32")  # fmt: skip
    table(titles, row, names)
    print("\n`--requantize float`; flash and instructions with `-mfloat-abi=hard`.\n")
    titles = (
        "network",
        "flash, bytes",
        "more than fixed",
        "million instructions, M4",
        "over fixed",
        "ms",
        "over fixed",
    )
    table(titles, rounding_row, names)


if __name__ == "__main__":
    main()
