from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from csqtool.files import locked
from csqtool.searching.run_directory import RunDirectory
from tests.support.commands import invoke, ok
from tests.support.pipelines import project

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


@pytest.mark.parametrize(
    "factory",
    [
        pytest.param("source/model.py:net", marks=pytest.mark.long),
        pytest.param("source.model:net", marks=pytest.mark.slow),
    ],
)
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


@pytest.mark.parametrize(
    "act_bits", [pytest.param("8", marks=pytest.mark.long), pytest.param("float", marks=pytest.mark.slow)]
)
def test_a_pipeline_with_layers_kept_in_float_passes(tmp_path: Path, act_bits: str) -> None:
    bits = "act_bits = 8\n" if act_bits == "8" else ""
    short = f"{bits}pretrain_epochs = 1\nepochs = 1\nfinetune_epochs = 1\nexclude = ['stem.*', 'mix.*']\n"
    result = ok("run", project(tmp_path, 4.0, more=f"{short}[verify]\nsamples = 50\n"), "--json")
    assert json.loads(result.stdout)["passed"]


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_moments_ends_with_the_new_model(tmp_path: Path) -> None:
    short = (
        "pretrain_epochs = 1\nepochs = 1\nfinetune_epochs = 1\n[export]\nformats = ['csq']\n[verify]\nsamples = 50\n"
    )
    for kill in range(50):
        bits = (2.0, 4.0)[kill % 2]
        line = [sys.executable, "-m", "csqtool", "run", str(project(tmp_path, bits, more=short))]
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(1.5 + 0.15 * kill)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        document = json.loads(ok("run", project(tmp_path, bits, more=short), "--json").stdout)
        assert document["passed"]
        summary = RunDirectory(tmp_path / "build" / "run").read_summary()
        assert summary.target_bits == bits
        assert summary.average_precision <= bits


def test_a_second_process_in_a_pipelines_output_is_refused(tmp_path: Path) -> None:
    pipeline = project(tmp_path, 3.0)
    with locked(tmp_path / "build", "busy"):
        result = invoke("run", pipeline)
    assert result.exit_code == 2
    assert "error: another process is at work in" in result.stderr
    assert not (tmp_path / "build" / "run").exists()
