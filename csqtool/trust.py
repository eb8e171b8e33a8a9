"""The one place that decides which code may run because a *file* names it.

Files record how to build their module and their data: ``net.py:build``, ``package.module:build``. Whoever writes the
file chooses that name, and calling it runs code. So a name from a file is called only if all of this holds:

- its source is a file of the user's own project: below the working folder, or below the project of the file that the
  user names as trusted (``verify --against``, the source of ``export``, a run directory). That project reaches from
  the file up to the nearest folder with ``.git``, else with ``pyproject.toml``, else with ``pipeline.toml``; without
  any of them it is the file's own folder;
- the source is no part of Python, of an installed package, of a virtual environment, or of csqtool;
- what it names is defined in such a file, too, not imported into one (``from os import system``).

A name that the user gives is not restricted: ``--model``, ``--data``, a pipeline file, an argument in Python. It stays
trusted for the rest of the process, and so does what ``--trust-factory`` or ``trust_factory=`` names.
"""

from __future__ import annotations

import functools
import importlib.machinery
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from csqtool.errors import InputError

INSTALLED = {"site-packages", "dist-packages"}
OWN = ("csqtool", "exporters")
MARKERS = (".git", "pyproject.toml", "pipeline.toml")  # of a project's folder, the strongest first
_IN_ENVIRONMENT = {"lib", "lib64", "Lib", "bin", "Scripts", "include"}
_trusted: ContextVar[frozenset[str]] = ContextVar("trusted", default=frozenset())
_named: set[str] = set()


@contextmanager
def trusting(names: str | Iterable[str]) -> Iterator[None]:
    """Trust factories of these names, where files record them, until the block ends."""
    given = [names] if isinstance(names, str) else list(names)
    token = _trusted.set(_trusted.get() | {_key(name) for name in given})
    try:
        yield
    finally:
        _trusted.reset(token)


def remember(name: str) -> None:
    """Trust a factory that the user named himself, for as long as the process lives."""
    _named.add(_key(name))


def is_named(name: str) -> bool:
    """Tell whether the user named a factory himself."""
    return _key(name) in _named | _trusted.get()


def project_folders(near: Path | None) -> list[Path]:
    """Return the folders from a file's own up to that of its project, nearest first; none without a file."""
    if near is None:
        return []
    parents = list(near.absolute().resolve().parents)
    for marker in MARKERS:
        for index, folder in enumerate(parents):
            if (folder / marker).exists():
                return parents[: index + 1]
    return parents[:1]


def check_source(name: str, source: Path, *, near: Path | None) -> None:
    """Check that a factory's Python file is the user's own.

    Args:
        name: the factory, for the message.
        source: the Python file.
        near: the file that records the name.

    Raises:
        InputError: it is not; says what to do.
    """
    if (reason := _foreign(source, near)) is not None:
        raise refusal(name, f"{source} {reason}", near)


def check_module(name: str, module: str, *, near: Path | None) -> None:
    """Check that a factory's module is the user's own, without importing anything.

    Raises:
        InputError: it is not, or there is no such module; says what to do.
    """
    places: list[str] | None = None
    spec: importlib.machinery.ModuleSpec | None = None
    parts = module.split(".")
    for index, part in enumerate(parts):
        full = ".".join(parts[: index + 1])
        if full in sys.builtin_module_names or (index == 0 and part in sys.stdlib_module_names):
            raise refusal(name, f"{full} is part of Python", near)
        spec = importlib.machinery.PathFinder.find_spec(full, places)
        if spec is None:
            raise refusal(name, f"there is no module {full} in this project", near)
        places = None if spec.submodule_search_locations is None else list(spec.submodule_search_locations)
        sources = [spec.origin] if spec.has_location and spec.origin else places or []
        if not sources:
            raise refusal(name, f"{full} has no file", near)
        for source in sources:
            check_source(name, Path(source), near=near)
        if places is None and index + 1 < len(parts):
            raise refusal(name, f"{full} is no package", near)


def check_object(name: str, found: Any, *, near: Path | None) -> None:
    """Check that what a factory's name stands for is defined in the user's own code.

    Raises:
        InputError: it is imported from elsewhere; says what to do.
    """
    while isinstance(found, functools.partial):
        found = found.func
    module = getattr(found, "__module__", None) or type(found).__module__
    file = getattr(sys.modules.get(module), "__file__", None)
    if not isinstance(file, str):
        raise refusal(name, f"it is {module}'s, which has no file", near)
    if (reason := _foreign(Path(file), near)) is not None:
        raise refusal(name, f"it is defined in {module}, and {file} {reason}", near)


def refusal(name: str, reason: str, near: Path | None) -> InputError:
    """Return the error that says what was not run, why, and what to do."""
    recorded = "the model" if near is None else str(near)
    return InputError(
        f"{recorded} names the factory {name!r}, which was not run: {reason}. If you trust it, name it yourself "
        f"(--model or --data, in Python model= or data=), or add --trust-factory {name}"
    )


def _key(name: str) -> str:
    """Return what a name stands for wherever the working folder is."""
    where, _, attribute = name.rpartition(":")
    return f"{Path(where).absolute().resolve()}:{attribute}" if where.endswith(".py") else name


def _foreign(source: Path, near: Path | None) -> str | None:
    """Return why a Python file is none of the user's own project; None if it is."""
    if str(source).startswith(("\\\\", "//")):  # looking at it would tell another machine who we are
        return "is on another machine"
    given = Path(os.path.normpath(source.absolute()))
    followed = source.resolve()
    for file in dict.fromkeys((given, followed)):
        if (reason := _not_the_users(file)) is not None:
            return reason
    roots = [Path.cwd(), Path.cwd().resolve(), *project_folders(near)[-1:]]
    # As it is written, or with its links followed: both are ways to have a file in a project.
    if any(file.is_relative_to(root) for file in (given, followed) for root in roots):
        return None
    return "is neither below the working folder nor in the project of the file that names it"


def _not_the_users(file: Path) -> str | None:
    """Return whose a Python file is, if it was installed with something."""
    if INSTALLED & set(file.parts):
        return "is of an installed package"
    if any(file.is_relative_to(Path(sysconfig.get_path(kind)).resolve()) for kind in ("stdlib", "platstdlib")):
        return "is part of Python"
    if any(file.is_relative_to(Path(__file__).resolve().parents[1] / own) for own in OWN):
        return "is part of csqtool"
    for folder in file.parents:
        if (folder / "pyvenv.cfg").exists() and file.relative_to(folder).parts[0] in _IN_ENVIRONMENT:
            return "is of a virtual environment"
    return None
