"""What is fuzzed: a corpus, how its files are changed, and what must hold for each changed one."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from csqtool.errors import CsqtoolError, FormatError
from tests.support import fuzz_mutators as mutators
from tests.support.csq_files import GOLDEN, TESTS

CORPUS = TESTS / "fuzz" / "corpus"
BAD = TESTS / "golden_bad"
MOST_SECONDS = 20  # that any command may take on a file of a few kilobytes
Change = Callable[[random.Random, bytes], bytes]


class TooLongError(Exception):
    """A file kept a reader busy."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise TooLongError where the block takes longer on a core; runtimes in the sandbox have limits of their own."""

    def late(_number: int, _frame: Any) -> None:
        raise TooLongError(f"longer than {seconds} seconds")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


class Target(ABC):
    """One kind of file.

    Attributes:
        suffix: of its files.
        change: makes another file of one of the corpus.
    """

    suffix: str
    change: Change

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / f"file{self.suffix}"

    @abstractmethod
    def corpus(self) -> list[bytes]:
        """Return the files that are changed."""

    @abstractmethod
    def check(self, content: bytes) -> None:
        """Read a file in every way there is; raise where something else than a CsqtoolError comes of it."""

    def finish(self) -> None:
        """Check what was put off."""
        return

    def inspected(self, content: bytes) -> None:
        """Explain the file, as `csqtool inspect` does."""
        from csqtool.inspecting import inspect

        self.path.write_bytes(content)
        with contextlib.suppress(CsqtoolError):
            inspect(self.path)


