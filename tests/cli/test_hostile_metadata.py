"""Every field of every kind of file, with hostile values: no code runs, nothing is written elsewhere, one line."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fuzz_targets import TooLongError, within
from tests.support.hostile_project import KINDS, Project
from tests.support.watch import watched

MOST_SECONDS, MOST_BYTES = 30, 6 * 2**30
SAMPLE = 2  # of each kind, in the default run


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    made = Project(tmp_path_factory.mktemp("hostile"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(made.folder / "tmp"))
        patch.setenv("TMPDIR", str(made.folder / "tmp"))
        patch.setenv("CSQTOOL_TIME_LIMIT", "20")
        yield made


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Limit what this process may still take, so that a huge number ends it with an error and not the machine."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_DATA)
    status = Path("/proc/self/status")
    used = int(status.read_text().split("VmData:")[1].split()[0]) * 1024 if status.exists() else 0
    resource.setrlimit(resource.RLIMIT_DATA, (used + MOST_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


def found_in(project: Project, name: str, count: int | None) -> dict[str, str]:
    """Return what commands did that they must not, once each; `count` files are drawn, or None for all."""
    kind, found = KINDS[name], {}
    cases = list(project.cases(kind))
    for one, place, value in cases if count is None else random.Random(name).sample(cases, count):
        try:
            with within(MOST_SECONDS):
                wrong = project.wrong(kind, one, place, value)
        except TooLongError as error:
            wrong = str(error)
        if wrong is not None:
            print(f"{one.arguments[0]} {place} = {str(value)[:60]!r}: {wrong}")
            found.setdefault(f"{one.arguments[0]}: {wrong[:60]}", f"{place} = {str(value)[:60]!r}: {wrong}")
    return found


def test_a_sample_of_hostile_fields_runs_no_code_and_ends_with_one_line(project: Project, little_memory: None) -> None:
    assert {name: found for name in KINDS if (found := found_in(project, name, SAMPLE))} == {}
    assert project.tried > len(KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_no_hostile_field_runs_code_and_every_command_ends_with_one_line(
    name: str, project: Project, little_memory: None
) -> None:
    before = project.tried
    found = found_in(project, name, None)
    print(f"{name}: {project.tried - before} commands were given a changed file")
    assert found == {}
    assert project.tried > before


def test_what_no_command_may_do_is_seen(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    with watched([inside], frozenset({("true", "x")})) as seen:
        (inside / "a").write_text("x")
        (inside / "a").rename(inside / "b")
        subprocess.run(["true", "x"], check=True)
        assert (inside / "b").read_text() == "x"
    assert seen.wrong == []
    with watched([inside]) as seen:
        (inside / "b").rename(outside)
        outside.write_text("x")
        os.open(outside, os.O_WRONLY)
        subprocess.run(["true"], check=True)
        os.system("true")
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", 1), timeout=5)
    events = [one.split()[0] for one in seen.wrong if not one.startswith("socket.getaddrinfo")]
    assert events == ["os.rename", "open", "open", "starts", "os.system", "socket.connect"]
