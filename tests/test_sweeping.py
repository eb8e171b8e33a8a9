"""Sweeps: what they run, that they go on, and what they pick."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

import csqtool
from csqtool.errors import CheckFailed, ConfigError, InputError
from csqtool.progress import Told
from csqtool.sweeping.plan import Plan, SweepDirectory, compose, inputs_of
from csqtool.sweeping.result import Outcome, SweepResult, SweepRow
from csqtool.sweeping.runner import read_sweep
from sample_models.digits_cnn.model import digits_cnn
from tests.support.commands import DIGITS, invoke, ok, wait_for

SWEEP = ["sweep", DIGITS, "--data", "digits", "--batch-size", 64, "--pretrain-epochs", 1, "--epochs", 0.3,
         "--finetune-epochs", 0.2]  # fmt: skip
COMMON: dict[str, Any] = {"model": DIGITS, "data": "digits"}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweeps") / "s"
    ok(*SWEEP, "--methods", "lsq,entropy", "--target-size", "9KB,2KB", "--jobs", 2, "-o", folder)
    return folder


def test_methods_of_fixed_bits_train_as_long_as_others_search_and_finetune() -> None:
    plan = compose({**COMMON, "epochs": 3, "finetune_epochs": 7}, methods=["csq", "lsq"], target_bits=[2, 3])
    epochs = {name: (run["epochs"], run.get("finetune_epochs")) for name, run in plan.runs.items()}
    assert epochs == {"csq-2bits-seed0": (3, 7), "csq-3bits-seed0": (3, 7), "lsq-2bits-seed0": (10, None),
                      "lsq-3bits-seed0": (10, None)}  # fmt: skip
    usual = compose(COMMON, methods=["lsq"], target_bits=[2]).runs["lsq-2bits-seed0"]
    assert usual["epochs"] == 40


def test_an_option_goes_to_the_methods_that_have_it() -> None:
    runs = compose({**COMMON, "strength": 0.5}, methods=["lsq", "csq", "csq+entropy"], target_sizes=["9KB"]).runs
    assert "strength" not in runs["lsq-9KB-seed0"]
    assert runs["csq-9KB-seed0"]["strength"] == runs["csq+entropy-9KB-seed0"]["strength"] == 0.5
    assert runs["csq+entropy-9KB-seed0"]["finetune_with"] == "entropy"


@pytest.mark.parametrize(
    ("settings", "lists", "message"),
    [
        ({"strength": 0.5}, {"methods": ["lsq"], "target_bits": [2]}, "strength is not an option of lsq"),
        ({"stength": 0.5}, {"methods": ["lsq"], "target_bits": [2]}, "unknown key 'stength'"),
        ({}, {"methods": ["lsq"]}, "at least one budget"),
        ({}, {"methods": [], "target_bits": [2]}, "at least one method"),
        ({}, {"methods": ["lsq"], "target_bits": [2], "seeds": []}, "at least one seed"),
        ({}, {"methods": ["lsq"], "target_bits": [2, 2]}, "lsq-2bits-seed0 is asked for twice"),
        ({}, {"methods": ["lsq+csq"], "target_bits": [2]}, "'lsq\\+csq' is no method of a sweep"),
        ({}, {"methods": ["csq+bsq"], "target_bits": [2]}, "'csq\\+bsq' is no method of a sweep"),
        ({}, {"methods": ["lsqq"], "target_bits": [2]}, "did you mean 'lsq'"),
        ({}, {"methods": ["entropy"], "target_bits": [2]}, "entropy trains for the packed file's bytes"),
        ({"method": "lsq"}, {"methods": ["lsq"], "target_bits": [2]}, "method is one of the lists of a sweep"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_it_begins(
    settings: dict[str, Any], lists: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        compose({**COMMON, **settings}, **lists)


def test_a_run_gives_what_the_same_search_gives_alone(swept: Path, tmp_path: Path) -> None:
    alone = ["search", DIGITS, "--data", "digits", "--batch-size", 64, "--pretrain-epochs", 1, "--epochs", 0.5,
             "--method", "lsq", "--target-size", "9KB", "-o", tmp_path / "run"]  # fmt: skip
    ok(*alone)
    ok("finalize", tmp_path / "run", "-o", tmp_path / "m.safetensors")
    ok("pack", tmp_path / "m.safetensors", "-o", tmp_path / "m.csq")
    assert (swept / "files" / "lsq-9KB-seed0.csq").read_bytes() == (tmp_path / "m.csq").read_bytes()


def stages(folder: Path, name: str) -> set[str]:
    return {json.loads(line)["stage"] for line in (folder / "runs" / name / "log.jsonl").read_text().splitlines()}


def test_float_training_is_done_once(swept: Path) -> None:
    assert stages(swept, "lsq-9KB-seed0") == {"float", "train"}
    assert stages(swept, "entropy-9KB-seed0") == {"train"}


def test_a_seed_that_is_added_later_starts_from_the_same_float_model(swept: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(swept, tmp_path / "s")
    ok(*SWEEP, "--methods", "lsq", "--target-size", "9KB", "--seeds", 1, "-o", folder)
    assert stages(folder, "lsq-9KB-seed1") == {"train"}
    started, trained = (folder / "runs" / f"lsq-9KB-seed{seed}" / "float.safetensors" for seed in (1, 0))
    assert started.read_bytes() == trained.read_bytes()


def test_a_budget_that_cannot_be_met_is_told_and_stops_no_other_run(swept: Path) -> None:
    rows = {row.name: row for row in read_sweep(swept).rows}
    assert {name for name, row in rows.items() if row.summary} == {"lsq-9KB-seed0", "entropy-9KB-seed0"}
    for name in ("lsq-2KB-seed0", "entropy-2KB-seed0"):
        outcome = rows[name].outcome
        assert outcome is not None
        assert "the budget of 2,000 bytes cannot be met" in str(outcome.problem)
    assert "| entropy | 2KB | float | 0 of 1 | not done: the budget of 2,000 bytes" in (swept / "table.md").read_text()


def test_a_finished_run_is_not_repeated_and_other_settings_are_refused(swept: Path) -> None:
    before = (swept / "runs" / "lsq-9KB-seed0" / "summary.json").stat().st_mtime_ns
    again = ok(*SWEEP, "--methods", "lsq", "--target-size", "9KB", "-o", swept)
    assert "started" not in again.stderr
    assert (swept / "runs" / "lsq-9KB-seed0" / "summary.json").stat().st_mtime_ns == before
    assert "| entropy | 9KB |" in again.stdout  # runs of an earlier plan stay
    other = invoke(*SWEEP, "--methods", "lsq", "--target-size", "9KB", "--learning-rate", 0.5, "-o", swept)
    assert other.exit_code == 2
    assert "was begun with learning_rate 0.05, not 0.5" in other.stderr


@pytest.mark.parametrize("model", ["ultralytics:yolov8n.yaml", "timm:resnet18", "package.module:build"])
def test_a_network_of_a_library_or_package_is_known_by_no_file_of_its_own(model: str) -> None:
    plan = compose({"model": model, "data": "digits"}, methods=["lsq"], target_bits=[2])
    found = inputs_of(plan.runs["lsq-2bits-seed0"])
    assert not [what for what in found if what.startswith("the file")]


@pytest.mark.long
def test_changed_inputs_are_refused(tmp_path: Path) -> None:
    model = tmp_path / "m.py"
    model.write_text("from sample_models.digits_cnn.model import digits_cnn as build\n")
    given: dict[str, Any] = {"methods": "lsq", "data": "digits", "epochs": 0.1, "finetune_epochs": 0, "jobs": 1}
    csqtool.sweep(f"{model}:build", tmp_path / "s", target_bits=2, **given)
    model.write_text(model.read_text() + "# another one\n")
    with pytest.raises(ConfigError, match=r"m\.py has changed since the sweep in .* was begun"):
        csqtool.sweep(f"{model}:build", tmp_path / "s", target_bits=3, **given)


def test_the_picture_and_the_report_show_every_method(swept: Path, tmp_path: Path) -> None:
    texts = [text.text for text in ET.parse(swept / "front.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert {"lsq", "entropy", "packed file, kB"} <= set(texts)
    ok("report", swept, "-o", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert '<section id="sweeps">' in page
    assert "entropy-9KB-seed0" in page


def test_the_smallest_file_within_the_limit_is_copied(swept: Path, tmp_path: Path) -> None:
    found = ok("best", swept, "--max-drop", 100, "-o", tmp_path / "m.safetensors")
    sizes = {path.stem: path.stat().st_size for path in (swept / "files").glob("*.csq")}
    name = min(sizes, key=lambda one: sizes[one])
    assert found.stdout.startswith(name)
    assert (tmp_path / "m.safetensors").read_bytes() == (swept / "files" / f"{name}.safetensors").read_bytes()


def row(name: str, size: int, metric: float, metric_float: float | None = 0.9) -> SweepRow:
    from csqtool.searching.records import Summary

    summary = Summary("lsq", 2, None, "elements", 2, 2, 2, 3, None, "accuracy", metric_float, metric, metric, metric, 1)
    settings = {"method": "lsq", "target_bits": 2}
    return SweepRow(name, settings, Outcome(summary=summary, metric=metric, bytes=size), Path(name), Path(name))


def test_the_front_has_no_run_that_another_one_beats() -> None:
    rows = [row("a", 50, 0.80), row("b", 60, 0.89), row("c", 70, 0.85), row("d", 80, 0.91), row("e", 60, 0.88)]
    found = SweepResult(Path("s"), tuple(rows))
    assert [one.name for one in found.front] == ["a", "b", "d"]
    assert found.best(max_drop=1.0).name == "b"
    assert found.best(max_drop=0.0).name == "d"
    assert found.best(max_drop=15).name == "a"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no run is finished"),
        ([row("a", 50, 0.8, None)], "the float model was not measured"),
        ([row("a", 50, 0.8)], r"no file is within 0.5 % of the float model's 0.9000; the best, a, has 0.8000"),
    ],
)
def test_no_file_within_the_limit_is_an_error(rows: list[SweepRow], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SweepResult(Path("s"), tuple(rows)).best(max_drop=0.5)


def test_a_module_is_swept_in_this_process(tmp_path: Path) -> None:
    told: list[str] = []
    found = csqtool.sweep(
        digits_cnn(), tmp_path / "s", methods="lsq", target_bits=[2, 3], data="digits", pretrain_epochs=0.1, epochs=0.1,
        finetune_epochs=0, progress=Told(told.append),
    )  # fmt: skip
    assert [one.name for one in found.finished] == ["lsq-2bits-seed0", "lsq-3bits-seed0"]
    assert stages(tmp_path / "s", "lsq-2bits-seed0") == {"float", "train"}
    assert stages(tmp_path / "s", "lsq-3bits-seed0") == {"train"}
    assert csqtool.best(tmp_path / "s", max_drop=100).packed.is_file()
    with pytest.raises(InputError, match="jobs must be 1"):
        csqtool.sweep(digits_cnn(), tmp_path / "t", target_bits=2, data="digits", jobs=2)


@pytest.mark.long
def test_a_process_that_dies_is_told_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "import os, pathlib\n"
        "from sample_models.digits_cnn.model import digits_cnn\n"
        "def build():\n"
        f"    mark = pathlib.Path({str(tmp_path / 'died')!r})\n"
        "    if not mark.exists():\n"
        "        mark.touch()\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return digits_cnn()\n"
    )
    given: dict[str, Any] = {"methods": "lsq", "target_bits": 2, "data": "digits", "epochs": 0.1, "finetune_epochs": 0}
    with pytest.raises(CheckFailed, match="1 of 1 runs did not end: lsq-2bits-seed0 ended by signal 9"):
        csqtool.sweep(f"{tmp_path / 'm.py'}:build", tmp_path / "s", jobs=1, **given)
    assert csqtool.sweep(f"{tmp_path / 'm.py'}:build", tmp_path / "s", jobs=1, **given).finished


def begun(folder: Path, *, epochs: float) -> subprocess.Popen[bytes]:
    """Start a sweep of two runs, and wait until both train."""
    process = subprocess.Popen(
        [sys.executable, "-m", "csqtool", *map(str, SWEEP[:6]), "--pretrain-epochs", "0", "--epochs", str(epochs),
         "--finetune-epochs", "0", "--methods", "lsq,entropy", "--target-size", "9KB", "--jobs", "2", "-o",
         str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for method in ("lsq", "entropy"):
        wait_for(folder / "runs" / f"{method}-9KB-seed0" / "checkpoints" / "last.pt", process)
    return process


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGKILL, marks=pytest.mark.slow), pytest.param(signal.SIGTERM, marks=pytest.mark.slow)],
)
def test_a_stopped_sweep_goes_on_to_the_same_files(number: signal.Signals, tmp_path: Path) -> None:
    whole = begun(tmp_path / "whole", epochs=4)
    assert whole.wait(300) == 0
    process = begun(tmp_path / "s", epochs=4)
    os.kill(process.pid, number)
    assert process.wait(60) == (130 if number == signal.SIGTERM else -number)
    assert not any(path.exists() for path in (tmp_path / "s" / "results").glob("*.json"))
    assert begun(tmp_path / "s", epochs=4).wait(300) == 0
    names = sorted(path.name for path in (tmp_path / "whole" / "files").iterdir())
    assert len(names) == 4
    for name in names:
        assert (tmp_path / "s" / "files" / name).read_bytes() == (tmp_path / "whole" / "files" / name).read_bytes()


def test_one_sweep_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    with SweepDirectory(tmp_path).locked():
        refused = invoke(*SWEEP, "--methods", "lsq", "--target-size", "9KB", "-o", tmp_path)
    assert refused.exit_code == 2
    assert "another sweep is at work in" in refused.stderr


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".x", "a" * 101])
def test_a_plan_from_a_file_cannot_name_other_places(name: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": {name: {}}}))
    with pytest.raises(ConfigError, match="cannot name a run"):
        SweepDirectory(tmp_path).read_plan()


def test_a_plan_from_a_file_without_a_method_or_with_a_setting_less_is_refused(tmp_path: Path) -> None:
    directory = SweepDirectory(tmp_path)
    plan = compose({"model": DIGITS, "data": "digits"}, methods=["lsq"], target_bits=[3.0])
    (name, settings), *_ = plan.runs.items()
    for less, message in (("method", "method is missing"), ("task", f"the run {name} .* was begun with task")):
        fewer = {key: value for key, value in settings.items() if key != less}
        directory.plan.write_text(json.dumps({"runs": {name: fewer}}))
        with pytest.raises(InputError, match=message):
            directory.begin(Plan({name: settings}))
