from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from csqtool.processes import Processes
from tests.support.commands import DIGITS, ok

SCRIPT = Path(__file__).with_name("processes_script.py")
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def started(*arguments: object, succeeds: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode == 0) == succeeds, done.stderr
    return done


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what one process measured, and what two did."""
    folder = tmp_path_factory.mktemp("measured")
    for name, launcher in (("one", []), ("two", TWO)):
        (folder / name).mkdir()
        started(*launcher, SCRIPT, "measurements", DIGITS, folder / name)
    return folder


@pytest.mark.long
def test_two_processes_get_the_gradients_of_one_and_its_running_statistics(measured: Path) -> None:
    one, two = (load_file(measured / folder / "step.safetensors") for folder in ("one", "two"))
    assert (int(one.pop("processes")), int(two.pop("processes"))) == (1, 2)
    assert one.keys() == two.keys()
    assert any(name.endswith("m_b") for name in one)
    for name, value in one.items():
        # A layer's scale in front of BatchNorm has no influence: its gradient is rounding noise alone.
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max()) + 2e-7, msg=name)


@pytest.mark.long
def test_two_processes_share_an_evaluation_out_and_get_the_metric_of_one(measured: Path) -> None:
    (samples, metric), *shares = (
        (measured / file).read_text().split() for file in ("one/process0.txt", "two/process0.txt", "two/process1.txt")
    )
    assert int(samples) == 450
    assert [int(seen) for seen, _ in shares] == [226, 224]  # 113 batches: fours, the last of two
    assert [found for _, found in shares] == [metric, metric]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run of a search by two processes; what each ended with lies beside it."""
    run = tmp_path_factory.mktemp("searched") / "run"
    started(*TWO, SCRIPT, "search", DIGITS, run)
    return run


@pytest.mark.long
def test_two_processes_end_with_the_same_integers_and_one_of_them_writes(searched: Path) -> None:
    ends = [(searched.parent / f"run-process{i}.txt").read_text() for i in range(2)]
    assert len(ends[0]) == 64
    assert ends[0] == ends[1]
    lines = (searched / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["stage"] for line in lines] == ["float", "search", "settle", "finetune"]


@pytest.mark.slow
def test_two_killed_processes_resume_to_the_model_of_two_that_were_not(searched: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    started(*TWO, SCRIPT, "killed", DIGITS, killed, succeeds=False)
    assert len((killed / "log.jsonl").read_text().splitlines()) == 1  # the float epoch; the search was under way
    started(*TWO, "-m", "csqtool", "search", "--resume", killed)
    for run in (searched, killed):
        ok("finalize", run, "-o", tmp_path / f"{run.name}.safetensors")
    assert (tmp_path / "killed.safetensors").read_bytes() == (tmp_path / "run.safetensors").read_bytes()
    assert (killed / "log.jsonl").read_text() == (searched / "log.jsonl").read_text()


@pytest.mark.long
def test_torchrun_runs_the_command_line_and_one_process_prints(tmp_path: Path) -> None:
    done = started(*TWO, "-m", "csqtool", "search", DIGITS, "--data", "digits", "--target-bits", 3, "--epochs", 0.2,
                   "--finetune-epochs", 0, "--batch-size", 256, "-o", tmp_path / "run", "--json")  # fmt: skip
    assert json.loads(done.stdout) == json.loads((tmp_path / "run" / "summary.json").read_text())


def test_each_sample_is_one_process_s_and_weighs_the_same() -> None:
    alone = Processes(cpu=True)
    for samples in range(2, 12):
        for count in range(1, samples + 1):
            found: list[int] = []
            total = 0.0
            for index in range(count):
                process = object.__new__(Processes)
                process.count, process.index = count, index
                mine, weight = process.share(samples)
                found += range(samples)[mine]
                total += weight
                assert weight == len(range(samples)[mine]) / samples
            assert sorted(found) == list(range(samples))
            assert abs(total - 1) < 1e-12
    assert alone.share(5) == (slice(0, None, 1), 1.0)
