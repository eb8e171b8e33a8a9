from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from csqtool import documents, exporting, files, finalized_file, pipeline_runner
from csqtool.errors import ConfigError
from csqtool.exporting import Exported, ExportReport
from csqtool.files import write_bytes
from csqtool.pipeline_file import read_pipeline
from csqtool.pipeline_runner import PipelineResult, run_pipeline
from csqtool.searching import runs
from csqtool.searching.config import SearchConfig
from csqtool.searching.records import BegunFrom
from csqtool.searching.run_directory import RunDirectory
from csqtool.verifying import verification
from csqtool.verifying.findings import VerifyReport
from tests.support.commands import DIGITS, invoke, ok

# --- the file ------------------------------------------------------------------------------------------------

LEAST = '[model]\nfactory = "model.py:net"\n[data]\nsource = "digits"\n[search]\ntarget_bits = 3\n'


def test_paths_are_relative_to_the_pipeline_file_and_settings_the_same_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project").mkdir()
    text = LEAST.replace('"digits"', '"npz:x/d.npz"').replace("[search]", '[search]\nscheme = "s.json"')
    (tmp_path / "project" / "p.toml").write_text(text + "[verify]\nbaseline = 'b.json'\nmax_regression = 0\n")
    monkeypatch.chdir(tmp_path)
    found = read_pipeline(Path("project/p.toml"))
    config = found.config
    assert (config.model, config.data, config.scheme) == (
        "project/model.py:net",
        "npz:project/x/d.npz",
        "project/s.json",
    )
    assert (str(found.output), found.gates.baseline) == ("project/build", "project/b.json")
    monkeypatch.chdir(tmp_path / "project")
    again = read_pipeline(Path("p.toml"))
    assert again.config.model == "model.py:net"
    assert again.settings == found.settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model", "not valid TOML"),
        ("x = " + "[" * 100_000, "not valid TOML"),
        ("", "[model]: factory is missing"),
        ("[model]\nfactory = 1\n", "[model]: factory: expected str, got int"),
        ("[modle]\nfactory = 'x'\n", "unknown key 'modle'; did you mean 'model'?"),
        ("model = 1\n", "model: expected object, got int"),
        ("output = 1\n", "output: expected str, got int"),
        (LEAST.replace("factory", "factori"), "[model]: unknown key 'factori'; did you mean 'factory'?"),
        (LEAST.replace("source = ", "sourcs = "), "[data]: unknown key 'sourcs'; did you mean 'source'?"),
        (LEAST.replace("target_bits", "target_bit"), "[search]: unknown key 'target_bit'; did you mean 'target_bits'?"),
        (LEAST + "where = 'x'\n", "[search]: unknown key 'where'"),
        (LEAST + "model = 'x'\n", "[search] model belongs in [model] or [data]"),
        (LEAST.replace("[data]", "args = {x = 2026-01-01}\n[data]"), "[model] args: only texts"),
        (LEAST + "[export]\nformats = []\n", "[export]: formats: expected array of length >= 1"),
        (LEAST + "[export]\nformats = ['onnx', 1]\n", "[export]: formats[1]: expected str, got int"),
        (LEAST + "[export]\nformat = ['onnx']\n", "[export]: unknown key 'format'; did you mean 'formats'?"),
        (LEAST + "[export.onxx]\nweights = 'int8'\n", "[export.onxx] is no exported format; did you mean 'onnx'?"),
        (LEAST + "[verify]\nsamples = 0\n", "[verify]: samples: expected int >= 1"),
        (LEAST + "[verify]\nsamples = true\n", "[verify]: samples: expected int | null, got bool"),
        (LEAST + "[verify]\nbackends = 'onnxruntime'\n", "[verify]: backends: expected array, got str"),
        (LEAST + "[verify]\nmax_sise = 1\n", "[verify]: unknown key 'max_sise'; did you mean 'max_size'?"),
        (LEAST + "[verify]\nmax_size = 'big'\n", "'big' is no size"),
        (LEAST + "[verify]\nmin_metric = '1'\n", "[verify]: min_metric: expected float | null, got str"),
        (LEAST + "[verify]\nmin_agreement = 2\n", "min-agreement is a share of 0 to 1"),
        (LEAST + "[verify.tolerances]\nlayer_shares = 1\n", "[verify.tolerances]: unknown tolerance 'layer_shares'"),
    ],
)
def test_what_is_wrong_in_a_pipeline_file_is_told_in_a_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.toml").write_text(text)
    result = invoke("run", tmp_path / "p.toml")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr
    assert not (tmp_path / "build").exists()


# --- killed at any moment ------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process is gone."""


