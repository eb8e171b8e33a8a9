"""Texts in files cannot steer a terminal or a CI system: not by escapes, not by direction marks, not by commands."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import onnx
import pytest

from csqtool.text import printable
from tests.support.commands import Built, invoke

pytestmark = pytest.mark.usefixtures("one_capture")

HOSTILE = ["\x1b[31mred", "\u202etxt.exe", "a\rb", "x\n::error::boom", "::error::boom", "\x00", "\x9b31m", "##[error]x",
           "\u2066x", "a\u2028b", "\x07\x08"]  # fmt: skip


def check(result: Any, said: object) -> None:
    assert result.exit_code in (0, 1, 2), (said, result.output[-300:], result.exception)
    for text in (result.stdout, result.stderr):
        for line in text.split("\n"):
            assert not line.lstrip().startswith(("::", "##[")), (said, line)
            for character in line:
                assert unicodedata.category(character) not in ("Cc", "Cf", "Zl", "Zp", "Cs"), (said, line)


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_printed_has_no_control_characters(text: str) -> None:
    shown = printable(text)
    assert all(c.isprintable() for c in shown)
    assert not shown.lstrip().startswith(("::", "##["))


def strings(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the places of all texts, and of all keys, of a JSON document; of a list, those in its first item."""
    if isinstance(document, str):
        return [path]
    items = (
        document.items()
        if isinstance(document, dict)
        else enumerate(document[:1])
        if isinstance(document, list)
        else ()
    )
    return [place for key, value in items for place in strings(value, (*path, key))]


def with_text(document: Any, place: tuple[Any, ...], text: str) -> Any:
    changed = json.loads(json.dumps(document))
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = text
    return changed


def test_texts_of_a_finalized_model_and_a_package(eight_bits: Built, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.numpy import load_file

    from csqtool import csq
    from csqtool.errors import InputError
    from csqtool.finalized_file import parse_finalized, serialize

    tensors = load_file(eight_bits.model)
    with safe_open(eight_bits.model, "np") as file:
        document = json.loads(file.metadata()["csqtool"])
    path, packed = tmp_path / "m.safetensors", tmp_path / "m.csq"
    extra = {**document, "custom": {"note": "x"}}
    for index, place in enumerate(strings(extra)):
        text = HOSTILE[index % len(HOSTILE)]
        content = serialize(tensors, json.dumps(with_text(extra, place, text)))
        path.write_bytes(content)
        check(invoke("inspect", path), place)
        check(invoke("diff", eight_bits.model, path), place)
        if place[0] in ("model", "data", "float16", "metrics"):
            check(invoke("verify", eight_bits.csq, "--against", path, "--samples", 2), place)
        try:
            packed.write_bytes(csq.pack(parse_finalized(content, where="x")))
        except InputError:
            continue
        check(invoke("inspect", packed), place)


@pytest.mark.parametrize(
    "text", [*HOSTILE[2:4], *(pytest.param(text, marks=pytest.mark.slow) for text in HOSTILE[:2] + HOSTILE[4:])]
)
def test_texts_of_an_onnx_file(eight_bits: Built, tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.onnx"
    untouched = onnx.load(eight_bits.onnx)

    def changed(what: str) -> onnx.ModelProto:
        proto = onnx.ModelProto()
        proto.CopyFrom(untouched)
        if what == "metadata":
            proto.metadata_props.add(key=text, value=text)
        elif what == "domain":
            proto.opset_import.add(domain=text, version=1)
        elif what == "function":
            proto.functions[0].name = text
        elif what == "operator":
            proto.graph.node[-1].op_type = text
        elif what == "output":
            proto.graph.node[0].output[0] = text
        elif what == "tensor":
            proto.graph.initializer[0].name = text
        elif what == "axis":
            proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = text
        elif what == "producer":
            proto.producer_name = proto.doc_string = proto.graph.name = text
        return proto

    for what in ("metadata", "domain", "function", "operator", "output", "tensor", "axis", "producer"):
        path.write_bytes(changed(what).SerializeToString())
        check(invoke("inspect", path), what)
        check(invoke("verify", path, "--against", eight_bits.model, "--samples", 2), what)
        if what == "axis":
            check(invoke("bench", path, "--rounds", 1), what)


def test_texts_of_documents_and_run_directories(eight_bits: Built, tmp_path: Path) -> None:
    import shutil

    for name in ("config.json", "summary.json", "scheme.json"):
        document = json.loads((eight_bits.run / name).read_text())
        for index, place in enumerate(strings(document)):
            text = HOSTILE[index % len(HOSTILE)]
            run = tmp_path / "run"
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(eight_bits.run, run)
            (run / name).write_text(json.dumps(with_text(document, place, text)))
            check(invoke("inspect", run), (name, place))
            check(invoke("inspect", run / name), (name, place))
            check(invoke("search", "--resume", run), (name, place))
            check(invoke("finalize", run, "-o", tmp_path / "x.safetensors"), (name, place))


def test_texts_of_a_report(eight_bits: Built, tmp_path: Path) -> None:
    _, document = eight_bits.verify(eight_bits.csq, "--samples", 2)
    path = tmp_path / "report.json"
    for index, place in enumerate(strings(document)):
        path.write_text(json.dumps(with_text(document, place, HOSTILE[index % len(HOSTILE)])))
        check(invoke("inspect", path), place)
        check(invoke("diff", path, path), place)
