"""Runs an exported C inference on a Cortex-M4 in QEMU: the same bits as on the host, instructions, flash and RAM."""

from __future__ import annotations

import importlib.resources
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool import sandbox
from csqtool.files import temporary_folder
from csqtool.text import size
from csqtool.verifying.c_program import WARNINGS, CFolder, CProgram, finished
from csqtool.verifying.findings import VerifyReport

COMPILER, SIZE, QEMU = "arm-none-eabi-gcc", "arm-none-eabi-size", "qemu-system-arm"
FLAGS = (*WARNINGS, "-Os", "-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16")
# An instruction takes 2^3 = 8 ns of simulated time, a tick of the board's timer 40.
SHIFT, INSTRUCTIONS_A_TICK = 3, 5
MACHINE = (
    "-M", "mps2-an386", "-display", "none", "-monitor", "none", "-serial", "none",
    "-semihosting-config", "enable=on,target=native", "-icount", f"shift={SHIFT}", "-accel", "tcg,tb-size=64",
)  # fmt: skip
SAMPLES = 8  # a simulated processor is slow
WORDS = ("error", "overflowed", "fault")  # of the line of a message that says what is wrong
SOURCES = ("c_cortex_m4.c", "c_cortex_m4.ld")


@dataclass(frozen=True)
class DeviceRun:
    """What a run on the device computed and took.

    Attributes:
        input: inputs as the model reads them [N, bytes].
        output: [N, values].
        instructions: of `model_run`, the most of all samples, to a tick of the timer.
        flash: bytes of code and constants of model.c and weights.c.
        arena: bytes of the arena.
        stack: bytes of stack that `model_run` used at most.
        static: bytes of variables of model.c and weights.c.
    """

    input: NDArray[np.uint8]
    output: NDArray[np.float32]
    instructions: int
    flash: int
    arena: int
    stack: int
    static: int

    @property
    def ram(self) -> int:
        """Bytes of arena, input, float output, stack and variables."""
        return self.arena + len(self.input[0]) + 4 * len(self.output[0]) + self.stack + self.static


def missing_tools() -> str:
    """Return what a run on the device lacks, empty if nothing is missing."""
    missing = [name for name in (COMPILER, SIZE, QEMU) if shutil.which(name) is None]
    if COMPILER not in missing:
        # Without newlib, the compiler has no string.h and no memcpy, and repeats the name that it does not find.
        found = subprocess.run([COMPILER, "-print-file-name=libc.a"], capture_output=True, text=True, check=False)
        missing += ["newlib for it"] * (found.stdout.strip() in ("", "libc.a"))
    return ", ".join(missing)


def check_on_device(report: VerifyReport, folder: CFolder, host: CProgram, arrays: NDArray[np.float32]) -> None:
    """Compare the device with the host, bit for bit, and report what an inference takes.

    Args:
        report: is added to.
        folder: the exported folder.
        host: its program on this machine.
        arrays: inputs [N, …], of which a few are used.
    """
    few = arrays[:SAMPLES]
    try:
        wanted = host.run(few, traced=False)
        with temporary_folder() as here:
            found = run_on_device(folder, here, few)
    except RuntimeError as error:
        report.add("outputs", "Cortex-M4 in QEMU", False, str(error))
        return
    pairs = ((found.input, wanted.input), (found.output, wanted.output))
    same = all(a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs)
    verdict = f"{len(few)} samples, {'equal to' if same else 'NOT equal to'} the host's bits"
    detail = (
        f"{verdict}; {found.instructions:,} instructions, {size(found.flash)} of flash, {size(found.ram)} of RAM "
        f"(arena {size(found.arena)}, stack {size(found.stack)})"
    )
    report.add(
        "outputs", "Cortex-M4 in QEMU", same, detail, None, instructions=found.instructions, flash=found.flash,
        ram=found.ram, arena=found.arena, stack=found.stack,
    )  # fmt: skip


def run_on_device(folder: CFolder, here: Path, inputs: NDArray[np.float32]) -> DeviceRun:
    """Compile a folder's code for the device and run samples.

    Args:
        folder: the exported folder.
        here: an empty folder to work in.
        inputs: [N, …].

    Raises:
        RuntimeError: it does not compile, does not fit, or crashes.
    """
    for name, source in folder.files.items():
        (here / name).write_bytes(source)
    for name in SOURCES:
        (here / name).write_bytes((importlib.resources.files("csqtool.verifying") / name).read_bytes())
    content = np.ascontiguousarray(inputs.reshape(len(inputs), -1), np.float32)
    answer: Any = sandbox.call(
        "csqtool.verifying.c_cortex:run_in", folder=str(here), content=content, sources=folder.sources
    )
    n_in, n_out = folder.input_bytes, folder.sizes["OUTPUT"]
    row = n_in + 4 * n_out + 8
    if len(answer["out"]) != len(inputs) * row:
        raise RuntimeError(f"it gives {len(answer['out'])} bytes for {len(inputs)} samples, not {row} each")
    table = np.frombuffer(answer["out"], np.uint8).reshape(len(inputs), row)
    floats = np.ascontiguousarray(table[:, n_in : n_in + 4 * n_out]).view(np.float32)
    ticks, stack = np.ascontiguousarray(table[:, -8:]).view(np.uint32).astype(int).max(axis=0).tolist()
    return DeviceRun(
        np.ascontiguousarray(table[:, :n_in]), floats, ticks * INSTRUCTIONS_A_TICK, answer["flash"],
        folder.sizes["ARENA"], stack, answer["static"],
    )  # fmt: skip


def run_in(folder: str, content: NDArray[np.float32], sources: list[str]) -> dict[str, Any]:
    """Compile and run the program in a folder; called in the sandbox, whose limits it inherits.

    Raises:
        RuntimeError: the first line of what went wrong.
    """
    here = Path(folder)
    (here / "in").write_bytes(content.tobytes())
    objects = [f"{name}.o" for name in sources]
    for name in sources:
        _done([COMPILER, *FLAGS, "-c", name, "-o", f"{name}.o"], folder)
    sizes = [line.split()[:3] for line in _done([SIZE, *objects], folder).splitlines()[1:]]
    text, data, zeros = (sum(int(row[column]) for row in sizes) for column in range(3))
    program = [*FLAGS, "-nostartfiles", "-T", "c_cortex_m4.ld", "c_cortex_m4.c", *objects, "-o", "program.elf"]
    _done([COMPILER, *program], folder)
    _done([QEMU, *MACHINE, "-kernel", "program.elf"], folder)
    return {"out": (here / "out").read_bytes(), "flash": text + data, "static": data + zeros}


def _done(command: list[str], folder: str) -> str:
    """Run a command and return what it printed."""
    done = finished(command, folder)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        said = next((line for line in lines if any(word in line for word in WORDS)), lines[-1] if lines else "")
        raise RuntimeError(f"{command[0]}: {said}" if said else f"{command[0]} ended with {done.returncode}")
    return done.stdout.decode(errors="replace")
