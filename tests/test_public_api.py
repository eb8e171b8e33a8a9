"""The Python interface, as a user of it sees it: every name, the whole pipeline without files, the documented lines."""

from __future__ import annotations

import ast
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import csqtool
from tests.support.commands import ROOT, Built

SETTINGS: dict[str, Any] = {"pretrain_epochs": 6, "epochs": 1, "finetune_epochs": 1, "batch_size": 32, "device": "cpu"}


class Small(nn.Module):
    """A network that is in no file: what a notebook cell defines."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.classifier = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        features = torch.relu(self.norm(self.conv(x)))
        scores: Tensor = self.classifier(features.mean((2, 3)))
        return scores


def samples(count: int, seed: int) -> TensorDataset:
    """Return images of which one class is bright and the other is dark."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=generator)
    images = torch.randn(count, 1, 6, 6, generator=generator) + 1.5 * (2 * labels - 1).view(-1, 1, 1, 1)
    return TensorDataset(images, labels)


@pytest.fixture(scope="module")
def sets() -> tuple[TensorDataset, TensorDataset]:
    return samples(192, 0), samples(64, 1)


@pytest.fixture
def nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, which has to stay empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_name_can_be_touched_twice_and_stays_what_it_is_after_importing_every_submodule() -> None:
    code = """
import importlib, pkgutil, csqtool
first = {name: getattr(csqtool, name) for name in csqtool.__all__}
for module in pkgutil.walk_packages(csqtool.__path__, "csqtool."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
for name in csqtool.__all__:
    again = getattr(csqtool, name)
    assert again is first[name], name
    assert name == "__version__" or not type(again).__name__ == "module", name
print("ok")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "ok", done.stderr


def test_no_public_function_shares_its_name_with_a_module_or_package() -> None:
    import exporters

    modules = {
        name.rpartition(".")[2]
        for package, prefix in ((csqtool, "csqtool."), (exporters, "exporters."))
        for _, name, _ in pkgutil.walk_packages(package.__path__, prefix)
    }
    functions = {name for name in csqtool.__all__ if name.islower() and not name.startswith("_")}
    assert not functions & modules


def test_dir_all_and_what_type_checkers_see_agree() -> None:
    tree = ast.parse(Path(csqtool.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed | {"__version__"} == set(csqtool.__all__) == set(dir(csqtool))
    assert all(hasattr(csqtool, name) for name in csqtool.__all__)
    assert sorted(csqtool.__all__) == csqtool.__all__


def test_importing_csqtool_imports_neither_torch_nor_onnx_nor_numpy_models() -> None:
    code = "import sys, csqtool; print([m for m in ('torch', 'onnx', 'onnxruntime', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.usefixtures("nothing_is_written")
def test_a_model_in_no_file_goes_from_float_to_verified_onnx_without_a_file_of_the_users(
    sets: tuple[TensorDataset, TensorDataset], nothing_is_written: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train, test = sets
    model = Small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = csqtool.search(model, train=train, test=test, target_bits=3, act_bits=8, **SETTINGS)
    assert found.run is None
    assert found.metric > 0.9
    assert found.average_precision <= 3
    assert set(found.bit_widths) == {"conv.weight", "classifier.weight"}
    assert [entry.stage for entry in found.log if entry.epoch] == ["float"] * 6 + ["search", "finetune"]
    quantized = found.finalize()
    assert isinstance(quantized, csqtool.QuantizedModel)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not list(nothing_is_written.iterdir())
    assert capfd.readouterr() == ("", "")

    csqtool.save(quantized, "model.safetensors")
    again = csqtool.load("model.safetensors")
    assert [layer.q.tobytes() for layer in again.layers] == [layer.q.tobytes() for layer in quantized.layers]
    written = csqtool.export(quantized, "model.onnx", model=model)
    assert written.size_bytes == Path("model.onnx").stat().st_size
    report = csqtool.verify("model.onnx", quantized, model=model, data=test)
    assert report.passed, [check for check in report.checks if not check.passed]
    assert csqtool.verify("model.onnx", "model.safetensors", model=model, data=test, max_size="60KB").passed
    csqtool.pack(quantized, "model.csq")
    assert csqtool.verify("model.csq", quantized, model=model, data=DataLoader(test, 16)).passed
    assert csqtool.unpack("model.csq").layers[0].q.tobytes() == quantized.layers[0].q.tobytes()

    net = csqtool.to_torch(quantized, model)
    assert not net.training
    images, labels = test[:]
    with torch.no_grad():
        accuracy = float((net(images).argmax(-1) == labels).float().mean())
    assert accuracy == pytest.approx(found.metric, abs=1e-6)
    weight = net.get_submodule("model.conv").weight.numpy()
    layer = quantized.layer("conv.weight")
    assert np.array_equal(weight, layer.q.astype(np.float32) * layer.scale)


def test_the_metric_of_a_module_that_was_handed_over_is_measured_before_the_search(
    sets: tuple[TensorDataset, TensorDataset],
) -> None:
    train, test = sets
    model = Small().eval()
    images, labels = test[:]
    with torch.no_grad():
        accuracy = float((model(images).argmax(-1) == labels).float().mean())
    settings = {**SETTINGS, "pretrain_epochs": 0, "epochs": 1, "finetune_epochs": 0}
    found = csqtool.search(model, train=train, test=test, target_bits=3, **settings)
    assert found.metric_float == pytest.approx(accuracy, abs=1e-6)


def test_a_run_of_objects_resumes_and_finalizes_with_the_same_objects(
    sets: tuple[TensorDataset, TensorDataset], tmp_path: Path
) -> None:
    train, test = sets
    torch.manual_seed(0)
    model = Small()
    arguments: dict[str, Any] = {"train": train, "test": test}
    found = csqtool.search(model, **arguments, target_bits=2, run=tmp_path / "run", **SETTINGS)
    assert found.run == tmp_path / "run"
    assert csqtool.search(model, **arguments, resume=tmp_path / "run").scheme == found.scheme
    one = csqtool.finalize(found)
    other = csqtool.finalize(str(tmp_path / "run"), tmp_path / "m.safetensors", model=model, **arguments)
    assert one.layers[0].q.tobytes() == other.layers[0].q.tobytes()
    assert (tmp_path / "m.safetensors").is_file()
    tuned = csqtool.finetune(found, epochs=1)
    assert tuned.run is None
    assert [entry.mask for entry in tuned.scheme] == [entry.mask for entry in found.scheme]
    assert tuned.metric > 0.9


def test_what_cannot_be_rebuilt_from_names_asks_for_the_object(
    sets: tuple[TensorDataset, TensorDataset], tmp_path: Path
) -> None:
    train, test = sets
    found = csqtool.search(Small(), train=train, test=test, target_bits=2, run=tmp_path / "run", **SETTINGS)
    quantized = found.finalize()
    with pytest.raises(csqtool.InputError, match="model="):
        csqtool.export(quantized, tmp_path / "m.onnx")
    with pytest.raises(csqtool.InputError, match="model="):
        csqtool.finalize(tmp_path / "run", data=(train, test))
    csqtool.export(quantized, tmp_path / "m.onnx", model=Small())
    with pytest.raises(csqtool.InputError, match="data="):
        csqtool.verify(tmp_path / "m.onnx", quantized, model=Small())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs a model"),
        ({"model": "x.py:y"}, "needs data"),
        ({"model": 5, "data": "digits"}, "give a torch.nn.Module"),
        ({"model": "x.py:y", "data": "digits", "target_bit": 3}, "did you mean 'target_bits'"),
        ({"model": "x.py:y", "data": "digits"}, "give either target bits, a target size or target bops"),
        ({"model": "missing.py:y", "data": "digits", "target_bits": 3}, "no such file: missing.py"),
        ({"resume": "runs/a", "run": "runs/b"}, "leave out run"),
    ],
)
def test_a_wrong_argument_is_an_input_error_that_says_what_to_do(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(csqtool.InputError, match=re.escape(message)):
        csqtool.search(**arguments)


def test_verify_takes_gates_one_by_one_or_together_but_not_both(eight_bits: Built) -> None:
    report = csqtool.verify(eight_bits.onnx, eight_bits.model, max_size=100)
    assert not report.passed
    assert [check.name for check in report.failures] == ["file size"]
    with pytest.raises(csqtool.InputError, match="not both"):
        csqtool.verify(eight_bits.onnx, eight_bits.model, gates=csqtool.Gates(max_size=1), max_size=1)
    with pytest.raises(csqtool.InputError, match="did you mean 'max_size'"):
        csqtool.verify(eight_bits.onnx, eight_bits.model, max_siz=1)


def test_the_small_verbs_do_what_the_command_line_does(eight_bits: Built, tmp_path: Path) -> None:
    assert csqtool.inspect(eight_bits.csq)["kind"] == "packed model"
    assert csqtool.diff(eight_bits.model, eight_bits.model) == []
    assert csqtool.bench(eight_bits.onnx, rounds=1)[0].ratio == 1
    assert csqtool.report(eight_bits.run, tmp_path / "r.html").is_file()
    assert {"csq", "lsq"} <= set(csqtool.methods())
    assert {"onnx", "csq", "c"} <= set(csqtool.formats())
    assert "torch" in {one.name for one in csqtool.doctor()}
    assert (tmp_path / "p" / "pipeline.toml") in csqtool.init(tmp_path / "p")


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def indented_block(docstring: str) -> str:
    """Return the lines after ``::`` of a docstring."""
    lines = docstring[docstring.index("::\n") + 3 :].splitlines()
    block = [line for line in lines if line.startswith("    ") or not line.strip()]
    return "\n".join(line[4:] for line in block[: lines.index(next(x for x in lines if x and x[0] != " "))])


@pytest.mark.parametrize("where", ["README", "docstring"])
def test_the_documented_python_runs_as_it_is_written(
    where: str, sets: tuple[TensorDataset, TensorDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train, test = sets
    if where == "README":
        blocks = python_blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    else:
        blocks = [indented_block(csqtool.__doc__ or "")]
    assert blocks
    names: dict[str, Any] = {"model": Small(), "train": train, "test": test}
    short = {**SETTINGS, "pretrain_epochs": 3}
    monkeypatch.setattr(csqtool, "search", lambda *a, _search=csqtool.search, **k: _search(*a, **{**short, **k}))
    for block in blocks:
        exec(compile(block, where, "exec"), names)
    assert Path("model.onnx").is_file()
