"""The pipeline file: its TOML tables as records, and the `Pipeline` that they describe."""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec

from csqtool.data.sources import FILE_SOURCES
from csqtool.documents import convert
from csqtool.errors import ConfigError, nearest
from csqtool.files import read_bytes
from csqtool.searching.config import SearchConfig
from csqtool.verifying.gates import Gates, check_target
from csqtool.verifying.tolerances import Tolerances

PATHS = ("model", "data", "weights", "scheme")  # settings of a search that are paths, or begin with one
Names = Annotated[list[str], msgspec.Meta(min_length=1)]


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """The whole document; its tables are read one by one, so that messages name them."""

    output: str = "build"
    model: dict[str, Any] = {}
    data: dict[str, Any] = {}
    search: dict[str, Any] = {}
    export: dict[str, Any] = {}
    verify: dict[str, Any] = {}


class _Model(msgspec.Struct, forbid_unknown_fields=True):
    factory: str
    args: dict[str, Any] | None = None
    weights: str | None = None


class _Data(msgspec.Struct, forbid_unknown_fields=True):
    source: str
    task: str | None = None


class _Export(msgspec.Struct, forbid_unknown_fields=True):
    """``[export]`` without the tables of the formats."""

    formats: Names = msgspec.field(default_factory=lambda: ["onnx", "csq"])


class _Verify(msgspec.Struct):
    """``[verify]`` without the gates."""

    samples: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)] | None = None
    backends: Names = msgspec.field(default_factory=lambda: ["onnxruntime"])
    tolerances: dict[str, Any] = {}
    allow_unaccounted: list[str] = []
    cc: str | None = None
    target: str | None = None


@dataclass(frozen=True)
class Pipeline:
    """A pipeline file, read and checked; paths are relative to the working folder.

    Attributes:
        folder: the folder of the pipeline file.
        output: the folder that everything is written to.
        config: settings of the search.
        settings: the same as a JSON document, with paths as in the file, so that it is equal from any working folder.
        formats: formats to export, each with its options ([export.NAME]).
        gates: limits for `verify`.
        samples: number of test samples to verify on; None for all.
        backends: the backends that verify ONNX files.
        tolerances: the thresholds up to which `verify` accepts differences as rounding.
        allow_unaccounted: parts of an ONNX graph that `verify` lets pass unexplained.
        cc: the compiler with which `verify` compiles C.
        target: the simulated device on which `verify` runs C as well.
    """

    folder: Path
    output: Path
    config: SearchConfig
    settings: Mapping[str, Any]
    formats: Mapping[str, Mapping[str, Any]]
    gates: Gates
    samples: int | None = None
    backends: tuple[str, ...] = ("onnxruntime",)
    tolerances: Tolerances = field(default_factory=Tolerances)
    allow_unaccounted: tuple[str, ...] = ()
    cc: str | None = None
    target: str | None = None


def read_pipeline(path: Path) -> Pipeline:
    """Read a pipeline file.

    Raises:
        InputError: the file is missing, is not TOML, or has unknown keys or wrong values.
    """
    try:
        document = tomllib.loads(read_bytes(path).decode())
    except RecursionError as error:
        raise ConfigError(f"{path} is not valid TOML: it is nested too deep") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return make_pipeline(document, path)


def make_pipeline(document: Mapping[str, Any], path: Path) -> Pipeline:
    """Return the pipeline that a document describes; `path` is its file, which need not exist.

    Raises:
        ConfigError: a key is unknown, or a value is wrong.
    """
    where, folder = str(path), path.parent
    tables = convert(_File, document, where=where, error=ConfigError)
    config = _search(tables, where)
    beside: dict[str, Any] = {
        key: _beside(value, folder) for key in PATHS if isinstance(value := getattr(config, key), str)
    }
    plain, tolerances, gates = _verify(tables.verify, where)
    compared = {
        key: _beside(value, folder)
        for key in ("latency_against", "baseline") if (value := getattr(gates, key)) is not None
    }  # fmt: skip
    return Pipeline(
        folder=folder,
        output=_output(tables.output, folder),
        config=dataclasses.replace(config, **beside),
        settings=config.to_json(),
        formats=_formats(tables.export, where),
        gates=msgspec.structs.replace(gates, **compared),
        samples=plain.samples,
        backends=tuple(plain.backends),
        tolerances=tolerances,
        allow_unaccounted=tuple(plain.allow_unaccounted),
        cc=plain.cc,
        target=plain.target,
    )


def _search(tables: _File, where: str) -> SearchConfig:
    """Return the search's settings, with paths as in the file."""
    model = convert(_Model, tables.model, where=f"{where}: [model]", error=ConfigError)
    data = convert(_Data, tables.data, where=f"{where}: [data]", error=ConfigError)
    if taken := {"model", "data", "model_args", "task", "weights"} & set(tables.search):
        raise ConfigError(f"{where}: [search] {min(taken)} belongs in [model] or [data]")
    try:
        json.dumps(model.args, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: [model] args: only texts, finite numbers, lists and tables: {error}") from error
    given = {"model_args": model.args, "weights": model.weights, "task": data.task}
    settings = {key: value for key, value in given.items() if value is not None}
    settings |= {**tables.search, "model": model.factory, "data": data.source}
    return SearchConfig.make(f"{where}: [search]", **settings)


def _formats(table: Mapping[str, Any], where: str) -> dict[str, Mapping[str, Any]]:
    """Return the formats to export, each with its options."""
    options = {name: value for name, value in table.items() if isinstance(value, dict)}
    plain = {name: value for name, value in table.items() if name not in options}
    formats = convert(_Export, plain, where=f"{where}: [export]", error=ConfigError).formats
    if unused := sorted(set(options) - set(formats)):
        raise ConfigError(f"{where}: [export.{unused[0]}] is no exported format; {nearest(unused[0], formats)}")
    return {name: options.get(name, {}) for name in formats}


def _verify(table: Mapping[str, Any], where: str) -> tuple[_Verify, Tolerances, Gates]:
    where = f"{where}: [verify]"
    _check_keys(table, [*_Verify.__struct_fields__, *Gates.__struct_fields__], where)
    plain = convert(_Verify, table, where=where, error=ConfigError)
    tolerances = Tolerances.from_mapping(plain.tolerances, where=f"{where[:-1]}.tolerances]")
    gates = {key: value for key, value in table.items() if key in Gates.__struct_fields__}
    limits = Gates.from_mapping(gates, where=where)
    check_target(plain.target, limits)
    return plain, tolerances, limits


def _check_keys(table: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}; {nearest(key, known)}")


def _output(name: str, folder: Path) -> Path:
    if not name or "\0" in name:
        raise ConfigError(f"output must be a folder's name, got {name!r}")
    return Path(os.path.relpath(folder / name))


def _beside(spec: str, folder: Path) -> str:
    """Return a path, or a spec that begins with one, relative to the working folder instead of to `folder`.

    Raises:
        ConfigError: it contains a zero byte, which no path may.
    """
    if "\0" in spec:
        raise ConfigError(f"{spec!r} contains a zero byte; no path may")
    kind, colon, rest = spec.partition(":")
    if colon and kind in FILE_SOURCES:
        return f"{kind}:{Path(os.path.relpath(folder / rest)).as_posix()}"
    path, colon, name = spec.rpartition(":")
    if colon and path.endswith(".py"):
        return f"{Path(os.path.relpath(folder / path)).as_posix()}:{name}"
    if not colon and Path(spec).suffix:
        return Path(os.path.relpath(folder / spec)).as_posix()
    return spec