class Steps:
    """Counts what changes files, and kills before a given one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done, self.last = 0, 10**9
        for owner, name in ((os, "replace"), (os, "unlink"), (os, "rmdir"), (os, "mkdir")):
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **more: Any) -> Any:
            if self.done >= self.last:
                raise Killed
            self.done += 1
            return change(*arguments, **more)

        return counted


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put quick stages in place of the real ones: each file says which settings it comes from."""

    def begin(config: SearchConfig, output: Path, *, begun_from: Callable[[], BegunFrom], **more: Any) -> None:
        if config.min_bits > (config.target_bits or 0):
            raise ConfigError("the budget cannot be met")
        run, begun = RunDirectory(output), begun_from()
        output.mkdir(parents=True, exist_ok=True)
        run.clear()
        run.write_begun_from(begun)
        run.write_config(config)
        resume(output)

    def resume(output: Path, **more: Any) -> None:
        run = RunDirectory(output)
        bits = str(run.read_config().target_bits).encode()
        for path in (run.last_checkpoint, run.scheme, run.summary):
            if not path.is_file():
                write_bytes(path, bits)

    def load_finished(run: Path) -> SimpleNamespace:
        return SimpleNamespace(finalize=lambda: b"model " + RunDirectory(run).last_checkpoint.read_bytes())

    def write_finalized(model: bytes, path: Path) -> None:
        write_bytes(path, model)

    def export(source: Path, output: Path, *, format: str, options: Any) -> Exported:  # noqa: A002
        write_bytes(output, format.encode() + b" of " + source.read_bytes())
        return Exported(output, output.stat().st_size, ExportReport(100))

    def verify_file(file: Path, against: Path, **more: Any) -> VerifyReport:
        report = VerifyReport.begin(str(file), str(against), file.stat().st_size, 3.0)
        for level in ("integrity", "weights", "outputs", "task"):
            report.add(level, "x", file.read_bytes().endswith(against.read_bytes()), "")
        return report

    for owner, stage in ((runs, begin), (runs, resume), (runs, load_finished), (finalized_file, write_finalized),
                         (exporting, export), (verification, verify_file)):  # fmt: skip
        monkeypatch.setattr(owner, stage.__name__, stage, raising=False)


def project(folder: Path, bits: float, *, more: str = "") -> Path:
    (folder / "p.toml").write_text(
        f'[model]\nfactory = "{DIGITS}"\n[data]\nsource = "digits"\n[search]\ntarget_bits = {bits}\n{more}'
    )
    return folder / "p.toml"


def model_of(result: PipelineResult) -> str:
    assert result.passed
    (texts,) = {path.read_text().partition(" of ")[2] for path in result.exports.values()}
    assert texts == result.finalized.read_text()
    return texts


@pytest.mark.usefixtures("stand_ins")
def test_a_run_that_was_killed_between_any_two_steps_never_gives_an_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = tmp_path / "built"
    built.mkdir()
    run_pipeline(project(built, 4.0))
    steps, kill = Steps(monkeypatch), 0
    while True:
        folder = tmp_path / f"killed {kill}"
        folder.mkdir()
        assert model_of(run_pipeline(project(folder, 4.0))) == "model 4.0"
        steps.done, steps.last = 0, kill
        try:
            result = run_pipeline(project(folder, 2.0))
        except Killed:
            steps.last = 10**9
        else:
            assert model_of(result) == "model 2.0"
            break
        for bits in (2.0, 4.0) if kill % 2 else (4.0, 2.0):
            assert model_of(run_pipeline(project(folder, bits))) == f"model {bits}"
        kill += 1
    assert kill > 20


@pytest.mark.usefixtures("stand_ins")
def test_settings_that_cannot_be_searched_fail_every_time_and_keep_what_is_there(tmp_path: Path) -> None:
    run_pipeline(project(tmp_path, 4.0))
    for _ in range(3):
        with pytest.raises(ConfigError, match="cannot be met"):
            run_pipeline(project(tmp_path, 2.0, more="min_bits = 5\n"))
    assert set(run_pipeline(project(tmp_path, 4.0)).stages.values()) == {"unchanged"}


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"place": 1, "stages": {}}', '{"place": "x", "stages": {"search": 1}}']
)
def test_an_unreadable_record_only_costs_work(tmp_path: Path, content: str) -> None:
    first = run_pipeline(project(tmp_path, 4.0))
    (first.pipeline.output / ".stages.json").write_text(content)
    (first.pipeline.output / "run" / "begun-from.json").write_text(content)
    again = run_pipeline(project(tmp_path, 4.0))
    assert model_of(again) == "model 4.0"
    assert set(again.stages.values()) == {"done"}


