"""A whole pipeline from one TOML file: search → finalize → export → verify, doing only what has changed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from csqtool.data.sources import FILE_SOURCES, split_options
from csqtool.errors import ConfigError, nearest
from csqtool.files import read_bytes, sha256, write_json
from csqtool.searching.config import SearchConfig
from csqtool.verifying.gates import Gates
from csqtool.verifying.tolerances import Tolerances
from csqtool.version import __version__

TABLES = {
    "model": ("factory", "args", "weights"),
    "data": ("source", "task"),
    "export": ("formats",),
}


@dataclass(frozen=True)
class Pipeline:
    """A pipeline file, read and checked; paths are relative to the working folder.

    Attributes:
        folder: where the pipeline file is.
        output: where everything is written.
        config: settings of the search.
        formats: formats to export, each with its options ([export.NAME]).
        gates: limits for `verify`.
        samples: test samples to verify on, None all.
        backends: what verifies ONNX files.
        tolerances: what `verify` takes for rounding.
    """

    folder: Path
    output: Path
    config: SearchConfig
    formats: Mapping[str, Mapping[str, Any]]
    gates: Gates
    samples: int | None = None
    backends: tuple[str, ...] = ("onnxruntime",)
    tolerances: Tolerances = field(default_factory=Tolerances)


@dataclass
class PipelineResult:
    """What a pipeline did.

    Attributes:
        stages: stage to ``done`` or ``unchanged``.
        exports: format to path, size and the float32 size.
        reports: format to the verification's JSON document.
    """

    pipeline: Pipeline
    stages: dict[str, str] = field(default_factory=dict)
    exports: dict[str, dict[str, Any]] = field(default_factory=dict)
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Every export was verified and holds."""
        return bool(self.reports) and all(report["passed"] for report in self.reports.values())

    @property
    def finalized(self) -> Path:
        """The finalized model."""
        return self.pipeline.output / "model.safetensors"