class Csq(Target):
    """All three readers of `.csq`: each refuses what the others refuse, and gives the same tensors otherwise."""

    suffix = ".csq"
    change = staticmethod(mutators.changed_csq)
    AT_ONCE = 40  # files that one process of the C reader is given

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from tests.support.c_reader import SANITIZERS, build

        self._waiting: list[tuple[Path, dict[str, Any] | str]] = []
        self._dump = build(folder / "dump", *SANITIZERS) if shutil.which("gcc") else None

    def corpus(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted(GOLDEN.glob("*.csq"))]

    def check(self, content: bytes) -> None:
        from tests.support.csq_handmade import by_codec, by_decoder, checked

        found = [self._read(read, content) for read in (by_codec, by_decoder)]
        refused = [isinstance(one, str) for one in found]
        assert all(refused) or found[0] == found[1], f"the Python readers differ: {found}"
        with contextlib.suppress(FormatError):
            checked(content, where="x")
        self.inspected(content)
        if self._dump is not None:
            path = self.folder / f"{len(self._waiting)}.csq"
            path.write_bytes(content)
            self._waiting.append((path, found[0]))
            if len(self._waiting) == self.AT_ONCE:
                self.finish()

    @staticmethod
    def _read(read: Callable[[bytes], dict[str, Any]], content: bytes) -> dict[str, Any] | str:
        """Return type, shape and checksum of each tensor, or why the file is refused."""
        try:
            tensors = read(content)
        except FormatError as error:
            return str(error)
        little = {name: t.astype(t.dtype.newbyteorder("<")) for name, t in tensors.items()}
        return {name: (str(t.dtype), t.shape, zlib.crc32(t.tobytes())) for name, t in little.items()}

    def finish(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        done = subprocess.run([str(self._dump), *(str(path) for path, _ in waiting)], capture_output=True, text=True,
                              check=False, timeout=10 * MOST_SECONDS)  # fmt: skip
        assert not done.stderr, f"a sanitizer stopped the C reader: {done.stderr[:500]}"
        lines = iter(done.stdout.splitlines())
        for path, found in waiting:
            said = {}
            while not (line := next(lines)).startswith(f"{path}: "):
                said[line[9:]] = int(line[:8], 16)
            accepted = line == f"{path}: ok"
            kept = self.folder.with_name(f"{self.folder.name}-differs-{path.name}")
            shutil.copy(path, kept)
            if isinstance(found, str):  # metadata and graph are not read in C
                assert not accepted or re.search("metadata|graph", found), f"only the C reader accepts {kept}: {found}"
            else:
                wanted = {name: checksum for name, (_, _, checksum) in found.items()}
                assert accepted, f"the C reader refuses {kept}: {line}"
                assert said == wanted, f"the C reader gives other values of {kept}"
            kept.unlink()


class Onnx(Target):
    """`inspect` of each file; `verify` of one in five, against the model that the corpus was exported from."""

    suffix = ".onnx"
    change = staticmethod(mutators.changed_protobuf)
    VERIFIED = 5
    ENDLESS = ("loop-endless", "expand-2-to-the-40th")  # a limit of the process ends them, after its time

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._done = 0
        place_project(folder)

    def corpus(self) -> list[bytes]:
        bad = [path for path in sorted(BAD.glob("*.onnx")) if path.stem not in self.ENDLESS]
        return [path.read_bytes() for path in (CORPUS / "model.onnx", CORPUS / "coded.onnx", *bad)]

    def check(self, content: bytes) -> None:
        self.inspected(content)
        self._done += 1
        if self._done % self.VERIFIED == 0:
            from csqtool.verifying.verification import verify_file

            with contextlib.chdir(self.folder), contextlib.suppress(CsqtoolError):
                verify_file(self.path, Path("model.safetensors"), samples=4)


class Finalized(Target):
    """Finalized models: read, explained, and packed where they are right."""

    suffix = ".safetensors"
    change = staticmethod(mutators.changed_safetensors)

    def corpus(self) -> list[bytes]:
        from csqtool.finalized_file import to_bytes
        from tests.support.csq_files import small_model

        return [(CORPUS / "model.safetensors").read_bytes(), to_bytes(small_model())]

    def check(self, content: bytes) -> None:
        from csqtool.csq import pack
        from csqtool.finalized_file import parse_finalized, to_bytes

        self.inspected(content)
        try:
            model = parse_finalized(content, where="x")
        except CsqtoolError:
            return
        with contextlib.suppress(CsqtoolError):
            pack(model)
        with contextlib.suppress(CsqtoolError):
            again = parse_finalized(to_bytes(model), where="x")
            assert [layer.q.tobytes() for layer in again.layers] == [layer.q.tobytes() for layer in model.layers]


class Report(Target):
    """Reports of `verify`: explained, compared, and shown on a page."""

    suffix = ".json"
    change = staticmethod(mutators.changed_json)

    def corpus(self) -> list[bytes]:
        return [(CORPUS / "report.json").read_bytes(), (CORPUS / "sensitivity.json").read_bytes()]

    def check(self, content: bytes) -> None:
        from csqtool.diffing import diff
        from csqtool.reporting import report

        self.inspected(content)
        with contextlib.suppress(CsqtoolError):
            diff(self.path, CORPUS / "report.json")
        with contextlib.suppress(CsqtoolError):
            report([self.path], self.folder / "page.html", bench=False)


class Run(Target):
    """The JSON files and the log of a run directory, one changed at a time: read, explained, and shown on a page."""

    suffix = ".json"
    NAMES = ("config.json", "scheme.json", "summary.json", "log.jsonl")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._run = folder / "run"
        self._draw = random.Random(0)

    def corpus(self) -> list[bytes]:
        return [name.encode() + b"\n" + (CORPUS / "run" / name).read_bytes() for name in self.NAMES]

    @staticmethod
    def change(draw: random.Random, content: bytes) -> bytes:
        name, _, document = content.partition(b"\n")
        changed = mutators.changed_lines if name.endswith(b"l") else mutators.changed_json
        return name + b"\n" + changed(draw, document)

    def check(self, content: bytes) -> None:
        from csqtool.inspecting import inspect
        from csqtool.reporting import report
        from csqtool.searching.run_directory import RunDirectory

        name, _, document = content.partition(b"\n")
        shutil.copytree(CORPUS / "run", self._run, dirs_exist_ok=True)
        (self._run / name.decode()).write_bytes(document)
        directory = RunDirectory(self._run)
        for read in (directory.read_config, directory.read_summary, directory.read_scheme, directory.read_log):
            with contextlib.suppress(CsqtoolError):
                read()
        for path in (self._run, self._run / name.decode()):
            with contextlib.suppress(CsqtoolError):
                inspect(path)
        with contextlib.suppress(CsqtoolError):
            report([self._run], self.folder / "page.html", bench=False)


class Checkpoint(Target):
    """Checkpoints: explained, and read by the search that they belong to."""

    suffix = ".pt"
    change = staticmethod(mutators.changed_checkpoint)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        place_project(folder)

    def corpus(self) -> list[bytes]:
        return [(CORPUS / "run" / "checkpoints" / "last.pt").read_bytes()]

    def check(self, content: bytes) -> None:
        from csqtool.searching.runs import load_finished

        self.inspected(content)
        (self.folder / "run" / "checkpoints" / "last.pt").write_bytes(content)
        with contextlib.chdir(self.folder), contextlib.suppress(CsqtoolError):
            load_finished(Path("run"))


class Pickle(Target):
    """Batches of CIFAR's python layout."""

    suffix = ""
    change = staticmethod(mutators.changed_pickle)

    def corpus(self) -> list[bytes]:
        batch = {"data": np.arange(64, dtype=np.uint8).reshape(2, 32), "labels": [1, 2], "batch_label": "x",
                 "filenames": ["a.png", "b.png"]}  # fmt: skip
        return [pickle.dumps(batch, protocol=protocol) for protocol in (2, 3, 4)]

    def check(self, content: bytes) -> None:
        from csqtool.data.python_pickle import read_dict

        with contextlib.suppress(CsqtoolError):
            read_dict(content, where="x")


TARGETS: dict[str, type[Target]] = {
    "csq": Csq, "onnx": Onnx, "finalized": Finalized, "report": Report, "run": Run, "checkpoint": Checkpoint,
    "pickle": Pickle,
}  # fmt: skip


def place_project(folder: Path) -> None:
    """Put the project that the corpus was made in into a folder."""
    for name in ("net.py", "model.safetensors"):
        shutil.copy(CORPUS / name, folder)
    shutil.copytree(CORPUS / "run", folder / "run", dirs_exist_ok=True)
    draw = np.random.default_rng(0)
    x, y = draw.standard_normal((128, 1, 6, 6)).astype(np.float32), draw.integers(0, 3, 128)
    np.savez(folder / "data.npz", x_train=x, y_train=y, x_test=x[:64], y_test=y[:64])


@dataclass
class Found:
    """What came of fuzzing a target.

    Attributes:
        executions: files that were read.
        seconds: that it took.
        findings: the distinct errors, with the file of each.
    """

    executions: int = 0
    seconds: float = 0.0
    findings: dict[str, Path] = field(default_factory=dict)


def fuzz(name: str, *, seconds: float, runs: int | None, seed: int, keep: Path) -> Found:
    """Change files of a target and read them, until the time or the number of runs is over.

    Args:
        name: of the target.
        seconds: the time.
        runs: the number of files; None for as many as the time allows.
        seed: of the changes.
        keep: the folder that files with a finding are written to.
    """
    draw, found, began = random.Random(f"{name} {seed}"), Found(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        target = TARGETS[name](Path(folder))
        corpus = target.corpus()
        with contextlib.redirect_stderr(io.StringIO()):
            target.check(corpus[0])  # imports what is needed, without a limit
        while time.monotonic() - began < seconds and (runs is None or found.executions < runs):
            content = target.change(draw, draw.choice(corpus))
            for _ in range(draw.choice((0, 0, 1))):
                with contextlib.suppress(Exception):  # changed twice, it may be no document any more
                    content = target.change(draw, content)
            found.executions += 1
            _check(target.check, content, target, found, keep)
        _check(lambda _: target.finish(), b"", target, found, keep)
    found.seconds = time.monotonic() - began
    return found


def _check(check: Callable[[bytes], None], content: bytes, target: Target, found: Found, keep: Path) -> None:
    try:
        with within(MOST_SECONDS), contextlib.redirect_stderr(io.StringIO()):
            check(content)
    except Exception as error:
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        line = f"{os.path.basename(where.tb_frame.f_code.co_filename)}:{where.tb_lineno}" if where else "?"
        kind = f"{type(error).__name__} at {line}: {str(error)[:120]}"
        if not any(one.startswith(kind.split(": ", maxsplit=1)[0]) for one in found.findings):
            keep.mkdir(parents=True, exist_ok=True)
            path = keep / f"{len(found.findings)}{target.suffix}"
            path.write_bytes(content)
            found.findings[kind] = path
