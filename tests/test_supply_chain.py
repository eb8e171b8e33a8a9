"""What csqtool brings with it: the licences of its runtime dependencies, and how they and the releases are checked."""

from __future__ import annotations

import re
import tomllib
from email import message_from_string
from importlib import metadata
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from tests.support.commands import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Permissive licences, and MPL-2.0, which reaches its own files alone.
ALLOWED = {
    "0BSD", "3-Clause BSD License", "Apache Software License", "Apache-2.0", "Apache-2.0 WITH LLVM-exception",
    "BSD License", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "ISC", "MIT", "MIT License", "MPL-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)", "PSF-2.0", "Python Software Foundation License", "Unlicense", "Zlib",
}  # fmt: skip


def licences(distribution: metadata.Distribution) -> set[str]:
    """Return the licences that a distribution states: an SPDX expression, else classifiers, else a short text."""
    facts = distribution.metadata
    named = [line.split(" :: ")[-1] for line in facts.get_all("Classifier") or [] if line.startswith("License ::")]
    named = [name for name in named if name != "OSI Approved"]
    if (expression := facts.get("License-Expression")) or not named:
        expression = expression or (facts.get("License") or "none").splitlines()[0]
        named = re.split(r" AND | OR ", expression.replace("(", "").replace(")", ""))
    return set(named)


def installed(root: str) -> dict[str, metadata.Distribution]:
    """Return a distribution and all that it needs at run time, by name; what is not installed here is not needed."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [root]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, found[name].requires or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found


def test_every_runtime_dependency_has_an_allowed_licence() -> None:
    found = installed("csqtool")
    assert {"torch", "onnx", "onnxruntime", "numpy", "jinja2", "markupsafe"} <= found.keys()
    others = {name: licences(one) - ALLOWED for name, one in found.items() if licences(one) - ALLOWED}
    # NVIDIA's libraries come with torch on Linux with CUDA alone; they are the user's choice of torch.
    assert {name: one for name, one in others.items() if not name.startswith(("nvidia-", "cuda-"))} == {}


class Copyleft(metadata.Distribution):
    """A distribution of which one part may not be used."""

    @property
    def metadata(self) -> Any:
        return message_from_string("License-Expression: MIT AND (GPL-3.0-only OR BSD-3-Clause)\n\n")

    def read_text(self, filename: str) -> None:
        return None

    def locate_file(self, path: Any) -> Any:
        raise FileNotFoundError(path)


def test_a_licence_that_is_not_allowed_is_seen() -> None:
    assert licences(Copyleft()) - ALLOWED == {"GPL-3.0-only"}


def test_every_pinned_version_is_within_the_bounds_of_the_package() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    wanted = {one.name: one.specifier for one in map(Requirement, PROJECT["dependencies"])}
    assert wanted.keys() <= pinned.keys()
    assert [name for name, bounds in wanted.items() if Version(pinned[name]) not in bounds] == []


def test_versions_that_are_known_to_break_are_excluded() -> None:
    docs = {one.name: one.specifier for one in map(Requirement, PROJECT["optional-dependencies"]["docs"])}
    assert Version("1.6.1") in docs["mkdocs"]
    assert Version("2.0") not in docs["mkdocs"]  # without the plugins that the site is made with


def test_ci_audits_the_pinned_versions_and_a_release_has_a_bill_of_materials_and_is_built_twice() -> None:
    def commands(name: str, job: str) -> str:
        document = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8"))
        return "\n".join(str(step.get("run", "")) for step in document["jobs"][job]["steps"])

    assert "pip-audit --strict" in commands("tests.yml", "dependencies")  # what was not audited does not pass
    assert "constraints.txt" in commands("tests.yml", "dependencies")
    release = commands("release.yml", "build")
    assert ".ci/build_twice" in release
    assert "cyclonedx-py environment" in release
