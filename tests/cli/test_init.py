from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import invoke, ok


@pytest.mark.long
def test_a_new_project_runs_as_it_stands(tmp_path: Path) -> None:
    project = tmp_path / "project"
    written = ok("init", project).stdout.split()
    assert {Path(name).name for name in written} == {
        "model.py",
        "data.py",
        "pipeline.toml",
        "model.yml",
        ".gitlab-ci.yml",
    }
    assert "PASS" in ok("run", project / "pipeline.toml").stdout
    assert (project / "build" / "model.csq").is_file()


def test_nothing_that_is_there_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text("mine")
    result = invoke("init", tmp_path)
    assert result.exit_code == 2
    assert "data.py already exists" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["data.py"]
