from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from csqtool.errors import FormatError
from csqtool.finalized_file import read_finalized
from csqtool.progress import Silent
from csqtool.searching.config import SearchConfig
from csqtool.searching.run_directory import RunDirectory, read_log
from csqtool.searching.runs import begin, load_finished, resume
from tests.support.commands import DIGITS, Built, invoke, ok

QUICK = ["--epochs", 0.1, "--batch-size", 64]


def finalized(run: Path) -> bytes:
    """Return the integers of a run."""
    ok("finalize", run, "-o", run.parent / "finalized.safetensors")
    return b"".join(layer.q.tobytes() for layer in read_finalized(run.parent / "finalized.safetensors").layers)


@pytest.fixture
def copied(eight_bits: Built, tmp_path: Path) -> Path:
    return Path(shutil.copytree(eight_bits.run, tmp_path / "run"))


def test_a_run_may_be_finetuned_into_its_own_directory(copied: Path, tmp_path: Path) -> None:
    shutil.copytree(copied, tmp_path / "same")
    elsewhere = json.loads(ok("finetune", copied, *QUICK, "-o", tmp_path / "elsewhere", "--json").stdout)
    in_place = json.loads(ok("finetune", copied, *QUICK, "-o", copied, "--overwrite", "--json").stdout)
    assert {**in_place, "seconds": 0} == {**elsewhere, "seconds": 0}
    assert finalized(copied) == finalized(tmp_path / "elsewhere")


def test_a_search_may_start_from_the_files_of_the_run_that_it_replaces(copied: Path) -> None:
    scheme = json.loads((copied / "scheme.json").read_text())
    ok("search", DIGITS, "--data", "digits", "--target-bits", 3, "--method", "lsq", "--scheme", copied / "scheme.json",
       "--weights", copied / "float.safetensors", *QUICK, "-o", copied, "--overwrite")  # fmt: skip
    found = json.loads((copied / "scheme.json").read_text())
    assert [entry["mask"] for entry in found] == [entry["mask"] for entry in scheme]


@pytest.mark.parametrize("how", ["moved", "copied", "seen from another folder"])
def test_a_finetuning_run_finalizes_to_the_same_integers_wherever_it_is(
    how: str, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ok("finetune", "run", *QUICK, "-o", "tuned")
    wanted = finalized(Path("tuned"))
    place = tmp_path / "tuned"
    if how == "moved":
        place = Path(shutil.move(tmp_path / "tuned", tmp_path / "elsewhere"))
    elif how == "copied":
        place = Path(shutil.copytree(tmp_path / "tuned", tmp_path / "deep" / "elsewhere"))
        (tmp_path / "tuned" / "start.safetensors").unlink()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    shutil.rmtree(copied)  # it needs nothing of the run that it comes from
    assert finalized(place) == wanted


def test_every_changed_bit_of_a_checkpoint_is_noticed(copied: Path) -> None:
    path = copied / "checkpoints" / "last.pt"
    (copied / "checkpoints" / "previous.pt").unlink()
    content = path.read_bytes()
    whole = torch.load(path, weights_only=True)
    noticed = 0
    for bit in range(0, 8 * len(content), 8 * len(content) // 60):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            state = load_finished(copied).session.training.state()
        except FormatError:
            noticed += 1
            continue
        changed = [name for name, value in whole["net"].items() if not torch.equal(state["net"][name], value)]
        assert not changed, (bit // 8, changed)
    assert noticed > 50  # the others are in bytes that nothing reads


def test_a_scheme_of_another_search_is_refused_at_finalize(copied: Path, tmp_path: Path) -> None:
    scheme = json.loads((copied / "scheme.json").read_text())
    scheme[0]["mask"] = "00000001"
    (copied / "scheme.json").write_text(json.dumps(scheme))
    result = invoke("finalize", copied, "-o", tmp_path / "m.safetensors")
    assert result.exit_code == 2
    assert "scheme.json and the last checkpoint are of different searches" in result.stderr
    assert not (tmp_path / "m.safetensors").exists()


def test_a_checkpoint_with_planes_that_no_search_has_is_refused(copied: Path) -> None:
    path = copied / "checkpoints" / "last.pt"
    state = torch.load(path, weights_only=True)
    state["scheme"]["stem.0.weight"] = list(range(3000))  # would take gigabytes
    torch.save(state, path)
    with pytest.raises(FormatError, match="a plane of its scheme is none that a search has"):
        load_finished(copied)


def test_a_log_whose_last_line_was_cut_off_is_read_up_to_there(copied: Path) -> None:
    log = copied / "log.jsonl"
    whole = read_log(log)
    log.write_bytes(log.read_bytes()[:-10])
    assert read_log(log) == whole[:-1]


def test_a_metric_that_is_not_finite_leaves_a_log_that_is_read(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.append_log({"stage": "search", "epoch": 1, "loss": 0.5, "metric_soft": float("nan")})
    (entry,) = directory.read_log()
    assert (entry.loss, entry.metric_soft) == (0.5, None)


def test_a_damaged_line_of_a_log_is_named(copied: Path) -> None:
    log = copied / "log.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("\n".join([lines[0], '{"stage": 5}', *lines[1:], ""]))
    with pytest.raises(FormatError, match=r"line 2: stage: expected str, got int"):
        read_log(log)


class StopsWhileSettling(Silent):
    """Sends SIGTERM to this process when the scheme is being settled."""

    sent = False

    def line(self, text: str) -> None:
        if text.startswith("settling") and not self.sent:
            self.sent = True
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_while_the_scheme_settles_stops_there_and_resumes_to_the_same_model(tmp_path: Path) -> None:
    from csqtool.errors import SearchInterrupted

    config = SearchConfig.make(
        model=DIGITS, data="digits", target_bits=3, pretrain_epochs=1, epochs=1, finetune_epochs=0.2, batch_size=64
    )
    whole = begin(config, tmp_path / "whole")
    with pytest.raises(SearchInterrupted):
        begin(config, tmp_path / "stopped", progress=StopsWhileSettling())
    assert not (tmp_path / "stopped" / "summary.json").exists()
    assert all(entry.stage != "settle" for entry in RunDirectory(tmp_path / "stopped").read_log())
    resumed = resume(tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "losses.jsonl").exists()
    assert resumed.scheme == whole.scheme
    assert resumed.metric == whole.metric
    assert resumed.finalize().layers[0].q.tobytes() == whole.finalize().layers[0].q.tobytes()


def test_a_new_search_begins_in_a_folder_without_anything_of_the_old_one(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    files = [path for path in vars(run).values() if path != run.path and path.suffix]
    assert len(files) >= 9
    for path in (*files, run.tensorboard / "events", run.path / "mine.txt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("old")
    run.clear()
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "mine.txt"]
    assert list(run.checkpoints.iterdir()) == []


def test_a_module_that_changed_since_the_search_is_refused(tmp_path: Path) -> None:
    source = "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    (tmp_path / "net.py").write_text(source)
    config = SearchConfig.make(
        model=f"{tmp_path}/net.py:net", data="digits", target_bits=3, epochs=0.1, finetune_epochs=0
    )
    begin(config, tmp_path / "run")
    (tmp_path / "net.py").write_text(source.replace("nn.Linear(64, 10)", "nn.Linear(64, 8), nn.Linear(8, 10)"))
    result = invoke("finalize", tmp_path / "run", "-o", tmp_path / "m.safetensors")
    assert result.exit_code == 2
    assert "the last checkpoint does not fit config.json and the model" in result.stderr
    assert not (tmp_path / "m.safetensors").exists()
