from __future__ import annotations

import os

# The nets of the tests are tiny: threads would only wait for each other. Set before torch is imported, and
# inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tests.support.commands import Built


@pytest.fixture(scope="session")
def eight_bits(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("a8"), "8")


@pytest.fixture(scope="session")
def other_seed(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("other_seed"), "8", "--seed", 1)


@pytest.fixture(scope="session", params=["float", "4"])
def other_bits(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("other"), request.param)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of what verify caught at which levels, wherever the tests ran."""
    reports = [r for r in terminalreporter.getreports("passed") if r.when == "call"]
    rows = [value for report in reports for key, value in report.user_properties if key == "caught"]
    if rows:
        terminalreporter.section("ways to break an export, and the levels of verify that fail")
        width = max(len(name) for name, _ in rows)
        for name, levels in rows:
            terminalreporter.write_line(f"{name:{width}}  {levels}")
