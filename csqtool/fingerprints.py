"""Fingerprints of what a pipeline's result depends on beside its settings: imported code, data, weights.

Code is known by what was imported, not by what lies beside the model: after a stage, every imported module counts
whose file is neither part of Python, nor installed, nor csqtool's own. Installed packages are known by the version of
the one that holds the factory. Data files are known by their content; folders of data by the names, sizes and times of
their files, for they are too large to read each time. Files that a data factory reads are not known.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from csqtool.data.sources import FILE_SOURCES, split_options
from csqtool.errors import ConfigError
from csqtool.files import sha256
from csqtool.hubs import package_of
from csqtool.searching.config import SearchConfig
from csqtool.version import __version__

Code = dict[str, str]  # path of a module's file, relative to the pipeline's folder, to the SHA-256 of its content
INSTALLED = {"site-packages", "dist-packages"}
OWN = ("csqtool", "exporters")
_first_seen: WeakKeyDictionary[ModuleType, str] = WeakKeyDictionary()

READ_BYTES = 4 << 30  # of a data folder; what is read in seconds


def digest(document: Any) -> str:
    """Return the SHA-256 of a JSON document."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def fingerprint(config: SearchConfig) -> dict[str, Any]:
    """Return the digests and versions of files and packages that settings name; nothing is imported.

    Args:
        config: the settings, with paths relative to the working folder.

    Raises:
        InputError: a file is missing.
    """
    found: dict[str, Any] = {"csqtool": __version__}
    data = config.data or ""
    kind, _, rest = split_options(data)[0].partition(":")
    for spec in (config.model or "", *([] if kind in FILE_SOURCES else [data])):
        where, colon, _ = spec.rpartition(":")
        where = package_of(spec) or where
        if colon and not where.endswith(".py") and (version := _installed_version(where.partition(".")[0])):
            found[f"version of {where}"] = version
    if kind in FILE_SOURCES:
        found["data"] = _of_data(Path(rest))
    for name, file in (("weights", config.weights), ("scheme", config.scheme)):
        if file is not None:
            found[name] = sha256(Path(file))
    return found


class ImportedCode:
    """The user's code that this process has imported: below a folder, or since this object was made.

    Args:
        folder: the pipeline's folder, to which the paths are relative: a project can be moved as a whole.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._before = dict(sys.modules)

    def __call__(self) -> Code:
        """Return the files' digests.

        Raises:
            ConfigError: a file has changed since this process imported it, so the code that ran is unknown.
        """
        found = {}
        for name, module, file in _own_modules():
            if self._before.get(name) is module and self._folder not in file.parents:
                continue  # it belongs to another project in the same process
            content = sha256(file)
            if _first_seen.setdefault(module, content) != content:
                raise ConfigError(f"{file} has changed since this process imported it; run the pipeline in a new one")
            found[Path(os.path.relpath(file, self._folder)).as_posix()] = content
        return dict(sorted(found.items()))


def is_current(code: Mapping[str, str], folder: Path) -> bool:
    """Return whether the files of some code still exist and are unchanged."""
    files = {folder.resolve() / name: content for name, content in code.items()}
    return all(file.is_file() and sha256(file) == content for file, content in files.items())


def _own_modules() -> Iterator[tuple[str, ModuleType, Path]]:
    """Yield the imported modules that are the user's: name, module and file."""
    standard = tuple(f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib"))
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if module is sys.modules.get("__main__") or name.partition(".")[0] in OWN or not isinstance(file, str):
            continue
        # Texts, not resolved paths: there are thousands of installed modules.
        if not file.startswith(standard) and not INSTALLED & set(file.split(os.sep)):
            path = Path(file).resolve()
            if path.is_file():
                yield name, module, path


def _installed_version(package: str) -> str | None:
    """Return the version of the installed distribution that contains a package; None if there is none."""
    from importlib.metadata import PackageNotFoundError, packages_distributions, version

    if package in OWN:
        return None
    # An operating system's packages do not always list their modules; they are looked up by name.
    names = packages_distributions().get(package) or [package]
    try:
        return version(names[0])
    except PackageNotFoundError:
        return None


def _of_data(path: Path) -> str | None:
    """Return the digest of a data file, or of all files of a folder, by content.

    Of a folder of more than `READ_BYTES` only names, sizes and times: reading it would take minutes.
    """
    if path.is_file():
        return sha256(path)
    if not path.is_dir():
        return None  # loading it raises the error
    files = {file: file.stat() for file in sorted(path.rglob("*")) if file.is_file()}
    by_content = sum(facts.st_size for facts in files.values()) <= READ_BYTES
    return digest([
        (file.relative_to(path).as_posix(), facts.st_size, sha256(file) if by_content else facts.st_mtime_ns)
        for file, facts in files.items()
    ])  # fmt: skip
