"""What a report is about: gathers runs, models, exports, verifications and measurements that belong together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from csqtool.errors import FormatError, InputError
from csqtool.files import read_bytes, read_json
from csqtool.finalized_file import parse_finalized
from csqtool.onnx_file import parse_onnx, stored_tensors
from csqtool.quantized_model import QuantizedModel
from csqtool.report_file import is_report
from csqtool.searching.config import SearchConfig

PARTS = ("integers", "scales and zero points", "biases and other tensors", "graph and metadata")
ORIGIN = "csqtool.finalized_sha256"  # metadata key of an exported ONNX file


@dataclass(frozen=True)
class ExportedFile:
    """An exported file and what its bytes are spent on, by the names in `PARTS`."""

    path: Path
    size_bytes: int
    sha256: str
    parts: dict[str, int]


@dataclass
class Subject:
    """One search and what came of it; each part is None, or empty, where it is not at hand.

    Attributes:
        label: what tells it from others.
        config, summary, scheme, log: of the run directory; an unfinished run has no summary and scheme.
        model: the finalized model, with its path and the SHA-256 of its file.
        exports: exported files.
        verifications: reports of ``verify``.
    """

    label: str
    config: dict[str, Any] | None = None
    summary: dict[str, Any] | None = None
    scheme: list[dict[str, Any]] | None = None
    log: list[dict[str, Any]] = field(default_factory=list)
    model: QuantizedModel | None = None
    model_path: Path | None = None
    model_sha256: str | None = None
    exports: list[ExportedFile] = field(default_factory=list)
    verifications: list[dict[str, Any]] = field(default_factory=list)

    @property
    def passed(self) -> bool | None:
        """Whether all its verifications hold; None without any."""
        return all(report["passed"] for report in self.verifications) if self.verifications else None


@dataclass
class Gathered:
    """All subjects, and latencies that ``bench --json`` measured."""

    subjects: list[Subject] = field(default_factory=list)
    benches: list[dict[str, Any]] = field(default_factory=list)


def gather(paths: Sequence[Path]) -> Gathered:
    """Read everything in `paths`: files are matched to models by the SHA-256 that they record.

    Args:
        paths: run directories, outputs of pipelines, pipeline files, finalized models, ``.csq`` and ``.onnx``
            files, reports of ``verify --json`` and of ``bench --json``.

    Raises:
        InputError: a path is missing, or none of these.
        FormatError: a file is damaged.
    """
    found = Gathered()
    loose: list[tuple[str, Any]] = []  # what belongs to a model that may come later
    models: list[Subject] = []
    for path in paths:
        if path.suffix == ".toml":
            from csqtool.pipeline import read_pipeline

            output = read_pipeline(path).output
            if not output.is_dir():
                raise InputError(f"{path} has not been run yet; run it with: csqtool run {path}")
            found.subjects.append(_pipeline_output(output, found))
        elif path.is_dir():
            found.subjects.append(_folder(path, found))
        elif path.suffix == ".safetensors":
            _add_model(subject := Subject(str(path)), path)
            models.append(subject)
            found.subjects.append(subject)
        elif path.suffix in (".csq", ".onnx"):
            loose.append(_read_export(path))
        else:
            document = read_json(path)
            if _is_bench(document):
                found.benches.append(document)
            elif is_report(document):
                loose.append((str(path), document))
            else:
                raise InputError(f"{path} is neither a report of csqtool verify --json nor of csqtool bench --json")
    for subject in models:
        _join_run(found, subject)
    for origin, item in loose:
        _attach(found, origin, item)
    return found


def _folder(path: Path, found: Gathered) -> Subject:
    if (path / "config.json").is_file():
        return _add_run(Subject(str(path)), path)
    if (path / "run" / "config.json").is_file():
        return _pipeline_output(path, found)
    raise InputError(f"{path} is neither a run directory (no config.json) nor the output of a pipeline")


def _pipeline_output(path: Path, found: Gathered) -> Subject:
    subject = Subject(str(path))
    if (path / "run" / "config.json").is_file():
        _add_run(subject, path / "run")
    if (path / "model.safetensors").is_file():
        _add_model(subject, path / "model.safetensors")
    for file in sorted([*path.glob("*.onnx"), *path.glob("*.csq")]):
        origin, export = _read_export(file)
        if origin == subject.model_sha256:
            subject.exports.append(export)
    for file in sorted(path.glob("*.json")):
        document = read_json(file)
        if is_report(document):
            subject.verifications.append(document)
        elif _is_bench(document):
            found.benches.append(document)
    return subject


def _add_run(subject: Subject, run: Path) -> Subject:
    subject.config = SearchConfig.from_json(read_json(run / "config.json"), where=str(run / "config.json")).to_json()
    if (run / "log.jsonl").is_file():
        try:
            subject.log = [json.loads(line) for line in read_bytes(run / "log.jsonl").decode().splitlines()]
        except ValueError as error:
            raise FormatError(f"{run / 'log.jsonl'} is not the log of a search: {error}") from error
    if (run / "summary.json").is_file():
        subject.summary, subject.scheme = read_json(run / "summary.json"), read_json(run / "scheme.json")
        if not (_has(subject.summary, _SUMMARY) and all(_has(entry, _SCHEME) for entry in subject.scheme or [None])):
            raise FormatError(f"{run}: summary.json or scheme.json is not what a search writes")
    return subject


def _add_model(subject: Subject, path: Path) -> None:
    content = read_bytes(path)
    subject.model = parse_finalized(content, where=str(path))
    subject.model_path, subject.model_sha256 = path, hashlib.sha256(content).hexdigest()


def _join_run(found: Gathered, subject: Subject) -> None:
    """Put a finalized model to the run it comes from, if that is there: one subject instead of two."""
    runs = [run for run in found.subjects if run.model is None and run.scheme and _comes_from(subject, run)]
    if len(runs) == 1:  # of twins no one knows which
        run = runs[0]
        run.model, run.model_path, run.model_sha256 = subject.model, subject.model_path, subject.model_sha256
        found.subjects[:] = [other for other in found.subjects if other is not subject]


def _comes_from(subject: Subject, run: Subject) -> bool:
    """Return whether a finalized model has the layers, method and seed of a run and records the same float metric."""
    assert subject.model is not None
    layers = [(x.name, x.precision, x.mask, x.elements) for x in subject.model.layers]
    scheme = [(x["name"], x["precision"], x["mask"], x["elements"]) for x in run.scheme or []]
    method, config = subject.model.info.method, run.config or {}
    metrics = subject.model.info.metrics
    if sorted(layers) != sorted(scheme) or method is None:
        return False
    if metrics is not None and metrics.float_model != (run.summary or {}).get("metric_float"):
        return False
    recorded = msgspec.structs.asdict(method)
    recorded["method"] = recorded.pop("name")
    return all(config[key] == value for key, value in recorded.items() if key in config)


def _read_export(path: Path) -> tuple[str, ExportedFile]:
    """Return the SHA-256 of the finalized model that a file was made from, and what it holds."""
    content = read_bytes(path)
    origin, parts = (_csq_parts if path.suffix == ".csq" else _onnx_parts)(content, str(path))
    parts["graph and metadata"] = len(content) - sum(parts.values())
    return origin, ExportedFile(path, len(content), hashlib.sha256(content).hexdigest(), parts)


def _csq_parts(content: bytes, where: str) -> tuple[str, dict[str, int]]:
    from csqtool import csq

    finalized = csq.unpack(content, where=where)
    quantized = {layer.name for layer in parse_finalized(finalized, where=where).layers}
    parts = dict.fromkeys(PARTS, 0)
    for name, size in csq.tensor_bytes(content, where=where).items():
        kind = 0 if name in quantized else 1 if name.endswith(("_scale", "_zero_point")) else 2
        parts[PARTS[kind]] += size
    return hashlib.sha256(finalized).hexdigest(), parts


def _onnx_parts(content: bytes, where: str) -> tuple[str, dict[str, int]]:
    from onnx import TensorProto

    proto = parse_onnx(content, where=where)
    parts = dict.fromkeys(PARTS, 0)
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT32)  # biases: int32
    for name, tensor in stored_tensors(proto):
        size = len(tensor.raw_data) or tensor.ByteSize()
        if name.endswith(("_scale", ".scale")) or not tensor.dims:
            parts[PARTS[1]] += size
        elif tensor.data_type in floats:
            parts[PARTS[2]] += size
        elif tensor.data_type != TensorProto.INT64:  # shapes and axes belong to the graph
            parts[PARTS[0]] += size
    return next((p.value for p in proto.metadata_props if p.key == ORIGIN), ""), parts


_SUMMARY = {"metric_name", "metric_float", "metric", "seconds"}
_SCHEME = {"name", "precision", "mask", "bit_width", "elements"}
_BENCH = {"threads", "batch", "rounds", "files"}
_BENCHED = {"file", "size_bytes", "median_ms", "ratio", "load_ms", "load_peak_bytes", "kernels"}


def _has(document: Any, keys: set[str]) -> bool:
    return isinstance(document, dict) and keys <= document.keys()


def _is_bench(document: Any) -> bool:
    return _has(document, _BENCH) and all(_has(file, _BENCHED) for file in document["files"])


def _attach(found: Gathered, origin: str, item: Any) -> None:
    """Put a file, or a verification, where the model is that it comes from; make a subject of its own if none is."""
    for subject in found.subjects:
        if isinstance(item, ExportedFile):
            if origin and origin == subject.model_sha256:
                subject.exports.append(item)
                return
        else:
            files = [subject.model_path, *(export.path for export in subject.exports)]
            named = {Path(item["against"]).resolve(), Path(item["file"]).resolve()}
            if named & {file.resolve() for file in files if file is not None}:
                subject.verifications.append(item)
                return
    subject = Subject(str(item.path) if isinstance(item, ExportedFile) else item["file"])
    if isinstance(item, ExportedFile):
        subject.exports.append(item)
        if item.path.suffix == ".csq":
            _model_of_csq(subject, item.path)
    else:
        subject.verifications.append(item)
    found.subjects.append(subject)


def _model_of_csq(subject: Subject, path: Path) -> None:
    from csqtool import csq

    finalized = csq.unpack(read_bytes(path), where=str(path))
    subject.model = parse_finalized(finalized, where=str(path))
    subject.model_sha256 = hashlib.sha256(finalized).hexdigest()