@pytest.mark.usefixtures("stand_ins")
def test_a_build_folder_that_was_filled_elsewhere_is_verified_again(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    result = run_pipeline(project(tmp_path / "theirs", 4.0))
    report = result.pipeline.output / "verify-onnx.json"
    bad = json.loads(report.read_text())
    for check in bad["checks"]:
        check["passed"] = False
    report.write_text(json.dumps(bad))  # and passed: true
    stages = result.pipeline.output / ".stages.json"
    record = json.loads(stages.read_text())
    record["stages"]["verify onnx"]["outputs"]["verify-onnx.json"] = files.sha256(report)
    stages.write_text(json.dumps(record))
    # A report that contradicts itself is not believed, not even here.
    again = run_pipeline(project(tmp_path / "theirs", 4.0))
    assert (again.stages["verify onnx"], again.stages["verify csq"]) == ("done", "unchanged")
    assert again.reports["onnx"].holds
    shutil.copytree(tmp_path / "theirs", tmp_path / "mine")
    assert set(run_pipeline(project(tmp_path / "mine", 4.0)).stages.values()) == {"done"}


# --- code that changes ---------------------------------------------------------------------------------------

NET = """
import importlib
from torch import nn
from parts.layers import head

def net():
    width = importlib.import_module("parts." + "late").WIDTH
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), head(width))
"""
LAYERS = "from torch import nn\n\ndef head(width):\n    return nn.Linear(width, 10)\n"


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "csqtool", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def stages_of(folder: Path) -> set[str]:
    done = command(folder, "run", "p.toml", "--json")
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout)["stages"].values())


@pytest.mark.parametrize("factory", ["source/model.py:net", "source.model:net"])
def test_a_change_of_any_module_that_was_imported_begins_again(tmp_path: Path, factory: str) -> None:
    root = tmp_path if factory.startswith("source.") else tmp_path / "source"
    (root / "parts").mkdir(parents=True)  # a package without __init__.py
    (tmp_path / "source").mkdir(exist_ok=True)
    (tmp_path / "source" / "model.py").write_text(NET)
    (root / "parts" / "layers.py").write_text(LAYERS)
    (root / "parts" / "late.py").write_text("WIDTH = 8\n")
    (root / "parts" / "unused.py").write_text("")
    settings = "epochs = 1\nfinetune_epochs = 0\nrepair = false\n[export]\nformats = ['csq']\n[verify]\nsamples = 20\n"
    text = f'[model]\nfactory = "{factory}"\n[data]\nsource = "digits"\n[search]\ntarget_bits = 3\n{settings}'
    if not factory.startswith("source."):
        # Two files of one base name: the other one's change counts, too.
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "model.py").write_text(
            "from csqtool.data import load_data\n\ndef data(): return load_data('digits')\n"
        )
        text = text.replace('"digits"', '"data/model.py:data"')
    (tmp_path / "p.toml").write_text(text)
    assert stages_of(tmp_path) == {"done"}
    (root / "parts" / "unused.py").write_text("x = 1\n")
    assert stages_of(tmp_path) == {"unchanged"}
    changed = [root / "parts" / "layers.py", root / "parts" / "late.py", tmp_path / "source" / "model.py"]
    changed += [] if factory.startswith("source.") else [tmp_path / "data" / "model.py"]
    for path in changed:
        path.write_text(path.read_text() + "\n# changed\n")
        assert command(tmp_path, "run", "p.toml", "--json").stderr.splitlines()[0] == "search …"
    assert stages_of(tmp_path) == {"unchanged"}


def test_settings_whose_search_fails_never_pass_with_the_old_model(tmp_path: Path) -> None:
    short = "pretrain_epochs = 1\nepochs = 1\nfinetune_epochs = 1\n"
    verify = "[export]\nformats = ['csq']\n[verify]\nsamples = 50\n"
    ok("run", project(tmp_path, 4.0, more=short + verify))
    for _ in range(2):
        result = invoke("run", project(tmp_path, 2.0, more=f"min_bits = 5\n{short}{verify}"))
        assert (result.exit_code, result.stderr.count("error:")) == (2, 1)
        assert "PASS" not in result.stdout


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_moments_ends_with_the_new_model(tmp_path: Path) -> None:
    short = (
        "pretrain_epochs = 1\nepochs = 1\nfinetune_epochs = 1\n[export]\nformats = ['csq']\n[verify]\nsamples = 50\n"
    )
    for kill in range(12):
        bits = (2.0, 4.0)[kill % 2]
        line = [sys.executable, "-m", "csqtool", "run", str(project(tmp_path, bits, more=short))]
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(1.5 + 0.6 * kill)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        document = json.loads(ok("run", project(tmp_path, bits, more=short), "--json").stdout)
        assert document["passed"]
        summary = RunDirectory(tmp_path / "build" / "run").read_summary()
        assert summary.target_bits == bits
        assert summary.average_precision <= bits


def test_the_facts_that_a_pipeline_writes_are_read_back(tmp_path: Path) -> None:
    facts = pipeline_runner.ExportFacts(1, 2, ["x"])
    (tmp_path / "f.json").write_text(json.dumps(documents.plain(facts)))
    assert documents.read(pipeline_runner.ExportFacts, tmp_path / "f.json") == facts
    assert "facts of an export" in ok("inspect", tmp_path / "f.json").stdout