def read_pipeline(path: Path) -> Pipeline:
    """Read a pipeline file.

    Raises:
        InputError: the file is missing, is not TOML, or has unknown keys or wrong values.
    """
    try:
        document = tomllib.loads(read_bytes(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    where = str(path)
    _check_keys(document, ["output", "model", "data", "search", "export", "verify"], where)
    for name, keys in TABLES.items():
        plain = {k: v for k, v in _table(document, name, where).items() if name != "export" or not isinstance(v, dict)}
        _check_keys(plain, keys, f"{where}: [{name}]")
    folder = path.parent
    model, data, search = (_table(document, name, where) for name in ("model", "data", "search"))
    for name, table, key in (("model", model, "factory"), ("data", data, "source")):
        if not isinstance(table.get(key), str):
            raise ConfigError(f'{where}: [{name}] needs {key} = "…"')
    taken = {"model", "data", "model_args", "task", "weights"} & set(search)
    if taken:
        raise ConfigError(f"{where}: [search] {min(taken)} belongs in [model] or [data]")
    settings = {**search, "model": _beside(model["factory"], folder), "data": _beside(data["source"], folder)}
    settings |= {"model_args": model["args"]} if "args" in model else {}
    settings |= {"task": data["task"]} if "task" in data else {}
    settings |= {"weights": _beside(model["weights"], folder)} if "weights" in model else {}
    verify = dict(_table(document, "verify", where))
    samples, backends = verify.pop("samples", None), verify.pop("backends", ["onnxruntime"])
    tolerances = Tolerances.from_mapping(_table(verify, "tolerances", where), where=f"{where}: [verify.tolerances]")
    verify.pop("tolerances", None)
    for key in ("latency_against", "baseline"):
        if isinstance(verify.get(key), str):
            verify[key] = _beside(verify[key], folder)
    if samples is not None and (not isinstance(samples, int) or isinstance(samples, bool) or samples < 1):
        raise ConfigError(f"{where}: [verify] samples must be a number of at least 1, got {samples!r}")
    if not isinstance(backends, list) or not backends or not all(isinstance(b, str) for b in backends):
        raise ConfigError(f'{where}: [verify] backends must be a list of names, such as ["onnxruntime", "reference"]')
    exports = _table(document, "export", where)
    formats = exports.get("formats", ["onnx", "csq"])
    if not isinstance(formats, list) or not formats or not all(isinstance(f, str) for f in formats):
        raise ConfigError(f'{where}: [export] formats must be a list of names, such as ["onnx", "csq"]')
    options = {name: table for name, table in exports.items() if isinstance(table, dict)}
    if unused := sorted(set(options) - set(formats)):
        raise ConfigError(f"{where}: [export.{unused[0]}] is no exported format; {nearest(unused[0], formats)}")
    output = document.get("output", "build")
    if not isinstance(output, str):
        raise ConfigError(f"{where}: output must be a folder's name, got {output!r}")
    config = SearchConfig.make(**settings, where=f"{where}: [search]")
    gates = Gates.from_mapping(verify, where=f"{where}: [verify]")
    output_folder = Path(os.path.relpath(folder / output))
    return Pipeline(
        folder,
        output_folder,
        config,
        {name: options.get(name, {}) for name in formats},
        gates,
        samples,
        tuple(backends),
        tolerances,
    )


def _table(document: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: [{name}] must be a table")
    return table


def _check_keys(table: Mapping[str, Any], known: Any, where: str) -> None:
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}; {nearest(key, known)}")


def _beside(spec: str, folder: Path) -> str:
    """Return a path, or a spec that begins with one, relative to the working folder instead of to `folder`."""
    kind, colon, rest = spec.partition(":")
    if colon and kind in FILE_SOURCES:
        return f"{kind}:{Path(os.path.relpath(folder / rest)).as_posix()}"
    path, colon, name = spec.rpartition(":")
    if colon and path.endswith(".py"):
        return f"{Path(os.path.relpath(folder / path)).as_posix()}:{name}"
    if not colon and Path(spec).suffix:
        return Path(os.path.relpath(folder / spec)).as_posix()
    return spec


def run_pipeline(
    path: Path, *, progress: Any = None, tell: Callable[[str], None] = lambda text: None
) -> PipelineResult:
    """Run a pipeline; stages whose inputs and outputs have not changed are skipped.

    Args:
        path: the pipeline file.
        progress: told about every training step.
        tell: told what each stage does, a line each.

    Raises:
        InputError: the pipeline file, or something it names, cannot be used.
        SearchInterrupted: Ctrl-C; the next run goes on.
    """
    from csqtool.exporting import export, load_exporter
    from csqtool.finalized_file import write_finalized
    from csqtool.searching import runs
    from csqtool.verifying.verification import verify_file

    pipeline = read_pipeline(path)
    suffixes = {name: load_exporter(name, options).suffix for name, options in pipeline.formats.items()}
    if folders := [name for name, suffix in suffixes.items() if not suffix]:
        raise ConfigError(f"{path}: a pipeline verifies one file a format; {folders[0]} is for csqtool export")
    result = PipelineResult(pipeline)
    stages = _Stages(pipeline.output / ".stages.json", result.stages, tell)
    run, finalized = pipeline.output / "run", result.finalized
    code = _fingerprint_of_code(pipeline)
    inputs = _digest({**_portable(pipeline), "code": code})

    def do_search() -> None:
        if stages.began("search", inputs) and (run / "config.json").is_file():
            runs.resume(run, progress=progress)
        else:
            stages.begin("search", inputs)
            runs.begin(pipeline.config, run, overwrite=True, progress=progress)

    def do_finalize() -> None:
        write_finalized(runs.load_finished(run).finalize(), finalized)

    stages.run(
        "search", inputs, [run / "summary.json", run / "scheme.json", run / "checkpoints" / "last.pt"], do_search
    )
    inputs = _digest({"run": sha256(run / "checkpoints" / "last.pt"), "before": inputs})
    stages.run("finalize", inputs, [finalized], do_finalize)
    digest = sha256(finalized)
    for name, options in pipeline.formats.items():
        target = pipeline.output / f"model{suffixes[name]}"
        facts = pipeline.output / f"export-{name}.json"

        def do_export(
            name: str = name, target: Path = target, facts: Path = facts, options: Mapping[str, Any] = options
        ) -> None:
            done = export(finalized, target, format=name, options=options)
            for note in done.notes:
                tell(f"  {note}")
            if done.report.float_nodes:
                nodes = [node.name for node in done.report.float_nodes]
                more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
                tell(f"  run in float: {', '.join(nodes[:3])}{more} (csqtool export says why)")
            write_json(facts, {"size_bytes": done.size_bytes, "float32_bytes": done.float32_bytes, "notes": done.notes})

        exported_from = _digest({"model": digest, "code": code, "options": options})
        stages.run(f"export {name}", exported_from, [target, facts], do_export)
        result.exports[name] = {"path": target, **_read(facts)}
        report_path = pipeline.output / f"verify-{name}.json"

        def do_verify(target: Path = target, report_path: Path = report_path) -> None:
            report = verify_file(
                target,
                finalized,
                gates=pipeline.gates.for_file(target),
                samples=pipeline.samples,
                backends=pipeline.backends if target.suffix == ".onnx" else ("onnxruntime",),
                tolerances=pipeline.tolerances,
            )
            write_json(report_path, report.to_json())

        checks = {
            "file": sha256(target),
            "gates": dataclasses.asdict(pipeline.gates),
            # Files that gates compare with; a latency is measured anew each time.
            "compared": [sha256(Path(f)) for f in (pipeline.gates.baseline, pipeline.gates.latency_against) if f],
            "samples": pipeline.samples,
            "backends": pipeline.backends,
            "tolerances": dataclasses.asdict(pipeline.tolerances),
            "code": code,
            "model": digest,
        }
        if report_path.is_file() and (not _read(report_path).get("passed") or pipeline.gates.latency_against):
            report_path.unlink()  # a failed verification is never taken from the past, nor a measured latency
        stages.run(f"verify {name}", _digest(checks), [report_path], do_verify)
        result.reports[name] = _read(report_path)
    return result


class _Stages:
    """Remembers what each stage was made from, and what it made."""

    def __init__(self, path: Path, log: dict[str, str], tell: Callable[[str], None]) -> None:
        self._path = path
        self._log = log
        self._tell = tell
        self._known: dict[str, Any] = {}
        if path.is_file():
            try:
                known = json.loads(path.read_text())
                self._known = known if isinstance(known, dict) else {}
            except (OSError, ValueError):
                pass  # an unreadable record only costs work that is done again

    def began(self, name: str, inputs: str) -> bool:
        """Tell whether the stage was begun from the same inputs before."""
        return bool(self._known.get(name, {}).get("inputs") == inputs)

    def begin(self, name: str, inputs: str) -> None:
        """Record that a stage begins."""
        self._known[name] = {"inputs": inputs, "outputs": {}}
        write_json(self._path, self._known)

    def run(self, name: str, inputs: str, outputs: list[Path], work: Callable[[], Any]) -> None:
        """Do `work` unless its inputs and outputs are those of last time."""
        made = self._known.get(name, {}).get("outputs", {})
        unchanged = (
            bool(made)
            and self.began(name, inputs)
            and all(output.is_file() and made.get(output.name) == sha256(output) for output in outputs)
        )
        self._tell(f"{name}: unchanged" if unchanged else f"{name} …")
        if not unchanged:
            work()
            self._known[name] = {"inputs": inputs, "outputs": {o.name: sha256(o) for o in outputs}}
            write_json(self._path, self._known)
        self._log[name] = "unchanged" if unchanged else "done"


def _read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(read_bytes(path))
    return document


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _portable(pipeline: Pipeline) -> dict[str, Any]:
    """Return the search's settings with paths as seen from the pipeline file: the same from any working folder."""
    settings = pipeline.config.to_json()
    for key in ("model", "data", "weights"):
        if isinstance(settings[key], str):
            settings[key] = settings[key].replace(f"{Path(os.path.relpath(pipeline.folder)).as_posix()}/", "")
    return settings


def _fingerprint_of_code(pipeline: Pipeline) -> dict[str, str]:
    """Return digests of everything outside the settings that decides the result.

    Python files are counted with all others of their folder, which they may import.
    """
    found = {"csqtool": __version__}
    config = pipeline.config
    for spec in (config.model, config.data):
        path = Path(spec.rpartition(":")[0])
        if path.suffix == ".py" and path.is_file():
            for source in sorted(path.parent.glob("*.py")):
                found[source.name] = sha256(source)
    kind, _, rest = split_options(config.data)[0].partition(":")
    data = Path(rest) if kind in FILE_SOURCES else None
    if data is not None and data.is_file():
        found["data"] = sha256(data)
    elif data is not None and data.is_dir():
        listing = [
            (p.relative_to(data).as_posix(), p.stat().st_size, p.stat().st_mtime_ns)
            for p in sorted(data.rglob("*")) if p.is_file()
        ]  # fmt: skip
        found["data"] = _digest(listing)
    if config.weights is not None:
        found["weights"] = sha256(Path(config.weights))
    return found
