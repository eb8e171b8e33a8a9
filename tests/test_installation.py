from __future__ import annotations

import importlib
import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from csqtool import installation
from tests.support.commands import invoke, ok


def named(name: str) -> installation.Finding:
    (found,) = (one for one in installation.examine() if one.name == name)
    return found


def test_every_requirement_is_listed_with_the_version_that_is_installed() -> None:
    rows = {row["name"]: row for row in json.loads(ok("doctor", "--json").stdout)}
    assert {"torch", "onnxruntime", "click", "packaging"} <= set(rows)
    for name in ("torch", "click"):
        assert (rows[name]["found"], rows[name]["problem"]) == (metadata.version(name), "")
    assert set(installation.FEATURES) <= set(rows)
    assert ok("doctor").stdout.splitlines()[-1].startswith("PASS")


def test_every_extra_that_users_choose_is_looked_for() -> None:
    extras = set(metadata.metadata("csqtool").get_all("Provides-Extra") or [])
    assert {"dev", "test"} <= extras
    assert extras - set(installation.FEATURES) <= {"dev", "docs", "test"}


def test_a_package_that_is_too_old_or_cannot_be_imported_fails_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    true_version, true_import = metadata.version, importlib.import_module

    def broken(name: str, *more: Any) -> Any:
        if name == "onnxscript":
            raise RuntimeError("operator torchvision::nms does not exist")
        return true_import(name, *more)

    monkeypatch.setattr(metadata, "version", lambda name: "1.0" if name == "click" else true_version(name))
    monkeypatch.setattr(importlib, "import_module", broken)
    assert named("click").problem == "csqtool needs >=8.2: pip install 'click>=8.2'"
    assert named("onnxscript").problem == "cannot be imported: RuntimeError: operator torchvision::nms does not exist"
    monkeypatch.setattr(importlib, "import_module", true_import)
    result = invoke("doctor")
    assert result.exit_code == 1
    assert "error: click: csqtool needs >=8.2" in result.stderr
    assert result.stdout.splitlines()[-1].startswith("FAIL")


def test_what_is_optional_and_missing_is_told_and_fails_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    true_version = metadata.version

    def version(name: str) -> str:
        if name == "pillow":
            raise metadata.PackageNotFoundError(name)
        return true_version(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(shutil, "which", lambda program: None)
    result = ok("doctor")
    assert "missing: images: no pillow, for data sets of image files: pip install 'csqtool[images]'" in result.stderr
    assert "missing: a C compiler: none of cc, gcc, clang, for fast training kernels" in result.stderr
