from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from csqtool.errors import ConfigError, InputError, ModelError
from csqtool.factories import build_model, call_factory, find_source, load_factory, parse_arguments, split_spec

SOURCE = """
from dataclasses import dataclass

from torch import nn

import helper

VALUE = 7
SEEN = []


@dataclass
class Settings:
    size: int = helper.SIZE


def build(size=3, **more):
    SEEN.append(more)
    return nn.Linear(size, 1)


def number():
    return 7


def broken():
    raise KeyError("no such\\nthing")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text("SIZE = 5\n")
    (tmp_path / "model.py").write_text(SOURCE)
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("model.py:build", ("model.py", "build")),
        ("a/b.py:build", ("a/b.py", "build")),
        ("package.module:build", ("package.module", "build")),
        ("C:\\models\\model.py:build", ("C:\\models\\model.py", "build")),
    ],
)
def test_a_spec_is_split_at_its_last_colon(spec: str, parts: tuple[str, str]) -> None:
    assert split_spec(spec) == parts


@pytest.mark.parametrize("spec", ["", "model.py", ":build", "model.py:", "model.py:not a name", "model.py:a.b", "a:1"])
def test_what_names_no_factory_is_refused_with_how_to_write_it(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a factory; write path/to/file\.py:factory") as caught:
        split_spec(spec)
    assert repr(spec) in str(caught.value)


def test_a_file_is_found_from_the_working_folder_first_and_above_another_file_then(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = folder / "runs" / "a" / "model.safetensors"
    deep.parent.mkdir(parents=True)
    (folder / "runs" / "model.py").write_text("")
    (folder / "runs" / "pipeline.toml").write_text("")
    monkeypatch.chdir(deep.parent)
    with pytest.raises(InputError, match=r"no such file: model\.py"):
        find_source("model.py")
    assert find_source("model.py", near=deep).resolve() == (folder / "runs" / "model.py").resolve()
    monkeypatch.chdir(folder)
    assert find_source("model.py", near=deep) == Path("model.py")


def test_a_folder_is_no_source(folder: Path) -> None:
    (folder / "net.py").mkdir()
    with pytest.raises(InputError, match="no such file"):
        find_source(str(folder / "net.py"))


def test_a_file_imports_what_lies_beside_it_and_leaves_the_path_as_it_was(folder: Path) -> None:
    before = list(sys.path)
    settings = load_factory(f"{folder}/model.py:Settings")
    assert settings().size == 5
    assert sys.path == before


def test_files_of_one_name_in_two_folders_are_two_modules(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.py").write_text(f"def which():\n    return {name!r}\n")
    assert [call_factory(f"{tmp_path}/{name}/model.py:which", {}) for name in ("one", "two")] == ["one", "two"]


def test_a_module_is_named_by_its_dots() -> None:
    assert load_factory("collections:OrderedDict").__name__ == "OrderedDict"


@pytest.mark.parametrize(
    ("spec", "error", "said"),
    [
        (
            "no_such_package.at_all:build",
            InputError,
            r"cannot import no_such_package\.at_all: .*file\.py:build",
        ),
        ("{}/model.py:biuld", ConfigError, "defines no 'biuld'; did you mean 'build'"),
        ("{}/model.py:VALUE", ModelError, "VALUE is not callable"),
        ("{}/model.py:broken", ModelError, "raised KeyError"),
        ("{}/syntax.py:build", InputError, r"importing .*syntax\.py raised SyntaxError"),
        ("{}/raises.py:build", InputError, r"importing .*raises\.py raised ZeroDivisionError"),
        ("{}/missing.py:build", InputError, r"no such file: .*missing\.py"),
    ],
)
def test_what_cannot_be_called_says_why(folder: Path, spec: str, error: type[Exception], said: str) -> None:
    (folder / "syntax.py").write_text("def build(:\n")
    (folder / "raises.py").write_text("1 / 0\n")
    before = list(sys.path)
    with pytest.raises(error, match=said):
        call_factory(spec.format(folder), {})
    assert sys.path == before


def test_a_model_is_built_with_its_arguments(folder: Path) -> None:
    model = build_model(f"{folder}/model.py:build", {"size": 4, "bias": False})
    assert model.in_features == 4
    assert build_model(f"{folder}/model.py:build").in_features == 3


def test_an_argument_that_the_factory_does_not_take_is_its_error(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"number raised TypeError: .*size"):
        build_model(f"{folder}/model.py:number", {"size": 4})


def test_what_is_no_module_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"number returned int, not a torch\.nn\.Module"):
        build_model(f"{folder}/model.py:number")


def test_values_are_json_where_they_are_json_and_text_otherwise() -> None:
    pairs = ("a=1", "b=0.5", "c=true", "d=null", "e=[1, 2]", "f=resnet", 'g="1"', "h=", "i=x=y")
    assert parse_arguments(pairs) == {
        "a": 1, "b": 0.5, "c": True, "d": None, "e": [1, 2], "f": "resnet", "g": "1", "h": "", "i": "x=y",
    }  # fmt: skip


@pytest.mark.parametrize("pair", ["width", "=3", "two words=3", "1a=3"])
def test_a_pair_without_a_name_is_refused(pair: str) -> None:
    with pytest.raises(ConfigError, match=f"--model-arg takes name=value, got {pair!r}"):
        parse_arguments((pair,))


def test_naming_factories_imports_no_torch() -> None:
    code = "import sys, csqtool.factories; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
