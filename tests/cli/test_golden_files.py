"""Every command over every golden file: what the format allows is worked on or refused in a line, and no bug."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from csqtool.finalized_file import from_tensors, read_finalized, serialize, to_tensors
from tests.support.commands import DIGITS, invoke, ok
from tests.support.csq_files import GOLDEN

# The small golden model as a module; what the file lacks of its BatchNorm, the module lacks, too.
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv1d(1, 7, 1, bias=False), nn.Module()
        self.bn.register_buffer("num_batches_tracked", torch.tensor(0))
        self.fc, self.head = nn.Linear(3, 1), nn.Linear(3, 1, bias=False)
        self.fc.bias = nn.Parameter(torch.zeros(3))
        self.head.weight = self.fc.weight
        self.register_buffer("keep", torch.zeros(3, dtype=torch.bool))

    def forward(self, x):
        return self.conv(x)[:, :3, 0] @ self.fc.weight.T + self.fc.bias

def net():
    return Net()
"""
NAMES = sorted(path.stem for path in GOLDEN.glob("*.csq"))


class Golden:
    """A golden file, the finalized model in it, and files that go with them.

    Attributes:
        name: the golden file's.
        csq: the golden file.
        model: the finalized model that was unpacked from it.
        folder: an empty folder to write into.
        net: ``--model`` of a module that fits the small model.
        data: ``--data`` that fit it.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.csq, self.model = GOLDEN / f"{name}.csq", folder / "model.safetensors"
        ok("unpack", self.csq, "-o", self.model)
        (folder / "net.py").write_text(NET)
        arrays = {"x": np.ones((4, 1, 1), np.float32), "y": np.zeros(4, np.int64)}
        np.savez(folder / "d.npz", **{f"{k}_{part}": a for k, a in arrays.items() for part in ("train", "test")})
        self.net, self.data = f"{folder}/net.py:net", f"npz:{folder}/d.npz"


@pytest.fixture(scope="module", params=NAMES)
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    return Golden(request.param, tmp_path_factory.mktemp(request.param))


Arguments = Callable[[Golden, Path], list[object]]
ON_A_MODEL: dict[str, Arguments] = {
    "inspect": lambda g, o: ["inspect", g.model],
    "inspect --json": lambda g, o: ["inspect", g.model, "--json"],
    "pack": lambda g, o: ["pack", g.model, "-o", o / "m.csq"],
    "pack --json": lambda g, o: ["pack", g.model, "-o", o / "m.csq", "--json"],
    "pack --encoding dense": lambda g, o: ["pack", g.model, "--encoding", "dense", "-o", o / "m.csq"],
    "pack --with-graph": lambda g, o: ["pack", g.model, "--with-graph", "-o", o / "m.csq"],
    "pack --float16": lambda g, o: ["pack", g.model, "--float16", "-o", o / "m.csq"],
    "pack --float16 --model": lambda g, o: ["pack", g.model, "--float16", "--model", g.net, "-o", o / "m.csq"],
    "pack --float16 --data": lambda g, o: ["pack", g.model, "--float16", "--data", g.data, "-o", o / "m.csq"],
    "pack --float16 --model --data": lambda g, o: [
        "pack", g.model, "--float16", "--model", g.net, "--data", g.data, "-o", o / "m.csq"],
    "export onnx": lambda g, o: ["export", g.model, "--format", "onnx", "-o", o / "m.onnx"],
    "export onnx --model": lambda g, o: ["export", g.model, "--format", "onnx", "--model", g.net, "-o", o / "m.onnx"],
    "export onnx of another model": lambda g, o: ["export", g.model, "--model", DIGITS, "-o", o / "m.onnx"],
    "export csq": lambda g, o: ["export", g.model, "--format", "csq", "-o", o / "m.csq"],
    "export c": lambda g, o: ["export", g.model, "--format", "c", "-o", o / "c"],
    "export c, weights": lambda g, o: ["export", g.model, "--format", "c", "--content", "weights", "-o", o / "c"],
    "diff with itself": lambda g, o: ["diff", g.model, g.model],
    "report": lambda g, o: ["report", g.model, "-o", o / "r.html"],
    "report --bench": lambda g, o: ["report", g.model, "--bench", "-o", o / "r.html"],
    "verify csq": lambda g, o: ["verify", g.csq, "--against", g.model],
    "verify csq --model": lambda g, o: ["verify", g.csq, "--against", g.model, "--model", g.net],
    "verify csq --data": lambda g, o: ["verify", g.csq, "--against", g.model, "--data", g.data],
    "verify csq --model --data": lambda g, o: [
        "verify", g.csq, "--against", g.model, "--model", g.net, "--data", g.data, "--json"],
    "verify --max-metric-drop": lambda g, o: [
        "verify", g.csq, "--against", g.model, "--model", g.net, "--data", g.data, "--max-metric-drop", 0],
}  # fmt: skip
ON_A_PACKED_FILE: dict[str, Arguments] = {
    "inspect csq": lambda g, o: ["inspect", g.csq],
    "inspect csq --json": lambda g, o: ["inspect", g.csq, "--json"],
    "unpack": lambda g, o: ["unpack", g.csq, "-o", o / "m.safetensors"],
    "unpack --json": lambda g, o: ["unpack", g.csq, "-o", o / "m.safetensors", "--json"],
    "unpack onnx": lambda g, o: ["unpack", g.csq, "-o", o / "m.onnx"],
    "report csq": lambda g, o: ["report", g.csq, "-o", o / "r.html"],
    "report csq and model": lambda g, o: ["report", g.csq, g.model, "-o", o / "r.html"],
}
# Commands that take files of another kind, and folders that are no run.
MISTAKEN: dict[str, Arguments] = {
    "pack csq": lambda g, o: ["pack", g.csq, "-o", o / "m.csq"],
    "export csq file": lambda g, o: ["export", g.csq, "-o", o / "m.onnx"],
    "unpack model": lambda g, o: ["unpack", g.model, "-o", o / "m.safetensors"],
    "diff csq": lambda g, o: ["diff", g.csq, g.csq],
    "diff csq and model": lambda g, o: ["diff", g.csq, g.model],
    "bench csq": lambda g, o: ["bench", g.csq],
    "bench model": lambda g, o: ["bench", g.model],
    "finalize csq": lambda g, o: ["finalize", g.csq, "-o", o / "m.safetensors"],
    "finalize model": lambda g, o: ["finalize", g.model, "-o", o / "m.safetensors"],
    "verify model": lambda g, o: ["verify", g.model, "--against", g.model],
    "verify against csq": lambda g, o: ["verify", g.csq, "--against", g.csq],
    **{name: lambda g, o, name=name: [name, o] for name in ("inspect", "bench")},  # type: ignore[misc]
    "diff folder": lambda g, o: ["diff", o, g.model],
    "finalize folder": lambda g, o: ["finalize", o, "-o", o / "m.safetensors"],
    "pack folder": lambda g, o: ["pack", o, "-o", o / "m.csq"],
    "unpack folder": lambda g, o: ["unpack", o, "-o", o / "m.safetensors"],
    "export folder": lambda g, o: ["export", o, "-o", o / "m.onnx"],
    "report folder": lambda g, o: ["report", o, "-o", o / "r.html"],
    "verify folder": lambda g, o: ["verify", o, "--against", g.model],
}
COMMANDS = {**ON_A_MODEL, **ON_A_PACKED_FILE}


def check(result: Result) -> Result:
    """Fail on a bug, and on an error that is not told in one line."""
    errors = [line for line in result.stderr.splitlines() if line.startswith(("error:", "failed:"))]
    assert result.exit_code in (0, 1, 2), result.output
    assert len(errors) == (result.exit_code == 2), result.output
    return result


@pytest.mark.parametrize("command", COMMANDS)
def test_a_golden_file_never_ends_a_command_as_a_bug(golden: Golden, command: str, tmp_path: Path) -> None:
    check(invoke(*COMMANDS[command](golden, tmp_path)))


@pytest.mark.parametrize("command", MISTAKEN)
def test_a_file_of_another_kind_is_refused(golden: Golden, command: str, tmp_path: Path) -> None:
    assert check(invoke(*MISTAKEN[command](golden, tmp_path))).exit_code == 2


@pytest.mark.parametrize("command", ["inspect", "pack", "export csq", "export c, weights", "diff with itself", "report",
                                     "inspect csq", "unpack", "report csq"])  # fmt: skip
def test_what_needs_nothing_but_the_file_works_on_every_golden_file(
    golden: Golden, command: str, tmp_path: Path
) -> None:
    assert check(invoke(*COMMANDS[command](golden, tmp_path))).exit_code == 0


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("export onnx", "records no factory of its module; give --model FACTORY, or model= in Python"),
        ("pack --with-graph", "records no factory of its module; give --model FACTORY, or model= in Python"),
        ("pack --float16 --data", "records no factory of its module; give --model FACTORY, or model= in Python"),
        ("verify csq --data", "records no factory of its module; give --model FACTORY, or model= in Python"),
        ("pack --float16", "records no data; give --data DATA, or data= in Python"),
    ],
)
def test_what_a_file_does_not_record_is_asked_for(golden: Golden, command: str, missing: str, tmp_path: Path) -> None:
    result = check(invoke(*COMMANDS[command](golden, tmp_path)))
    assert f"{golden.model} {missing}" in result.stderr


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    return Golden("v2-small", tmp_path_factory.mktemp("small"))


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("verify csq --model", "model.safetensors records no data"),
        ("export onnx --model", "does not record its inputs' shapes"),
        ("pack --float16 --model --data", "conv.weight: the model does not record the epsilon of its BatchNorm bn"),
        ("verify --max-metric-drop", "max-metric-drop needs the float model's metric"),
    ],
)
def test_the_small_model_lacks_what_only_some_commands_need(
    small: Golden, command: str, missing: str, tmp_path: Path
) -> None:
    result = check(invoke(*COMMANDS[command](small, tmp_path)))
    assert result.exit_code == 2
    assert missing in result.stderr


def test_the_small_model_is_verified_with_module_and_data_of_the_caller(small: Golden, tmp_path: Path) -> None:
    result = check(invoke(*COMMANDS["verify csq --model --data"](small, tmp_path)))
    assert (result.exit_code, json.loads(result.stdout)["passed"]) == (0, True)


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("onnx") / "m.onnx"
    ok("unpack", GOLDEN / "v2-graph.csq", "-o", file)
    return file


@pytest.mark.parametrize(
    "arguments",
    [["inspect", "M"], ["inspect", "M", "--json"], ["bench", "M"], ["report", "M", "-o", "R"],
     ["report", "M", "--bench", "-o", "R"], ["diff", "M", "M"], ["pack", "M", "-o", "R"], ["unpack", "M", "-o", "R"],
     ["export", "M", "-o", "R"], ["finalize", "M", "-o", "R"], ["verify", "M", "--against", "S"],
     ["verify", "M", "--against", "S", "--model", "N", "--data", "D"], ["verify", "M", "--against", "M"]],
    ids=" ".join,
)  # fmt: skip
def test_the_golden_graph_never_ends_a_command_as_a_bug(
    arguments: list[str], onnx: Path, small: Golden, tmp_path: Path
) -> None:
    names = {"M": onnx, "R": tmp_path / "r.html", "S": small.model, "N": small.net, "D": small.data}
    check(invoke(*(names.get(word, word) for word in arguments)))


# What may stand under keys that the format leaves free.
FREE = [
    {"model": 5, "data": 5, "inputs": 5, "input_shape": 5, "method": 5, "metrics": 5, "float16": 5},
    {"model": {"factory": 1, "args": []}, "data": {"task": 1}, "inputs": [{}], "method": {}, "metrics": {}},
    {"model": {"factory": "nowhere.py:net", "args": {"x": [1]}}, "data": {"source": "", "task": ""}},
    {"model": {"factory": ":"}, "data": {"source": "npz:", "task": "classification"}, "inputs": [], "input_shape": []},
    {"inputs": [{"name": "x", "shape": [-1], "dtype": "float32"}], "metrics": {"name": "m", "finalized": True}},
    {"inputs": [{"name": "", "shape": [10**30], "dtype": "float32"}], "method": {"name": "m", "seed": 10**400}},
    {"inputs": [{"name": "x", "shape": [2], "dtype": "complex64"}], "method": {"name": "m", "target_size": 5}},
    {"metrics": {"name": "m", "float": None, "finalized": 1e308, "samples": 10**30}, "method": {"name": "m"}},
    {"metrics": {"name": "\u001b[2J\n", "float": -1e308, "finalized": 0, "samples": -1}, "batch_norm_epsilon": []},
    {"batch_norm_epsilon": {"bn": "x"}}, {"batch_norm_epsilon": {"bn": 10**400}}, {"batch_norm_epsilon": {"bn": -1}},
    {"batch_norm_epsilon": {"bn": 1}}, {"batch_norm_epsilon": {"bn": True}}, {"batch_norm_epsilon": {"other": 0.1}},
    {"data": {"source": "digits", "task": "classification", "preprocessing": {"steps": 1}}},
    {"data": {"source": "digits", "task": "mine", "preprocessing": {"steps": "", "mean": [], "std": []}}},
    {"deep": json.loads("[" * 400 + "]" * 400)}, {"deep": json.loads('{"":' * 400 + "1" + "}" * 400)},
]  # fmt: skip


READING = [c for c in COMMANDS if c not in ("pack --json", "pack --encoding dense", "unpack --json", "unpack onnx",
                                            "pack --float16 --model", "report --bench", "export c",
                                            "export c, weights")]  # fmt: skip


@pytest.mark.parametrize("command", READING)
@pytest.mark.parametrize("free", FREE, ids=lambda free: json.dumps(free)[:60])
def test_nothing_under_a_free_key_ends_a_command_as_a_bug(
    free: dict[str, Any], command: str, small: Golden, tmp_path: Path
) -> None:
    tensors, metadata = to_tensors(read_finalized(small.model))
    document = {**json.loads(metadata), **free}
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    from_tensors(tensors, text, where="it")  # the format allows it
    other = Golden.__new__(Golden)
    vars(other).update(vars(small), model=tmp_path / "m.safetensors", csq=tmp_path / "m.csq")
    other.model.write_bytes(serialize(tensors, text))
    if command not in ON_A_MODEL or command.startswith("verify"):
        check(invoke("pack", other.model, "-o", other.csq))
    check(invoke(*COMMANDS[command](other, tmp_path / "out")))
