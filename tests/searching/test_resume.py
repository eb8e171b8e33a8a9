from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from csqtool import files, finalize
from csqtool.errors import FormatError, InputError, SearchInterrupted
from csqtool.progress import Silent
from csqtool.searching import journal, tensorboard
from csqtool.searching.checkpoint import LAST, PREVIOUS, load_checkpoint, save_checkpoint
from csqtool.searching.config import SearchConfig
from csqtool.searching.runs import begin, resume
from tests.support.commands import DIGITS, QUICK, Built, invoke, ok, wait_for

SEARCH = ["search", DIGITS, "--data", "digits", "--target-bits", "3", "--act-bits", "8", *QUICK]


@pytest.mark.long
def test_searches_killed_at_any_moment_resume_to_the_same_model_and_log(eight_bits: Built, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # Saving every millisecond, so that kills also fall into saving and into the middle of epochs.
    settings = [*SEARCH, "--checkpoint-minutes", "0.00002", "-o", run]
    command = [sys.executable, "-m", "csqtool", *map(str, settings)]
    moments = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        wait_for(run / "checkpoints" / LAST, process)
        time.sleep(moments.uniform(0, 1.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        command = [sys.executable, "-m", "csqtool", "search", "--resume", str(run)]
    ok("search", "--resume", run)
    ok("finalize", run, "-o", tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").read_bytes() == eight_bits.model.read_bytes()
    assert (run / "log.jsonl").read_text() == (eight_bits.run / "log.jsonl").read_text()


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before_with_a_warning(tmp_path: Path) -> None:
    warnings: list[str] = []
    for step in (1, 2):
        save_checkpoint(tmp_path, {"step": step})
    assert load_checkpoint(tmp_path, warnings.append) == {"step": 2}
    assert not warnings
    (tmp_path / LAST).write_bytes((tmp_path / LAST).read_bytes()[:200])
    assert load_checkpoint(tmp_path, warnings.append) == {"step": 1}
    assert len(warnings) == 1
    assert LAST in warnings[0]
    (tmp_path / PREVIOUS).write_bytes(b"")
    with pytest.raises(FormatError, match="not a readable torch file"):
        load_checkpoint(tmp_path, warnings.append)


def test_a_kill_between_the_renames_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"step": 1})
    (tmp_path / LAST).replace(tmp_path / PREVIOUS)
    assert load_checkpoint(tmp_path, lambda _: None) == {"step": 1}


def test_a_folder_of_checkpoints_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(InputError, match=f"cannot read {tmp_path}: Permission denied"):
        load_checkpoint(tmp_path, lambda _: None)


def test_a_full_disk_leaves_both_checkpoints_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, {"step": step})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="No space left on device"):
        save_checkpoint(tmp_path, {"step": 3})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["log.jsonl", "tensorboard"])
def test_a_full_disk_at_the_log_is_one_error_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def open_unless_full(file: object, *more: object, **named: object) -> object:
        return full() if Path(str(file)).name == name else open(file, *more, **named)  # type: ignore[call-overload]

    writer = SimpleNamespace(add_scalar=full, flush=full)
    monkeypatch.setattr(files, "open", open_unless_full, raising=False)
    for module in (journal, tensorboard):
        monkeypatch.setattr(module, "check_available", lambda: None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=lambda *_, **__: writer))
    result = invoke(*SEARCH, "--tensorboard", "-o", tmp_path / "run")
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert errors == [f"error: cannot write {tmp_path / 'run' / name}: No space left on device"]


def test_other_settings_on_resume_are_refused_with_the_difference(eight_bits: Built) -> None:
    result = invoke("search", "--resume", eight_bits.run, "--epochs", 99, "--seed", 0)
    assert result.exit_code == 2
    assert "was begun with epochs 2, not 99" in result.stderr
    assert "seed" not in result.stderr


def test_the_settings_it_was_begun_with_may_be_repeated_on_resume(eight_bits: Built) -> None:
    assert json.loads(ok("search", "--resume", eight_bits.run, "--epochs", 2, "--json").stdout)["metric"] > 0


def test_resuming_with_an_option_of_another_method_is_refused(eight_bits: Built) -> None:
    result = invoke("search", "--resume", eight_bits.run, "--scheme", "s.json")
    assert result.exit_code == 2
    assert "--scheme is not an option of csq" in result.stderr


def test_a_run_that_recorded_settings_of_other_methods_still_finalizes(eight_bits: Built, tmp_path: Path) -> None:
    run = shutil.copytree(eight_bits.run, tmp_path / "run")
    recorded = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**recorded, "scheme": None}))
    ok("finalize", run, "-o", tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").read_bytes() == eight_bits.model.read_bytes()


def test_a_second_process_in_a_run_directory_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "csqtool", *map(str, [*SEARCH, "-o", run])], stderr=subprocess.DEVNULL
    )
    try:
        wait_for(run / "config.json", process)
        os.kill(process.pid, signal.SIGSTOP)
        result = invoke("search", "--resume", run)
        assert result.exit_code == 2
        assert "another process is at work in" in result.stderr
    finally:
        process.kill()
        process.wait()


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = invoke(*SEARCH, "-o", run, "--learning-rate", "1e30")
    assert result.exit_code == 2
    error = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(error) == 1
    assert "the loss became nan in float epoch 1, batch" in error[0]
    assert "lower the learning rates" in error[0]
    assert not (run / "summary.json").exists()


def test_sigterm_saves_the_state_as_ctrl_c_does(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "csqtool", *map(str, [*SEARCH, "-o", run])], stderr=subprocess.PIPE, text=True
    )
    wait_for(run / "log.jsonl", process)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "state saved, continue with: csqtool search --resume" in errors
    assert (run / "checkpoints" / "last.pt").is_file()


NOISY = """
import random
import numpy as np
from csqtool.data import load_data

class Noisy:
    def __init__(self, base):
        self.base = base

    def __len__(self):
        return 128

    def __getitem__(self, index):
        x, y = self.base[index]
        return x + np.float32(0.1 * np.random.rand() + 0.1 * random.random()), y

def noisy():
    source = load_data("digits")
    return Noisy(source.train), source.test
"""


def test_data_that_draw_from_numpy_and_random_resume_to_the_same_model(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text(NOISY)
    config = SearchConfig.make(model=DIGITS, data=f"{tmp_path}/data.py:noisy", target_bits=3, batch_size=16,
                               pretrain_epochs=1, epochs=1, finetune_epochs=1)  # fmt: skip

    class Interrupting(Silent):
        def step(self, stage: str, done: int, total: int, facts: dict[str, float]) -> None:
            if (stage, done) == ("search", 5):
                os.kill(os.getpid(), signal.SIGINT)

    begin(config, tmp_path / "whole")
    with pytest.raises(SearchInterrupted):
        begin(config, tmp_path / "stopped", progress=Interrupting())
    np.random.seed(99)
    random.seed(99)
    resume(tmp_path / "stopped")
    for run in ("whole", "stopped"):
        finalize(tmp_path / run, tmp_path / f"{run}.safetensors")
    assert (tmp_path / "whole.safetensors").read_bytes() == (tmp_path / "stopped.safetensors").read_bytes()
