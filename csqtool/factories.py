"""Objects named on the command line: ``path/to/file.py:name`` or ``package.module:name``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from csqtool import hubs, trust
from csqtool.errors import ConfigError, InputError, ModelError, nearest


def split_spec(spec: str) -> tuple[str, str]:
    """Split ``WHERE:NAME``.

    Raises:
        ConfigError: no name follows a colon.
    """
    where, colon, name = spec.rpartition(":")
    if not colon or not where or not name.isidentifier():
        raise ConfigError(f"{spec!r} is not a factory; write path/to/file.py:factory or package.module:factory")
    return where, name


def find_source(where: str, *, near: Path | None = None) -> Path:
    """Return the Python file that `where` names, relative to the working folder.

    Args:
        where: a path ending in ``.py``.
        near: a file; when the working folder does not hold `where`, the folders above this file are tried, up to that
            of its project, so that a finalized model finds its code from any place inside the same checkout.

    Raises:
        InputError: no such file.
    """
    folders = [Path(), *trust.project_folders(near)]
    for folder in folders:
        if (folder / where).is_file():
            return folder / where
    raise InputError(f"no such file: {where}")


def load_factory(spec: str, *, near: Path | None = None, recorded: bool = False) -> Any:
    """Return the object that `spec` names, importing its file or module.

    Args:
        spec: ``path/to/file.py:name`` or ``package.module:name``.
        near: a file whose folders are searched for the source, see `find_source`.
        recorded: whether a file names it, not the user: then it must be the user's own code, see `csqtool.trust`.

    Raises:
        InputError: the file or module is missing, fails to import or does not define the name, or is not trusted.
    """
    where, name = split_spec(spec)
    if not recorded:
        trust.remember(spec)
    recorded = recorded and not trust.is_named(spec)
    if where.endswith(".py"):
        if recorded and Path(where).is_absolute():
            trust.check_source(spec, Path(where), near=near)  # before anything looks at the path
        source = find_source(where, near=near)
        if recorded:
            trust.check_source(spec, source, near=near)
        module = _import_file(source)
    else:
        if recorded:
            trust.check_module(spec, where, near=near)
        try:
            module = importlib.import_module(where)
        except ModuleNotFoundError as error:
            raise InputError(f"cannot import {where}: {error}; a file is named as path/to/file.py:{name}") from error
        except Exception as error:
            raise InputError(f"importing {where} raised {type(error).__name__}: {error}") from error
    try:
        found = getattr(module, name)
    except AttributeError as error:
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ConfigError(f"{where} defines no {name!r}; {nearest(name, known)}") from error
    if recorded:
        trust.check_object(spec, found, near=near)
    return found


def _import_file(path: Path) -> Any:
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    module_name = f"_csqtool_{path.stem}_{digest}"  # two files may share a stem
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickling look up their module
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"importing {path} raised {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
    return module


def call_factory(spec: str, arguments: dict[str, Any], *, near: Path | None = None, recorded: bool = False) -> Any:
    """Call the factory `spec` with keyword `arguments`.

    Raises:
        ModelError: the factory is not callable or raised.
    """
    factory = load_factory(spec, near=near, recorded=recorded)
    if not callable(factory):
        raise ModelError(f"{spec} is not callable")
    try:
        return factory(**arguments)
    except Exception as error:
        raise ModelError(f"the factory {spec} raised {type(error).__name__}: {error}") from error


def build_model(
    spec: str, arguments: dict[str, Any] | None = None, *, near: Path | None = None, recorded: bool = False
) -> Any:
    """Return the `torch.nn.Module` that the factory `spec` builds, or that a hub has under this name.

    Raises:
        ModelError: the factory raised, or returned something else.
    """
    from torch import nn

    if hubs.hub_of(spec):
        model = hubs.build(spec, arguments or {}, recorded=recorded)
    else:
        model = call_factory(spec, arguments or {}, near=near, recorded=recorded)
    if not isinstance(model, nn.Module):
        raise ModelError(f"the factory {spec} returned {type(model).__name__}, not a torch.nn.Module")
    return model


def parse_arguments(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Parse ``name=value`` pairs; a value that is not JSON is read as text.

    Raises:
        ConfigError: a pair has no ``=`` or no valid name.
    """
    import json

    arguments: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"--model-arg takes name=value, got {pair!r}")
        try:
            arguments[name] = json.loads(text)
        except ValueError:
            arguments[name] = text
    return arguments
