"""The files of a release: one version, workflows that name what is there."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import yaml

import csqtool
from tests.support.commands import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def workflow(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8"))
    return document


def test_the_citation_has_the_version_and_licence_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == csqtool.__version__
    assert citation["license"] == PROJECT["project"]["license"]
    assert citation["abstract"] == PROJECT["project"]["description"]


def test_the_release_compares_the_tag_with_the_version_of_the_package() -> None:
    steps = workflow("release.yml")["jobs"]["build"]["steps"]
    (command,) = (step["run"] for step in steps if step.get("name", "").startswith("The tag is"))
    pattern, path = re.search(r"'s/\^(.*)\$/\\1/p' (\S+)\)", command).groups()  # type: ignore[union-attr]
    found = re.search(f"^{pattern.replace(chr(92), '')}$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    assert found[1] == csqtool.__version__


def test_the_conda_recipe_is_of_this_version_and_needs_what_the_package_needs() -> None:
    recipe = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text(encoding="utf-8"))
    project = PROJECT["project"]
    assert recipe["context"]["version"] == csqtool.__version__
    assert recipe["context"]["python_min"] == project["requires-python"].removeprefix(">=")
    assert recipe["about"]["license"] == project["license"]
    assert recipe["about"]["summary"] == project["description"]
    # conda-forge has all of them under PyPI's names, except PyTorch.
    needed = sorted(line.replace(">=", " >=").replace("torch >=2", "pytorch >=2") for line in project["dependencies"])
    assert recipe["requirements"]["run"][0] == "python >=${{ python_min }}"
    assert sorted(recipe["requirements"]["run"][1:]) == needed
    assert set(PROJECT["build-system"]["requires"]) <= set(recipe["requirements"]["host"])
    scripts = [f"{name} = {target}" for name, target in project["scripts"].items()]
    assert recipe["build"]["python"]["entry_points"] == scripts


def test_only_the_job_that_publishes_may_publish_and_no_job_holds_a_secret() -> None:
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    assert "secrets." not in text
    release = workflow("release.yml")
    assert release["permissions"] == {"contents": "read"}
    publish = release["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["needs"] == "build"
    assert all("run" not in step for step in publish["steps"])  # no code of the repository beside the permission


def test_the_matrix_has_every_python_from_the_first_supported_one() -> None:
    matrix = workflow("tests.yml")["jobs"]["tests"]["strategy"]["matrix"]
    first = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert matrix["python"][0] == first
    assert matrix["python"] == [f"3.{minor}" for minor in range(int(first[2:]), 15)]
    assert {name.partition("-")[0] for name in matrix["os"]} == {"ubuntu", "macos", "windows"}


@pytest.mark.parametrize("name", ["tests.yml", "release.yml"])
def test_a_workflow_s_commands_name_extras_and_files_that_exist(name: str) -> None:
    text = (ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8")
    extras = set(re.findall(r"\.\[(\w+)\]", text))
    assert extras <= PROJECT["project"]["optional-dependencies"].keys()
    assert all((ROOT / path).exists() for path in re.findall(r"(?<=run: )\.[\w/]+", text))
