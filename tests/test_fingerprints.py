from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from csqtool import fingerprints
from csqtool.errors import ConfigError, InputError
from csqtool.files import sha256
from csqtool.fingerprints import ImportedCode, digest, fingerprint, is_current
from csqtool.searching.config import SearchConfig
from csqtool.version import __version__


def config(**settings: Any) -> SearchConfig:
    return SearchConfig.make(**{"model": "m.py:net", "data": "digits", "target_bits": 3, **settings})


@pytest.fixture
def user_module(tmp_path: Path) -> Iterator[ModuleType]:
    """Return an imported module of the user's, in a folder of its own."""
    path = tmp_path / "code" / "user_module.py"
    path.parent.mkdir()
    path.write_text("x = 1\n")
    spec = importlib.util.spec_from_file_location("user_module_of_a_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_a_digest_is_that_of_the_content_and_not_of_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert len({digest(document) for document in ({}, [], {"a": 1}, {"a": 1.5}, {"a": "1"})}) == 5


def test_settings_without_files_depend_on_the_version_alone() -> None:
    assert fingerprint(config()) == {"csqtool": __version__}


def test_a_factory_of_an_installed_package_is_known_by_its_version() -> None:
    found = fingerprint(config(model="torch.nn:Linear", data="click:echo"))
    assert found.keys() == {"csqtool", "version of torch.nn", "version of click"}
    assert fingerprint(config(model="csqtool.nn.gates:BitGates")) == {"csqtool": __version__}


def test_an_installed_package_that_does_not_list_its_modules_is_known_by_its_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.metadata, "packages_distributions", dict)
    found = fingerprint(config(model="torch.nn:Linear", data="no_such_package.data:make"))
    assert found == {"csqtool": __version__, "version of torch.nn": importlib.metadata.version("torch")}


def test_weights_schemes_and_data_files_are_known_by_their_content(tmp_path: Path) -> None:
    for name in ("w.safetensors", "s.json", "d.npz"):
        (tmp_path / name).write_text(name)
    settings = config(weights=tmp_path / "w.safetensors", scheme=tmp_path / "s.json", method="lsq",
                      data=f"npz:{tmp_path}/d.npz")  # fmt: skip
    before = fingerprint(settings)
    assert before["weights"] == sha256(tmp_path / "w.safetensors")
    os.utime(tmp_path / "d.npz", ns=(1, 1))
    assert fingerprint(settings) == before
    for name, key in (("w.safetensors", "weights"), ("s.json", "scheme"), ("d.npz", "data")):
        (tmp_path / name).write_text("changed")
        changed = fingerprint(settings)
        assert [k for k in before if before[k] != changed[k]] == [key]
        before = changed


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file: .*w\.safetensors"):
        fingerprint(config(weights=tmp_path / "w.safetensors"))


def test_a_folder_of_data_is_known_by_its_files_contents(tmp_path: Path) -> None:
    settings = config(data=f"imagefolder:{tmp_path}")
    image = tmp_path / "cats" / "1.png"
    image.parent.mkdir()
    image.write_bytes(b"a")
    facts, before = image.stat(), fingerprint(settings)["data"]
    os.utime(image, ns=(1, 1))
    assert fingerprint(settings)["data"] == before
    image.write_bytes(b"b")
    os.utime(image, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert fingerprint(settings)["data"] != before


def test_a_large_folder_of_data_is_known_by_names_sizes_and_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "READ_BYTES", 0)
    settings = config(data=f"imagefolder:{tmp_path}")
    seen = [fingerprint(settings)["data"]]
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "1.png").write_bytes(b"a")
    seen.append(fingerprint(settings)["data"])
    os.utime(tmp_path / "cats" / "1.png", ns=(1, 1))
    seen.append(fingerprint(settings)["data"])
    (tmp_path / "cats" / "1.png").rename(tmp_path / "cats" / "2.png")
    seen.append(fingerprint(settings)["data"])
    assert len(set(seen)) == 4
    assert fingerprint(settings)["data"] == seen[-1]
    assert fingerprint(config(data=f"imagefolder:{tmp_path}/none"))["data"] is None  # the search says so


def test_code_is_what_was_imported_below_the_folder_or_since(user_module: ModuleType, tmp_path: Path) -> None:
    file = Path(str(user_module.__file__))
    assert ImportedCode(file.parent)()["user_module.py"] == sha256(file)
    elsewhere = tmp_path / "other"
    elsewhere.mkdir()
    code = ImportedCode(elsewhere)
    assert not [name for name in code() if "user_module" in name]
    sys.modules["imported_since"] = sys.modules[user_module.__name__]
    try:
        assert code()["../code/user_module.py"] == sha256(file)
    finally:
        del sys.modules["imported_since"]


def test_neither_python_nor_packages_nor_csqtool_count_as_the_user_s_code() -> None:
    import numpy as np

    import csqtool

    files = {Path(str(module.__file__)).resolve() for module in (json_module(), np, csqtool)}
    found = {(Path.cwd() / name).resolve() for name in ImportedCode(Path.cwd())()}
    assert not files & found


def json_module() -> ModuleType:
    import json

    return json


def test_code_that_changed_after_it_was_imported_is_refused(user_module: ModuleType) -> None:
    file = Path(str(user_module.__file__))
    code = ImportedCode(file.parent)
    recorded = code()
    assert is_current(recorded, file.parent)
    file.write_text("x = 2\n")
    assert not is_current(recorded, file.parent)
    with pytest.raises(ConfigError, match="has changed since this process imported it"):
        code()
    file.unlink()
    assert not is_current(recorded, file.parent)
