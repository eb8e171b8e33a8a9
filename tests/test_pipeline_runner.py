from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from csqtool import checking, documents, exporting, files, finalized_file, pipeline_stages
from csqtool.errors import ConfigError
from csqtool.exporting import Exported, ExportReport
from csqtool.files import write_bytes
from csqtool.pipeline_runner import PipelineResult, run_pipeline
from csqtool.searching import runs
from csqtool.searching.config import SearchConfig
from csqtool.searching.records import BegunFrom
from csqtool.searching.rehearsal import Estimate
from csqtool.searching.run_directory import RunDirectory
from csqtool.verifying import verification
from csqtool.verifying.findings import VerifyReport
from tests.support.commands import ok
from tests.support.pipelines import project


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
        for level in ("integrity", "structure", "weights", "outputs", "task"):
            report.add(level, "x", file.read_bytes().endswith(against.read_bytes()), "")
        return report

    for owner, stage in ((runs, begin), (runs, resume), (runs, load_finished), (finalized_file, write_finalized),
                         (exporting, export), (verification, verify_file)):  # fmt: skip
        monkeypatch.setattr(owner, stage.__name__, stage, raising=False)


def model_of(result: PipelineResult) -> str:
    assert result.passed
    (texts,) = {path.read_text().partition(" of ")[2] for path in result.exports.values()}
    assert texts == result.finalized.read_text()
    return texts


@pytest.mark.parametrize("stride", [pytest.param(3, marks=pytest.mark.long), pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("stand_ins")
def test_a_run_that_was_killed_between_any_two_steps_never_gives_an_old_model(
    stride: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        kill += stride
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


def test_the_facts_that_a_pipeline_writes_are_read_back(tmp_path: Path) -> None:
    facts = pipeline_stages.ExportFacts(1, 2, ["x"])
    (tmp_path / "f.json").write_text(json.dumps(documents.plain(facts)))
    assert documents.read(pipeline_stages.ExportFacts, tmp_path / "f.json") == facts
    assert "facts of an export" in ok("inspect", tmp_path / "f.json").stdout


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("stand_ins")
def test_a_dry_run_names_the_stages_that_a_run_then_runs_and_writes_nothing(tmp_path: Path) -> None:
    pipeline = project(tmp_path, 4.0)

    def planned_and_run() -> tuple[dict[str, str], dict[str, str]]:
        before = files_of(tmp_path)
        planned = run_pipeline(pipeline, dry_run=True)
        assert files_of(tmp_path) == before
        return planned.stages, run_pipeline(pipeline).stages

    stages = ["search", "finalize", "export onnx", "verify onnx", "export csq", "verify csq"]
    for change in ("", "", "gates", "file", "settings"):
        if change == "gates":
            pipeline.write_text(pipeline.read_text() + "[verify]\nmin_agreement = 0.5\n")
        elif change == "file":
            (tmp_path / "build" / "model.csq").write_bytes(b"damaged")
        elif change == "settings":
            pipeline.write_text(pipeline.read_text().replace("target_bits = 4.0", "target_bits = 3.0"))
        planned, done = planned_and_run()
        assert list(planned) == stages
        expected = {"to do": {"done"}, "unchanged": {"unchanged"}, "perhaps": {"done", "unchanged"}}
        assert all(done[name] in expected[state] for name, state in planned.items())
        assert "perhaps" not in planned.values() or change in ("file", "settings")
    assert planned["search"] == "to do"


@pytest.mark.usefixtures("stand_ins")
def test_the_command_prints_what_a_dry_run_finds(tmp_path: Path) -> None:
    pipeline = project(tmp_path, 4.0)
    run_pipeline(pipeline)
    (tmp_path / "build" / "export-csq.json").unlink()
    assert json.loads(ok("run", pipeline, "--dry-run", "--json").stdout)["stages"]["export csq"] == "to do"
    assert "unchanged" in ok("run", pipeline, "--dry-run").stdout


@pytest.mark.usefixtures("stand_ins")
def test_a_dry_run_tells_how_long_stages_took_and_what_a_search_would_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[SearchConfig] = []

    def estimate(config: SearchConfig) -> Estimate:
        asked.append(config)
        return Estimate({"search": 600.0}, 30.0, 0, 0)

    monkeypatch.setattr(checking, "estimate", estimate)
    monkeypatch.setattr(pipeline_stages, "time", SimpleNamespace(monotonic=count(step=100).__next__))
    pipeline = project(tmp_path, 4.0)
    run_pipeline(pipeline)
    again = ok("run", pipeline, "--dry-run", "--check").stdout
    assert again.count("2 min") == 6  # the clock goes on by 100 s at each look
    assert ("a search" in again, asked) == (False, [])  # nothing is to do
    pipeline.write_text(pipeline.read_text().replace("target_bits = 4.0", "target_bits = 3.0"))
    assert "a search" not in ok("run", pipeline, "--dry-run", "--no-check").stdout
    assert asked == []
    changed = ok("run", pipeline, "--dry-run", "--check").stdout
    assert changed.endswith("a search from its beginning takes about 10 min (search 10 min)\n")
    assert [config.target_bits for config in asked] == [3.0]
    found = json.loads(ok("run", pipeline, "--dry-run", "--check", "--json").stdout)
    assert (found["estimate"]["seconds"], found["took"]["search"]) == (600.0, 100.0)


@pytest.mark.long
def test_the_estimate_of_a_dry_run_builds_the_network_and_writes_nothing(tmp_path: Path) -> None:
    pipeline = project(tmp_path, 3.0)
    before = files_of(tmp_path)
    found = run_pipeline(pipeline, check=True, dry_run=True)
    assert found.estimate is not None
    assert found.estimate.seconds > 0
    assert files_of(tmp_path) == before
