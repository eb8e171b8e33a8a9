"""Signals at random moments, full disks and folders that take no files: the promises of ``docs/reliability.md``."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.forked import Ended, Forked

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes of POSIX")
FEW_RUNS = 5
IN_CI = ("search", "pack")  # together with all other tests; a job of its own stops all commands
RUNS = 100
QUICK = ("pack", "unpack")  # stopped at each file operation in CI
LENGTHY = ("export", "verify", "run", "sweep", "blame")  # no full disk in CI
HEEDED_SECONDS = 10
SIGNALS = (signal.SIGTERM, signal.SIGKILL, signal.SIGINT)
SHORT = ["--data", "npz:data.npz", "--target-bits", 3, "--act-bits", 8, "--batch-size", 32]
EPOCHS = ["--pretrain-epochs", 1, "--epochs", 2, "--finetune-epochs", 1]
SOME = ["--samples", 16]
NET = """from torch import nn


def net():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
"""
PIPELINE = """[model]
factory = "net.py:net"
[data]
source = "npz:data.npz"
[search]
target_bits = 3
pretrain_epochs = 1
epochs = 1
finetune_epochs = 1
batch_size = 32
[export]
formats = ["csq"]
[verify]
samples = 16
"""


@dataclass(frozen=True)
class Command:
    """A command that writes something.

    Attributes:
        arguments: of csqtool.
        output: what it writes.
        needs: the files of other commands that it reads.
        files: those in `output` that are the same however often it was stopped; none where `output` is a file.
    """

    arguments: list[object]
    output: str
    needs: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


RUN_FILES = ("log.jsonl", "scheme.json", "float.safetensors")
COMMANDS = {
    "search": Command(["search", "net.py:net", *SHORT, *EPOCHS, "--no-check", "-o", "run"], "run", files=RUN_FILES),
    "finalize": Command(["finalize", "run", "-o", "m.safetensors"], "m.safetensors", ("run",)),
    "pack": Command(["pack", "m.safetensors", "-o", "m.csq"], "m.csq", ("m.safetensors",)),
    "unpack": Command(["unpack", "m.csq", "-o", "u.safetensors"], "u.safetensors", ("m.csq",)),
    "export": Command(["export", "m.safetensors", "-o", "m.onnx"], "m.onnx", ("m.safetensors",)),
    "export-c": Command(["export", "m.safetensors", "--format", "c", "--content", "weights", "-o", "c"], "c",
                        ("m.safetensors",), ("model.c", "csq.h")),
    "verify": Command(["verify", "m.onnx", "--against", "m.safetensors", *SOME, "--json", "v.json"], "v.json",
                      ("m.onnx", "m.safetensors")),
    "finetune": Command(["finetune", "run", "--epochs", 2, "-o", "tuned"], "tuned", ("run",), RUN_FILES[:2]),
    "quantize": Command(["quantize", "net.py:net", *SHORT, "--steps", 20, "-o", "q.safetensors"], "q.safetensors"),
    "sensitivity": Command(["sensitivity", "net.py:net", *SHORT[:2], "-o", "s.json"], "s.json"),
    "report": Command(["report", "run", "m.safetensors", "-o", "r.html"], "r.html", ("run", "m.safetensors")),
    "run": Command(["run", "--no-check", "p.toml"], "build", files=("model.safetensors", "model.csq")),
    "blame": Command(["blame", "run", *SOME, "-o", "b.json"], "b.json", ("run",)),
    "sweep": Command(["sweep", "net.py:net", *SHORT[:2], *SHORT[6:], "--methods", "lsq", "--target-bits", 3,
                      "--jobs", 1, "--pretrain-epochs", 1, "--epochs", 1, "--finetune-epochs", 0, "-o", "sweep"],
                     "sweep",
                     files=("files/lsq-3bits-seed0.csq", "files/lsq-3bits-seed0.safetensors")),
}  # fmt: skip


def in_ci(*, but: Sequence[str]) -> list[Any]:
    """Return all commands; those of `but` are run in the slow suite only."""
    return [pytest.param(name, marks=pytest.mark.slow if name in but else pytest.mark.long) for name in COMMANDS]


@pytest.fixture(scope="module")
def forked() -> Iterator[Forked]:
    server = Forked()
    yield server
    server.close()


class Reference:
    """What each command writes when nothing happens, and how long it takes; made when it is needed."""

    def __init__(self, folder: Path, forked: Forked) -> None:
        self.folder = folder
        self.forked = forked
        self.seconds: dict[str, float] = {}
        (folder / "net.py").write_text(NET)
        (folder / "p.toml").write_text(PIPELINE)
        draw = np.random.default_rng(0)
        x, y = draw.standard_normal((128, 1, 6, 6)).astype(np.float32), draw.integers(0, 3, 128)
        np.savez(folder / "data.npz", x_train=x, y_train=y, x_test=x[:64], y_test=y[:64])

    def of(self, name: str) -> float:
        """Make what a command and those before it write; return the seconds that it takes."""
        if name not in self.seconds:
            self._make_what_is_needed(name)
            ended = self.forked.run(*COMMANDS[name].arguments, folder=self.folder)
            assert ended.code == 0, ended.text
            self.seconds[name] = ended.seconds
        return self.seconds[name]

    def _make_what_is_needed(self, name: str) -> None:
        for other, one in COMMANDS.items():
            if one.output in COMMANDS[name].needs:
                self.of(other)

    def place(self, name: str, folder: Path) -> Path:
        """Copy what a command needs into a new folder."""
        self._make_what_is_needed(name)
        folder.mkdir()
        for one in ("net.py", "p.toml", "data.npz", *COMMANDS[name].needs):
            path = self.folder / one
            (shutil.copytree if path.is_dir() else shutil.copy)(path, folder / one)
        return folder


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, forked: Forked) -> Reference:
    return Reference(tmp_path_factory.mktemp("reference"), forked)


def content(path: Path) -> object:
    """Return what a file says; of a log and of a report of verify without what differs from run to run."""
    if path.suffix == ".json" and path.name.startswith("v"):
        return json.loads(path.read_text())["passed"]
    return path.read_bytes()


def assert_done(command: Command, folder: Path, reference: Path) -> None:
    for name in command.files or ("",):
        found, wanted = (top / command.output / name for top in (folder, reference))
        assert content(found) == content(wanted), found.name


def remove_what_a_kill_leaves(folder: Path) -> None:
    """Remove temporary files and folders, which nobody is there to remove."""
    for path in folder.rglob("*.part"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (folder / "tmp").glob("csqtool-*"):
        shutil.rmtree(path)


def repeated(command: Command, folder: Path) -> list[object]:
    """Return how a command that was stopped is given again."""
    begun = (folder / command.output / "config.json").is_file()
    return ["search", "--resume", command.output] if begun else command.arguments


def assert_stopped(one: Ended, sent: int, place: Path) -> None:
    """Check how a command ended that was sent a signal; what a kill leaves is removed."""
    if sent == signal.SIGKILL:
        assert one.code in (0, -signal.SIGKILL), one.text
        remove_what_a_kill_leaves(place)
        return
    assert one.code in (0, 128 + signal.SIGINT), one.text
    assert one.late < HEEDED_SECONDS
    assert one.code == 0 or "interrupted: " in one.text or not one.text
    assert "Traceback" not in one.text
    assert not list(place.rglob("*.part")), "a temporary file is left"
    assert not list((place / "tmp").glob("csqtool-*")), "a temporary folder is left"


def stop_at_random(name: str, runs: int, reference: Reference, folder: Path) -> list[Ended]:
    """Stop a command at random moments, let it end, and return the runs; what it writes is whole after each."""
    command, seconds = COMMANDS[name], reference.of(name)
    draw = random.Random(f"{name} {runs}")
    place, ended = reference.place(name, folder / "0"), []
    whole = not command.files  # it writes one file
    for number in range(runs):
        sent = SIGNALS[number % len(SIGNALS)]
        if whole:
            (place / command.output).write_bytes(b"old")
        after = draw.uniform(0, seconds)
        one = reference.forked.run(*repeated(command, place), folder=place, number=sent, after=after)
        ended.append(one)
        if one.code == 0:
            seconds = min(seconds, one.seconds)  # other work may have slowed the first run: signals would come too late
        assert_stopped(one, sent, place)
        if whole and (place / command.output).read_bytes() != b"old":
            assert_done(command, place, reference.folder)
        if one.code == 0:
            assert_done(command, place, reference.folder)
            place = reference.place(name, folder / str(number + 1))
    last = reference.forked.run(*repeated(command, place), folder=place)
    assert last.code == 0, last.text
    assert_done(command, place, reference.folder)
    return ended


@pytest.mark.parametrize("name", in_ci(but=[name for name in COMMANDS if name not in IN_CI]))
def test_a_command_stopped_at_random_moments_leaves_whole_files_and_can_be_given_again(
    name: str, reference: Reference, tmp_path: Path
) -> None:
    ended = stop_at_random(name, FEW_RUNS, reference, tmp_path)
    assert any(one.code for one in ended), "no run was stopped"


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_stopped_a_hundred_times_leaves_whole_files_and_can_be_given_again(
    name: str, reference: Reference, tmp_path: Path
) -> None:
    ended = stop_at_random(name, RUNS, reference, tmp_path)
    assert sum(one.code != 0 for one in ended) > RUNS // 4


@pytest.mark.parametrize("name", [
    pytest.param(n, marks=pytest.mark.long if n in QUICK else pytest.mark.slow) for n in ("finalize", *QUICK, "report")
])  # fmt: skip
def test_a_command_stopped_at_each_of_its_file_operations_leaves_the_old_file_or_the_new_one(
    name: str, reference: Reference, tmp_path: Path
) -> None:
    command = COMMANDS[name]
    reference.of(name)
    place = reference.place(name, tmp_path / "place")
    codes = []
    for at in itertools.count(1):
        for sent in SIGNALS:
            (place / command.output).write_bytes(b"old")
            one = reference.forked.run(*command.arguments, folder=place, at=at, own=sent)
            assert_stopped(one, sent, place)
            if (place / command.output).read_bytes() != b"old":
                assert_done(command, place, reference.folder)
            codes.append(one.code)
        if not any(codes[-len(SIGNALS) :]):
            break  # it has no such operation any more
    assert len(codes) > 3 * len(SIGNALS)


def error_of(ended: Ended) -> str:
    """Return the one line that says what was wrong."""
    assert ended.code == 2, ended.text
    assert "Traceback" not in ended.text
    (error,) = [line for line in ended.text.splitlines() if line.startswith("error: ")]
    return error


@pytest.mark.parametrize("name", in_ci(but=LENGTHY))
def test_a_full_disk_is_one_error_line_and_leaves_what_was_there(
    name: str, reference: Reference, tmp_path: Path
) -> None:
    command = COMMANDS[name]
    reference.of(name)
    place = reference.place(name, tmp_path / "place")
    if not command.files:
        (place / command.output).write_bytes(b"old")
    ended = reference.forked.run(*command.arguments, folder=place, file_bytes=100)
    assert "cannot write" in error_of(ended)
    assert not list(place.rglob("*.part"))
    if not command.files:
        assert (place / command.output).read_bytes() == b"old"
    last = reference.forked.run(*repeated(command, place), folder=place)
    assert last.code == 0, last.text
    assert_done(command, place, reference.folder)


@pytest.mark.long
def test_a_folder_that_takes_no_files_is_told_before_the_work_begins(reference: Reference) -> None:
    # Not below pytest's folder, which other users cannot enter: root may write everywhere, so another user does it.
    nobody = {"user": 65534} if os.geteuid() == 0 else {}
    for name, command in COMMANDS.items():
        with tempfile.TemporaryDirectory() as top:
            place = reference.place(name, Path(top) / "place")
            (place / "tmp").mkdir()
            (place / "tmp").chmod(0o777)
            for path in (Path(top), place):
                path.chmod(0o555)
            try:
                ended = reference.forked.run(*command.arguments, folder=place, **nobody)
            finally:
                for path in (Path(top), place):
                    path.chmod(0o755)
            assert "cannot write" in error_of(ended), ended.text
            assert " …" not in ended.text, "work had begun"
            assert not (place / command.output).exists(), name
