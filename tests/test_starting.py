from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.commands import ROOT, invoke, ok


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


def install_step(name: str) -> str:
    """Return the shell line by which a file for CI installs csqtool."""
    text = (ROOT / name).read_text()
    if name.endswith(".md"):
        text = text.split("GitLab:")[1].split("```")[1].removeprefix("yaml")
    (line,) = (text for text in texts(yaml.safe_load(text)) if "pip install " in text)
    return line


def texts(document: Any) -> Iterator[str]:
    """Yield the texts of a YAML document."""
    if isinstance(document, str):
        yield document
    elif isinstance(document, dict | list):
        for item in document.values() if isinstance(document, dict) else document:
            yield from texts(item)


@pytest.mark.parametrize("package", ["", "some.whl"])
@pytest.mark.parametrize(
    "name", ["action.yml", "csqtool/starter/github-workflow.yml", "csqtool/starter/gitlab-ci.yml", "docs/verify.md"]
)
def test_ci_files_install_what_the_user_names_and_no_name_that_others_could_take(
    name: str, package: str, tmp_path: Path
) -> None:
    for program in ("pip", "python"):
        (tmp_path / program).write_text('#!/bin/sh\nfor last; do :; done; echo "$last"\n')
        (tmp_path / program).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "CSQTOOL_PACKAGE": package, "GITHUB_ACTION_PATH": "/action"}
    done = subprocess.run(
        ["bash", "-ec", install_step(name)], env=environment, capture_output=True, text=True, check=False
    )
    if package or name == "action.yml":
        assert (done.returncode, done.stdout.strip()) == (0, package or "/action")
    else:
        assert done.returncode != 0
        assert "where csqtool comes from" in done.stderr
