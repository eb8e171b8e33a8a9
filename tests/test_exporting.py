from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from csqtool.errors import ConfigError, InputError
from csqtool.exporting import EXPORTERS, Origin, export, format_of, load_exporter
from csqtool.finalized_file import write_finalized
from tests.support.csq_files import golden_models, small_model


@pytest.mark.parametrize("name", EXPORTERS.names())
def test_every_exporter_says_what_it_is_and_its_options_have_help_and_defaults(name: str) -> None:
    kind = EXPORTERS.load(name)
    exporter = load_exporter(name)
    assert exporter.name == name
    assert exporter.description
    assert kind.suffix == "" or kind.suffix.startswith(".")
    for option in dataclasses.fields(kind.Options) if kind.Options else ():
        assert option.metadata["help"], option.name
    if kind.Options:
        kind.Options()


def test_a_format_is_known_by_the_ending_of_its_files() -> None:
    assert {suffix: format_of(Path(f"m{suffix}")) for suffix in (".onnx", ".csq")} == {".onnx": "onnx", ".csq": "csq"}
    for name in ("m", "m.tflite", "folder.c"):
        with pytest.raises(ConfigError, match=r"no format writes files that end so; give format=, or end in one of"):
            format_of(Path(name))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("onxx", None, "unknown format 'onxx'; did you mean 'onnx'"),
        ("c", {"weights": "int7"}, "the format c: unknown weights 'int7'; did you mean 'int8'?"),
        ("c", {"content": "weights", "weights": "int8"}, "--weights is for an inference"),
        ("onnx", {"wieghts": "int8"}, "unknown option 'wieghts' of the format onnx; did you mean 'weights'"),
        ("onnx", {"weights": "int5"}, "int5"),
        ("csq", {"encoding": "densest"}, "did you mean 'dense'"),
    ],
)
def test_wrong_formats_and_options_name_what_is_known(name: str, options: dict[str, Any] | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_exporter(name, options)


def test_the_encoding_of_packed_weights_is_refused_for_an_inference(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--encoding is for packed weights"):
        export(small_model(), tmp_path / "c", format="c", options={"content": "inference", "encoding": "dense"})


def test_a_format_without_options_refuses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EXPORTERS.load("c"), "Options", None)
    with pytest.raises(ConfigError, match="the format c takes no options, got 'encoding'"):
        load_exporter("c", {"encoding": "dense"})


def test_options_reach_the_exporter(tmp_path: Path) -> None:
    model, _ = golden_models()["v2-rans"]
    found = {
        encoding: export(model, tmp_path / f"{encoding}.csq", format="csq", options={"encoding": encoding}).size_bytes
        for encoding in ("smallest", "dense")
    }
    assert found == {encoding: (tmp_path / f"{encoding}.csq").stat().st_size for encoding in found}
    assert found["smallest"] < found["dense"]


def test_a_folder_s_size_is_that_of_its_files(tmp_path: Path) -> None:
    found = export(small_model(), tmp_path / "c", format="c", options={"content": "weights"})
    assert found.size_bytes == sum(file.stat().st_size for file in (tmp_path / "c").iterdir())
    assert len(list((tmp_path / "c").iterdir())) > 1


def test_a_file_and_the_model_in_it_are_exported_to_the_same_bytes(tmp_path: Path) -> None:
    write_finalized(small_model(), tmp_path / "m.safetensors")
    export(tmp_path / "m.safetensors", tmp_path / "file.csq", format="csq")
    export(small_model(), tmp_path / "model.csq", format="csq")
    assert (tmp_path / "file.csq").read_bytes() == (tmp_path / "model.csq").read_bytes()


def test_data_are_refused_where_nothing_is_measured(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--data is only used by exports that measure"):
        export(small_model(), tmp_path / "m.csq", format="csq", data="digits")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_records_no_factory_asks_for_the_module() -> None:
    with pytest.raises(InputError, match="records no factory"):
        Origin().build_module(small_model())
