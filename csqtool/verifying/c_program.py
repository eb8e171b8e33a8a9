"""Compiles an exported C inference and runs it, both in the sandbox's process, under its limits."""

from __future__ import annotations

import importlib.resources
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool import sandbox
from csqtool.errors import FormatError, InputError
from csqtool.files import read_bytes

COMPILERS = ("cc", "gcc", "clang")
FILES = ("model.h", "weights.h", "model.c", "weights.c")
WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
SECONDS = 280  # of the compiler, and of the program; below the sandbox's limit
MOST_VALUES = 1 << 28  # of an input, an output, or the arena


@dataclass(frozen=True)
class Place:
    """A quantizer as the code has it: sizes in memory, outermost first, and the axis of a sample that each is."""

    sizes: tuple[int, ...]
    axes: tuple[int, ...]

    @classmethod
    def of_input(cls, shape: tuple[int, ...]) -> Place:
        """Return how the quantized input lies in memory: two or three axes with channels innermost."""
        rank = len(shape)
        axes = (*range(1, rank), 0) if rank in (2, 3) else tuple(range(rank))
        return cls(tuple(shape[axis] for axis in axes), axes)

    def values(self, stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return integers [N, bytes] in PyTorch's order, [N, …].

        Raises:
            ValueError: sizes and axes do not go together.
        """
        array = stored.reshape(len(stored), *self.sizes)
        return array.transpose(0, *(self.axes.index(axis) + 1 for axis in range(len(self.axes))))

    def stored(self, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return integers [N, …] as they lie in memory, [N, bytes]."""
        return values.transpose(0, *(axis + 1 for axis in self.axes)).reshape(len(values), -1)


@dataclass(frozen=True)
class Filter:
    """A decoded filter: its number, integers, bias, multiplier, shift, and factor in float."""

    number: int
    integers: NDArray[np.int8]
    bias: int
    multiplier: int
    shift: int
    step: np.float32


@dataclass
class Run:
    """What a run of the program computed.

    Attributes:
        input: inputs as the model reads them [N, bytes]: quantized, float32 or int32.
        places: integers [N, bytes] of each quantizer, and bytes of each layer of floats, as they lie in memory; of a
            build that is traced.
        output: [N, values].
        forms: how each place lies in memory.
        filters: of each run of a layer: its name and its filters, in order.
    """

    input: NDArray[np.uint8]
    output: NDArray[np.float32]
    places: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    forms: dict[str, Place] = field(default_factory=dict)
    filters: list[tuple[str, list[Filter]]] = field(default_factory=list)


class CFolder:
    """An exported folder.

    Attributes:
        path: the folder.
        names: the files that hold the inference.
        files: what is compiled, by name.
        content: all files of the folder that are part of it, one after the other.
        sha256: of the finalized model that it names.
        sizes: ``INPUT``, ``OUTPUT`` and ``ARENA``.
        input_type: of an input that is not quantized, ``float`` or ``int32_t``; empty otherwise.

    Args:
        path: the folder.

    Raises:
        FormatError: it holds no inference.
    """

    def __init__(self, path: Path) -> None:
        is_single = b"MODEL_IMPLEMENTATION" in (read_bytes(path / "model.h") if (path / "model.h").is_file() else b"")
        names = FILES[:1] if is_single else FILES
        missing = [name for name in names if not (path / name).is_file()]
        if missing:
            raise FormatError(
                f"{path} holds no {', '.join(missing)}; csqtool export --format c --content inference writes one"
            )
        self.path = path
        self.names = names
        self.files = {name: read_bytes(path / name) for name in names}
        self.content = b"".join(self.files.values())
        if is_single:
            self.files["model.c"] = b'#define MODEL_IMPLEMENTATION\n#include "model.h"\n'
        header = self.files["model.h"].decode(errors="replace")
        self.sha256 = next(iter(re.findall(r'#define MODEL_FINALIZED_SHA256 "([0-9a-f]{64})"', header)), None)
        self.input_type = next(iter(re.findall(r"#define MODEL_INPUT_TYPE (float|int32_t)\b", header)), "")
        self.sizes = {name: _size(header, name, path) for name in ("INPUT", "OUTPUT", "ARENA")}

    @property
    def input_bytes(self) -> int:
        """Bytes of an input as the model reads it."""
        return self.sizes["INPUT"] * (4 if self.input_type else 1)

    @property
    def sources(self) -> list[str]:
        """The files to compile."""
        return [name for name in self.files if name.endswith(".c")]


def _size(header: str, name: str, path: Path) -> int:
    found = re.findall(rf"#define MODEL_{name}_SIZE (\d+)", header)
    if len(found) != 1 or not 0 < int(found[0]) < MOST_VALUES:
        raise FormatError(f"{path}/model.h states no size MODEL_{name}_SIZE")
    return int(found[0])


def compiler(name: str | None = None) -> str:
    """Return the C compiler: the one called `name`, or the first that is installed.

    Raises:
        InputError: it is not installed, or none is.
    """
    if name is not None:
        if shutil.which(name) is None:
            raise InputError(f"the compiler {name!r} is not installed")
        return name
    found = next(filter(None, map(shutil.which, COMPILERS)), None)
    if found is None:
        raise InputError(f"verifying C needs a C compiler, and none of {', '.join(COMPILERS)} is installed")
    return found


class CProgram:
    """The folder's code, compiled with the verifier's main function.

    Args:
        folder: the exported folder.
        here: an empty folder for the program.
        flags: for the compiler.
        cc: the compiler's name or path; None takes the first of `COMPILERS` that is installed.

    Raises:
        RuntimeError: it does not compile; the message is the compiler's first line.
    """

    def __init__(self, folder: CFolder, here: Path, flags: Sequence[str], cc: str | None = None) -> None:
        self._folder = folder
        self._here = here
        for name, content in folder.files.items():
            (here / name).write_bytes(content)
        harness = importlib.resources.files("csqtool.verifying") / "c_harness.c"
        (here / "harness.c").write_bytes(harness.read_bytes())
        sandbox.call(
            "csqtool.verifying.c_program:compile_in",
            folder=str(here),
            command=[compiler(cc), *flags, "harness.c", *folder.sources, "-o", "program"],
        )

    def run(
        self, inputs: NDArray[np.float32], forced: Mapping[str, NDArray[np.uint8]] | None = None,
        *, like: Run | None = None, traced: bool = True, fill: int = 0,
    ) -> Run:  # fmt: skip
        """Run samples.

        Args:
            inputs: [N, …].
            forced: integers [N, bytes] for every place, the input's under ``""``; needs `like`.
            like: an earlier run, from which the order of places is known.
            traced: whether it was compiled with MODEL_TRACE.
            fill: what the arena holds before each sample.

        Raises:
            RuntimeError: it crashes, or does not give what it must.
        """
        count = len(inputs)
        rows = [np.ascontiguousarray(inputs.reshape(count, -1), np.float32).view(np.uint8)]
        if forced is not None:
            assert like is not None
            rows += [forced[""], *(forced[name] for name in like.places)]
        content = np.concatenate(rows, axis=1)
        answer: Any = sandbox.call(
            "csqtool.verifying.c_program:run_in", folder=str(self._here), content=content, count=count,
            forced=forced is not None, fill=fill,
        )  # fmt: skip
        log = _Log(answer["log"])
        forms, filters = log.read()
        return self._parsed(answer["out"], count, forms if traced else {}, filters)

    def _parsed(self, out: bytes, count: int, forms: dict[str, Place], filters: list[Any]) -> Run:
        sizes = [self._folder.input_bytes, *(int(np.prod(f.sizes)) for f in forms.values())]
        output = self._folder.sizes["OUTPUT"] * 4
        if len(out) != count * (sum(sizes) + output):
            raise RuntimeError(f"it gives {len(out)} bytes for {count} samples, not {sum(sizes) + output} each")
        table = np.frombuffer(out, np.uint8).reshape(count, -1)
        parts = np.split(table, np.cumsum(sizes), axis=1)
        floats = np.ascontiguousarray(parts[-1]).view(np.float32)
        return Run(parts[0], floats, dict(zip(forms, parts[1:-1], strict=True)), forms, filters)


class _Log:
    """Reads what the harness writes about the first sample."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def read(self) -> tuple[dict[str, Place], list[tuple[str, list[Filter]]]]:
        forms: dict[str, Place] = {}
        layers: list[tuple[str, list[Filter]]] = []
        while self._at < len(self._content):
            kind = self._bytes(1)
            name = self._bytes(int(self._ints(1)[0])).decode(errors="replace")
            if kind == b"P":
                rank = int(self._ints(1)[0])
                numbers = self._ints(2 * rank).tolist()
                place = Place(tuple(numbers[:rank]), tuple(numbers[rank:]))
                if sorted(place.axes) != list(range(rank)) or name in forms:
                    raise RuntimeError(f"{name}: it is computed twice, or its axes are {list(place.axes)}")
                forms[name] = place
            else:
                number, count, bias, multiplier, shift = self._ints(5).tolist()
                step = np.frombuffer(self._bytes(4), np.float32)[0]
                integers = np.frombuffer(self._bytes(count), np.int8)
                if not layers or layers[-1][0] != name or number == 0:
                    layers.append((name, []))
                layers[-1][1].append(Filter(number, integers, bias, multiplier, shift, step))
        return forms, layers

    def _bytes(self, count: int) -> bytes:
        part = self._content[self._at : self._at + count]
        if count < 0 or len(part) != count:
            raise RuntimeError("its trace is cut off")
        self._at += count
        return part

    def _ints(self, count: int) -> NDArray[np.int32]:
        return np.frombuffer(self._bytes(4 * count), np.int32)


def compile_in(folder: str, command: list[str]) -> None:
    """Compile the program in a folder; called in the sandbox, whose limits it inherits.

    Raises:
        RuntimeError: the compiler's first line.
    """
    done = finished(command, folder)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise RuntimeError(next((line for line in lines if "error" in line), lines[0]))


def run_in(folder: str, content: NDArray[np.uint8], count: int, forced: bool, fill: int) -> dict[str, Any]:
    """Run the program in a folder and return what it wrote; called in the sandbox, whose limits it inherits.

    Raises:
        RuntimeError: it crashes, or a sanitizer stops it.
    """
    here = Path(folder)
    (here / "in").write_bytes(content.tobytes())
    command = [str(here / "program"), "in", "out", "log", str(count), str(int(forced)), str(fill)]
    done = finished(command, folder)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        said = next((line for line in lines if "ERROR" in line or "runtime error" in line), lines[-1] if lines else "")
        raise RuntimeError(said or f"it ended with {done.returncode}")
    return {"out": (here / "out").read_bytes(), "log": (here / "log").read_bytes()}


def finished(command: list[str], folder: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a folder, with a limit of time.

    Raises:
        RuntimeError: it took too long.
    """
    try:
        return subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False,
            env={**os.environ, "LC_ALL": "C"}, preexec_fn=_allow_shadow_memory if os.name == "posix" else None,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"it took longer than {SECONDS} seconds, and was ended") from error


def _allow_shadow_memory() -> None:
    """Lift the limit of memory for the address sanitizer, which reserves terabytes of addresses and uses few."""
    try:
        import resource
    except ImportError:
        return
    kind = resource.RLIMIT_DATA
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (hard, hard))
