from __future__ import annotations

import json
import os
from pathlib import Path

# The nets of the tests are tiny: threads would only wait for each other. Set before torch is imported, and
# inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from click.testing import CliRunner, Result

from csqtool.cli import cli

ROOT = Path(__file__).parent.parent
DIGITS = f"{ROOT}/sample_models/digits_cnn/model.py:digits_cnn"
QUICK = ["--pretrain-epochs", "3", "--epochs", "2", "--finetune-epochs", "2", "--batch-size", "64"]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def ok(*arguments: object) -> Result:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result


class Built:
    """A searched, finalized and exported digits network."""

    def __init__(self, folder: Path, act_bits: str, *more: object) -> None:
        self.run, self.model = folder / "run", folder / "model.safetensors"
        self.onnx, self.csq = folder / "model.onnx", folder / "model.csq"
        ok("search", DIGITS, "--data", "digits", "--target-bits", 3, "--act-bits", act_bits, *QUICK, *more,
           "-o", self.run)  # fmt: skip
        ok("finalize", self.run, "-o", self.model)
        ok("export", self.model, "--format", "onnx", "-o", self.onnx)
        ok("pack", self.model, "-o", self.csq)

    def verify(self, file: Path, *more: object) -> tuple[int, dict[str, object]]:
        result = invoke("verify", file, "--against", self.model, "--json", *more)
        return result.exit_code, json.loads(result.stdout)


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
