"""Files with a defect each: every command ends with one line, in seconds and in bounded memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from csqtool.finalized_file import write_finalized
from csqtool.model_info import DataInfo, Input, ModelFactory, ModelInfo
from csqtool.nn.post_training import post_training_model
from tests.support.commands import ROOT, invoke
from tests.support.golden_bad import DEFECTS, ELSEWHERE, FOLDER, OTHERS, content, dead_nodes

CAUGHT_BY_A_LIMIT_OF_THE_PROCESS = {"loop-endless", "expand-2-to-the-40th"}


@pytest.fixture(scope="module")
def against(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finalized model of the network that the files are distorted forms of."""
    folder = tmp_path_factory.mktemp("golden_bad")
    (folder / "net.py").write_text("from torch import nn\n\ndef net():\n    return nn.Linear(4, 3, bias=False)\n")
    x, y = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32), np.zeros(8, np.int64)
    np.savez(folder / "data.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    torch.manual_seed(0)
    model = post_training_model(nn.Linear(4, 3, bias=False), [torch.from_numpy(x)], planes=4, act_bits=None)
    info = ModelInfo.of(
        model=ModelFactory("net.py:net", {}),
        data=DataInfo(source="npz:data.npz", task="classification"),
        inputs=[Input("input", (4,), "float32")],
    )
    write_finalized(dataclasses.replace(model, info=info), folder / "model.safetensors")
    return folder / "model.safetensors"


def test_the_files_are_what_the_script_writes() -> None:
    assert {path.stem for path in FOLDER.glob("*.onnx")} == set(DEFECTS)
    for name in DEFECTS:
        assert (FOLDER / f"{name}.onnx").read_bytes() == content(name), name
        assert f"`{name}.onnx`" in (FOLDER / "README.md").read_text()


def test_the_index_names_every_file_and_places_that_exist() -> None:
    index = (FOLDER / "README.md").read_text()
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.onnx" for name in DEFECTS} | {*OTHERS, "README.md"}
    assert all(f"`{name}`" in index for name in (*OTHERS, *ELSEWHERE))
    assert all((ROOT / place).is_file() for place in ELSEWHERE)


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_other_kinds_are_refused_with_one_line(name: str, tmp_path: Path) -> None:
    for command in (["inspect", FOLDER / name], ["report", FOLDER / name, "-o", tmp_path / "page.html"]):
        result = invoke(*command)
        assert result.exit_code == 2, (command, result.output)
        assert [line.startswith("error:") for line in result.stderr.splitlines()].count(True) == 1


@pytest.mark.parametrize("name", sorted(DEFECTS.keys() - CAUGHT_BY_A_LIMIT_OF_THE_PROCESS))
def test_every_command_refuses_it_with_one_line(name: str, against: Path, tmp_path: Path) -> None:
    file = FOLDER / f"{name}.onnx"
    for command in (
        ["verify", file, "--against", against],
        ["verify", file, "--against", against, "--backend", "reference"],
        ["inspect", file],
        ["report", file, "-o", tmp_path / "page.html"],
        ["bench", file, "--rounds", 1],
    ):
        result = invoke(*command)
        assert result.exit_code == 2, (command, result.output)
        assert [line.startswith("error:") for line in result.stderr.splitlines()].count(True) == 1
        assert result.stderr.splitlines()[-1].startswith("error:")


@pytest.mark.parametrize("name", sorted(CAUGHT_BY_A_LIMIT_OF_THE_PROCESS))
def test_a_graph_that_takes_too_much_is_stopped(
    name: str, against: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSQTOOL_TIME_LIMIT", "3")
    file = FOLDER / f"{name}.onnx"
    for command, exit_code in (
        (["verify", file, "--against", against], 1),
        (["verify", file, "--against", against, "--backend", "reference"], 1),
        (["inspect", file], 0),
        (["report", file, "-o", tmp_path / "page.html"], 0),
        (["bench", file, "--rounds", 1], 2),
    ):
        result = invoke(*command)
        assert result.exit_code == exit_code, (command, result.output)


def test_twenty_thousand_dead_nodes_are_refused(against: Path, tmp_path: Path) -> None:
    path = tmp_path / "dead.onnx"
    path.write_bytes(dead_nodes(20_000).SerializeToString())
    for command in (["verify", path, "--against", against], ["inspect", path], ["bench", path, "--rounds", 1]):
        result = invoke(*command)
        assert result.exit_code == 2, result.output
        assert "20000 nodes that no output needs" in result.stderr
