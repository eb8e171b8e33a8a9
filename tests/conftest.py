from __future__ import annotations

import os
import signal

# The nets of the tests are tiny: threads would only wait for each other. Set before torch is imported, and
# inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CSQTOOL_CHECK", "no")  # seconds for each search; tests of the look ahead ask for it


# Ignored by what a script starts in the background, and by all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


from collections.abc import Sequence
from typing import Any

import onnx
import pytest
from filelock import FileLock
from hypothesis import settings

from tests.support.commands import Built

# Other load on the machine fails no test.
settings.register_profile("csqtool", deadline=None)
settings.load_profile("csqtool")


# A file runs in one worker: those that take long come first, so that no worker is left with one at the end.
LONG_FILES = (
    "test_processes.py",
    "test_networks.py",
    "test_commands.py",
    "test_run.py",
    "test_stages.py",
    "test_search.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of long files first, the others in their order."""
    items.sort(key=lambda item: item.path.name not in LONG_FILES)


def built_once(tmp_path_factory: pytest.TempPathFactory, name: str, act_bits: str, *more: object) -> Built:
    """Build a network once a run, in whichever worker needs it first, and return a copy that is this worker's own.

    A copy, because a search locks its folder, and because a test that changes a file must not change another's.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # the workers' folders lie in one
    original = folder / f"built-{name}"
    with FileLock(folder / f"built-{name}.lock"):
        if not (original / "complete").exists():
            Built(original, act_bits, *more)
            (original / "complete").touch()
    return Built.copied(original, tmp_path_factory.mktemp(name))


_captures: dict[tuple[str, bytes, tuple[int, ...]], bytes] = {}


@pytest.fixture
def one_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let export and verify each capture a finalized model once a process: tests change files, never the network."""
    import onnx_ir as ir

    from csqtool.finalized_file import to_bytes
    from csqtool.verifying import expected_graph
    from exporters.onnx import capture

    by_verify, by_export = expected_graph.captured, capture.capture

    def captured(net: Any, model: Any, dynamic: Sequence[int]) -> onnx.ModelProto:
        key = "verify", to_bytes(model), tuple(dynamic)
        if key not in _captures:
            _captures[key] = by_verify(net, model, dynamic).SerializeToString()
        return onnx.ModelProto.FromString(_captures[key])

    def captured_to_export(model: Any, module: Any, dynamic: tuple[int, ...]) -> ir.Model:
        key = "export", to_bytes(model), dynamic
        if key not in _captures:
            _captures[key] = ir.to_proto(by_export(model, module, dynamic)).SerializeToString()
        return ir.from_proto(onnx.ModelProto.FromString(_captures[key]))

    monkeypatch.setattr(expected_graph, "captured", captured)
    monkeypatch.setattr(capture, "capture", captured_to_export)


@pytest.fixture(scope="session")
def eight_bits(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return built_once(tmp_path_factory, "eight_bits", "8")


@pytest.fixture(scope="session")
def other_seed(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return built_once(tmp_path_factory, "other_seed", "8", "--seed", 1)


@pytest.fixture(scope="session", params=["float", "4"])
def other_bits(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return built_once(tmp_path_factory, f"act_bits_{request.param}", request.param)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of what verify caught at which levels, wherever the tests ran."""
    reports = [r for r in terminalreporter.getreports("passed") if r.when == "call"]
    rows = [value for report in reports for key, value in report.user_properties if key == "caught"]
    if rows:
        terminalreporter.section("ways to break an export, and the levels of verify that fail")
        width = max(len(name) for name, _ in rows)
        for name, levels in rows:
            terminalreporter.write_line(f"{name:{width}}  {levels}")
