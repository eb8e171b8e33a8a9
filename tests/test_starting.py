from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from csqtool.errors import InputError
from csqtool.pipeline_file import read_pipeline
from csqtool.starting import FILES, init


def test_a_starter_project_is_the_package_s_files_each_in_its_place(tmp_path: Path) -> None:
    written = init(tmp_path / "deep" / "project")
    assert [path.relative_to(tmp_path / "deep" / "project").as_posix() for path in written] == list(FILES.values())
    for source, path in zip(FILES, written, strict=True):
        assert path.read_bytes() == (resources.files("csqtool") / "starter" / source).read_bytes()
    assert read_pipeline(tmp_path / "deep" / "project" / "pipeline.toml").config.target_bits is not None


def test_every_starter_file_is_written() -> None:
    there = {entry.name for entry in (resources.files("csqtool") / "starter").iterdir() if entry.is_file()}
    assert there == set(FILES)


@pytest.mark.parametrize("taken", FILES.values())
def test_one_file_that_is_there_already_keeps_all_others_from_being_written(taken: str, tmp_path: Path) -> None:
    (tmp_path / taken).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / taken).write_text("mine")
    with pytest.raises(InputError, match="already exists; name another folder"):
        init(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / taken]
    assert (tmp_path / taken).read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write .*file.*: Not a directory"):
        init(tmp_path / "file" / "project")
