"""A packed model as an array in C: its files are known, and the array is verified as the `.csq` file that it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from csqtool import verify
from csqtool.errors import FormatError
from csqtool.exporting import export
from csqtool.verifying.c_package import read_package
from tests.support.commands import Built, invoke


@pytest.fixture(scope="module")
def folder(eight_bits: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("c") / "packed"
    export(eight_bits.model, path, format="c", options={"content": "weights"})
    return path


def test_a_packed_model_in_c_passes_as_its_csq_file_does(folder: Path, eight_bits: Built) -> None:
    report = verify(folder, eight_bits.model, samples=20)
    assert [(c.level, c.name, c.detail) for c in report.failures] == []
    names = {c.name for c in report.checks}
    assert {"every line", "checksums", "origin", "all tensors", "unpacked model in PyTorch"} <= names
    assert report.size_bytes == len(read_package(folder)[0])


CHANGES: dict[str, tuple[str, Callable[[str], str]]] = {
    "a reader that does more": ("csq.h", lambda text: text.replace("#endif", "static int more;\n#endif", 1)),
    "a constructor in the reader": (
        "csq.h", lambda text: text + "__attribute__((constructor)) static void early(void) { }\n",
    ),
    "a header that includes more": ("model.h", lambda text: text.replace("<stddef.h>", '"/etc/hostname"')),
    "an example that runs a command": ("example.c", lambda text: text + "/* system */\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_another_text_of_a_file_is_named(name: str, folder: Path, tmp_path: Path) -> None:
    file, edit = CHANGES[name]
    path = Path(shutil.copytree(folder, tmp_path / "packed"))
    (path / file).write_text(edit((path / file).read_text()))
    assert read_package(path)[1] == [f"{file}: not the file that comes with a packed model"]


def test_nothing_else_of_a_hostile_folder_is_looked_at(folder: Path, eight_bits: Built, tmp_path: Path) -> None:
    path = Path(shutil.copytree(folder, tmp_path / "packed"))
    (path / "more.c").write_text("int more;")
    report = verify(path, eight_bits.model, samples=2)
    assert [c.detail for c in report.checks if c.level == "structure"] == ["more.c: not part of a packed model"]
    assert not any(c.passed for c in report.checks)


@pytest.mark.parametrize("edit", [
    lambda text: text + "int more;\n", lambda text: text.replace("const uint8_t", "const uint8_t *p; const uint8_t"),
    lambda text: text.replace("0x", "0x1", 1), lambda text: text.replace("0x", "1+0x", 1),
    lambda text: text.replace("{\n", "{\n0x00,", 1), lambda text: text.replace("u;", "1u;", 1),
    lambda text: text.replace("0x", "0X", 1), lambda text: text[: len(text) // 2],
    lambda text: text.replace("0x", "xx", 1), lambda text: text.replace("\n};", ",\n};"),
    lambda text: "/* one */" + text,
])  # fmt: skip
def test_an_array_with_anything_beside_it_is_refused(edit: Callable[[str], str], folder: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(folder, tmp_path / "packed"))
    changed = edit((path / "model.c").read_text())
    assert changed != (folder / "model.c").read_text()
    (path / "model.c").write_text(changed)
    with pytest.raises(FormatError, match=r"model\.c is not one array of bytes, its size, and nothing else"):
        read_package(path)


def test_a_byte_of_the_array_is_found_and_white_space_is_free(folder: Path, eight_bits: Built, tmp_path: Path) -> None:
    path = Path(shutil.copytree(folder, tmp_path / "packed"))
    text = (path / "model.c").read_text()
    (path / "model.c").write_text(text.replace(",", ", ").replace("\n", "\r\n"), newline="")
    assert read_package(path) == read_package(folder)
    at = text.rindex("0x") + 2
    (path / "model.c").write_text(text[:at] + f"{int(text[at : at + 2], 16) ^ 1:02x}" + text[at + 2 :])
    assert read_package(path)[1] == []
    assert [c.name for c in verify(path, eight_bits.model, samples=2).failures][:1] == ["checksum"]


def test_a_missing_file_and_a_compiler_end_with_one_line(folder: Path, eight_bits: Built, tmp_path: Path) -> None:
    path = Path(shutil.copytree(folder, tmp_path / "packed"))
    done = invoke("verify", path, "--against", eight_bits.model, "--target", "cortex-m4")
    assert (done.exit_code, done.stderr.count("error:")) == (2, 1)
    (path / "model.h").unlink()
    done = invoke("verify", path, "--against", eight_bits.model)
    assert (done.exit_code, done.stderr.count("error:")) == (2, 1)
    assert "holds no model.h" in done.stderr
