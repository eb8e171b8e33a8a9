from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from csqtool import documents, files
from csqtool.errors import InputError
from csqtool.files import read_bytes, replacing, sha256, unique_keys, write_bytes, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_with_the_folders_it_needs(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a" / "b" / "x", b"new")
    assert (tmp_path / "a" / "b" / "x").read_bytes() == b"new"
    assert names(tmp_path / "a" / "b") == ["x"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_a_failure_while_writing_leaves_the_old_file_and_nothing_beside_it(
    error: type[BaseException], tmp_path: Path
) -> None:
    def fail() -> None:
        with replacing(tmp_path / "x") as temporary:
            temporary.write_bytes(b"half")
            raise error

    write_bytes(tmp_path / "x", b"old")
    with pytest.raises(InputError if error is OSError else error):
        fail()
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_written_file_is_as_readable_as_the_users_umask_says(mask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        write_bytes(tmp_path / "x", b"")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == mode


def test_folders_pipes_and_places_below_files_are_not_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    for path, said in ((tmp_path, "is a folder"), (tmp_path / "pipe", "is no regular file"),
                       (tmp_path / "file" / "x", "cannot write .*: (Not a directory|File exists)")):  # fmt: skip
        with pytest.raises(InputError, match=said):
            write_bytes(path, b"x")
    assert names(tmp_path) == ["file", "pipe"]


def test_what_cannot_be_read_says_which_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, said in (
        ("missing", "no such file"),
        ("pipe", "is not a file"),
        (".", "is not a file"),
        ("a\0b", "cannot read"),
    ):
        with pytest.raises(InputError, match=said):
            read_bytes(tmp_path / name)


def test_json_is_read_back_and_numbers_that_json_lacks_are_not_written(tmp_path: Path) -> None:
    document = {"ä": [1, 2.5, None, True]}
    write_json(tmp_path / "x.json", document)
    assert documents.read(Any, tmp_path / "x.json") == document
    assert (tmp_path / "x.json").read_bytes().endswith(b"}\n")
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", float("nan"))
    assert documents.read(Any, tmp_path / "x.json") == document


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'"\\ud800"', b"[" * 100_000])
def test_what_is_no_json_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.json is not valid JSON"):
        documents.read(Any, tmp_path / "x.json")


def test_a_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    write_bytes(tmp_path / "x", b"abc")
    assert sha256(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()


def test_a_key_that_is_there_twice_is_refused() -> None:
    assert json.loads('{"a": {"b": 1}, "b": 2}', object_pairs_hook=unique_keys) == {"a": {"b": 1}, "b": 2}
    with pytest.raises(ValueError, match="'b'"):
        json.loads('{"a": {"b": 1, "b": 2}}', object_pairs_hook=unique_keys)


def test_a_temporary_folder_goes_although_a_signal_comes_while_it_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path))
    removed, signals = files.shutil.rmtree, [KeyboardInterrupt]

    def interrupted(path: Path, **more: bool) -> None:
        if signals:
            raise signals.pop()
        removed(path, **more)

    monkeypatch.setattr(files.shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt), files.temporary_folder() as folder:
        (folder / "x").write_text("x")
    assert list(tmp_path.iterdir()) == []
