"""The sources of a report: runs, models, exports, verifications and latencies, grouped by model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from csqtool import documents
from csqtool.benchmarking import BenchDocument
from csqtool.blaming import BlameReport
from csqtool.errors import FormatError, InputError
from csqtool.files import read_bytes
from csqtool.finalized_file import parse_finalized
from csqtool.layer_sensitivity import SensitivityReport
from csqtool.onnx_file import parse_onnx, stored_tensors
from csqtool.quantized_model import QuantizedModel
from csqtool.reporting import arena
from csqtool.reporting.arena import ArenaPlan
from csqtool.searching.config import SearchConfig
from csqtool.searching.records import AllocationRecord, LogEntry, SchemeEntry, Summary
from csqtool.searching.run_directory import RunDirectory
from csqtool.sweeping.plan import SweepDirectory
from csqtool.sweeping.result import SweepResult
from csqtool.sweeping.runner import read_sweep
from csqtool.verifying.findings import VerifyReport
from csqtool.verifying.report_file import REPORT

PARTS = ("integers", "scales and zero points", "biases and other tensors", "graph and metadata")
ORIGIN = "csqtool.finalized_sha256"  # metadata key of an exported ONNX file


@dataclass(frozen=True)
class ExportedFile:
    """An exported file, with the bytes of each part named in `PARTS`, and for `.csq` how its tensors are encoded."""

    path: Path
    size_bytes: int
    sha256: str
    parts: dict[str, int]
    encodings: str = ""


@dataclass
class Subject:
    """One search and its results; a part that was not named is None or empty.

    Attributes:
        label: a name that differs from other subjects'.
        config, summary, scheme, log: of the run directory; an unfinished run has no summary and scheme.
        allocation: what the run's allocator found out about each layer.
        model: the finalized model, with its path and the SHA-256 of its file.
        exports: exported files.
        verifications: reports of ``verify``.
        arenas: plans of the arena of inferences in C, by folder.
    """

    label: str
    config: SearchConfig | None = None
    summary: Summary | None = None
    scheme: list[SchemeEntry] | None = None
    log: list[LogEntry] = field(default_factory=list)
    allocation: AllocationRecord | None = None
    model: QuantizedModel | None = None
    model_path: Path | None = None
    model_sha256: str | None = None
    exports: list[ExportedFile] = field(default_factory=list)
    verifications: list[VerifyReport] = field(default_factory=list)
    arenas: dict[str, ArenaPlan] = field(default_factory=dict)

    @property
    def passed(self) -> bool | None:
        """Whether all its verifications passed; None without any."""
        return all(report.passed for report in self.verifications) if self.verifications else None


@dataclass
class Gathered:
    """All subjects, latencies that ``bench --json`` measured, sweeps; what other verbs measured, by file."""

    subjects: list[Subject] = field(default_factory=list)
    benches: list[BenchDocument] = field(default_factory=list)
    sweeps: list[SweepResult] = field(default_factory=list)
    sensitivities: list[tuple[str, SensitivityReport]] = field(default_factory=list)
    blames: list[tuple[str, BlameReport]] = field(default_factory=list)


def gather(paths: Sequence[Path]) -> Gathered:
    """Read everything in `paths`: files are matched to models by the SHA-256 that they record.

    Args:
        paths: run directories, folders of sweeps, outputs of pipelines, pipeline files, finalized models, ``.csq`` and
            ``.onnx`` files, folders of C, reports of ``verify --json`` and of ``bench --json``, what
            ``sensitivity`` and ``blame`` wrote.

    Raises:
        InputError: a path is missing, or none of these.
        FormatError: a file is damaged.
    """
    sweeps = [path for path in paths if SweepDirectory(path).is_sweep]
    found = Gathered(sweeps=[read_sweep(path) for path in sweeps])
    loose: list[tuple[str, ExportedFile] | VerifyReport] = []  # what belongs to a model that may come later
    models: list[Subject] = []
    plans: list[Path] = []  # folders of C
    for path in (path for path in paths if path not in sweeps):
        if path.suffix == ".toml":
            found.subjects.append(_pipeline_file(path, found))
        elif (path / arena.NAME).is_file():
            plans.append(path)
        elif path.is_dir():
            found.subjects.append(_folder(path, found))
        elif path.suffix == ".safetensors":
            _add_model(subject := Subject(str(path)), path)
            models.append(subject)
            found.subjects.append(subject)
        elif path.suffix in (".csq", ".onnx"):
            loose.append(_read_export(path))
        elif (report := _add_json(path, found)) is not None:
            loose.append(report)
    for subject in models:
        _join_run(found, subject)
    for item in loose:
        if isinstance(item, VerifyReport):
            _attach_report(found, item)
        else:
            _attach_export(found, *item)
    for path in plans:
        _attach_plan(found, path)
    return found


def _pipeline_file(path: Path, found: Gathered) -> Subject:
    from csqtool.pipeline_file import read_pipeline

    output = read_pipeline(path).output
    if not output.is_dir():
        raise InputError(f"{path} has not been run yet; run it with: csqtool run {path}")
    return _pipeline_output(output, found)


def _add_json(path: Path, found: Gathered) -> VerifyReport | None:
    """Add what a JSON file holds; a report of verify is returned, for its model may come later.

    Raises:
        InputError: it holds nothing that can be shown.
    """
    match _read_json(path):
        case VerifyReport() as report:
            return report
        case SensitivityReport() as record:
            found.sensitivities.append((str(path), record))
        case BlameReport() as shares:
            found.blames.append((str(path), shares))
        case BenchDocument() as latencies:
            found.benches.append(latencies)
        case None:
            known = "verify --json, of csqtool bench --json, nor of csqtool sensitivity -o or blame -o"
            raise InputError(f"{path} is neither a report of csqtool {known}")
    return None


def _read_json(path: Path) -> VerifyReport | BenchDocument | SensitivityReport | BlameReport | None:
    """Return the report, the latencies, the sensitivities or the shares in a JSON file; None if it is something else.

    Raises:
        FormatError: it is not JSON, or it begins as one of them and then is not.
    """
    document = documents.decode(Any, read_bytes(path), where=str(path))
    if isinstance(document, dict) and "checks" in document:
        return documents.convert(VerifyReport, document, where=str(path), what=REPORT)
    if isinstance(document, dict) and "rounds" in document:
        return documents.convert(BenchDocument, document, where=str(path), what="what csqtool bench --json prints")
    if isinstance(document, dict) and document.get("kind") == "sensitivity":
        what = "what csqtool sensitivity -o writes"
        return documents.convert(SensitivityReport, document, where=str(path), what=what)
    if isinstance(document, dict) and document.get("kind") == "blame":
        return documents.convert(BlameReport, document, where=str(path), what="what csqtool blame -o writes")
    return None


def _folder(path: Path, found: Gathered) -> Subject:
    run = RunDirectory(path)
    if run.is_run:
        return _add_run(Subject(str(path)), run)
    if RunDirectory(path / "run").is_run:
        return _pipeline_output(path, found)
    raise InputError(f"{path} is neither a run directory (no {run.config.name}) nor the output of a pipeline")


def _pipeline_output(path: Path, found: Gathered) -> Subject:
    subject = Subject(str(path))
    if (run := RunDirectory(path / "run")).is_run:
        _add_run(subject, run)
    if (path / "model.safetensors").is_file():
        _add_model(subject, path / "model.safetensors")
    for file in sorted([*path.glob("*.onnx"), *path.glob("*.csq")]):
        origin, export = _read_export(file)
        if origin == subject.model_sha256:
            subject.exports.append(export)
    for file in sorted(path.glob(f"*/{arena.NAME}")):
        plan = arena.read_plan(file.parent)
        if plan.finalized_sha256 == subject.model_sha256:
            subject.arenas[str(file.parent)] = plan
    for file in sorted(path.glob("*.json")):
        record = _read_json(file)
        if isinstance(record, VerifyReport):
            subject.verifications.append(record)
        elif isinstance(record, BenchDocument):
            found.benches.append(record)
        elif isinstance(record, BlameReport):
            found.blames.append((str(file), record))
    return subject


def _add_run(subject: Subject, run: RunDirectory) -> Subject:
    subject.config, subject.log, subject.allocation = run.read_config(), run.read_log(), run.read_allocation()
    if run.is_finished:
        subject.summary, subject.scheme = run.read_summary(), run.read_scheme()
        if not subject.scheme:
            raise FormatError(f"{run.scheme} has no layers")
    return subject


def _add_model(subject: Subject, path: Path) -> None:
    content = read_bytes(path)
    subject.model = parse_finalized(content, where=str(path))
    subject.model_path, subject.model_sha256 = path, hashlib.sha256(content).hexdigest()


def _join_run(found: Gathered, subject: Subject) -> None:
    """Add a finalized model to the run that it comes from, if that was named, instead of to a new subject."""
    runs = [run for run in found.subjects if run.model is None and run.scheme and _comes_from(subject, run)]
    if len(runs) == 1:  # of twins no one knows which
        run = runs[0]
        run.model, run.model_path, run.model_sha256 = subject.model, subject.model_path, subject.model_sha256
        found.subjects[:] = [other for other in found.subjects if other is not subject]


def _comes_from(subject: Subject, run: Subject) -> bool:
    """Return whether a finalized model has the layers, method and seed of a run and records the same float metric."""
    assert subject.model is not None
    layers = [(x.name, x.precision, x.mask, x.elements) for x in subject.model.layers]
    scheme = [(x.name, x.precision, x.mask, x.elements) for x in run.scheme or []]
    method, config = subject.model.info.method, run.config.to_json() if run.config else {}
    metrics = subject.model.info.metrics
    if sorted(layers) != sorted(scheme) or method is None:
        return False
    if metrics is not None and metrics.float_model != (run.summary and run.summary.metric_float):
        return False
    recorded = msgspec.to_builtins(method)  # without what is not set
    recorded["method"] = recorded.pop("name")
    return all(config[key] == value for key, value in recorded.items() if key in config)


def _read_export(path: Path) -> tuple[str, ExportedFile]:
    """Return the SHA-256 of the finalized model that a file was made from, and the bytes of its parts."""
    content = read_bytes(path)
    origin, parts = (_csq_parts if path.suffix == ".csq" else _onnx_parts)(content, str(path))
    parts["graph and metadata"] = len(content) - sum(parts.values())
    encodings = ""
    if path.suffix == ".csq":
        from csqtool import csq

        encodings = csq.encoding_counts(content, where=str(path))
    return origin, ExportedFile(path, len(content), hashlib.sha256(content).hexdigest(), parts, encodings)


def _csq_parts(content: bytes, where: str) -> tuple[str, dict[str, int]]:
    from csqtool import csq

    file = csq.CsqFile(content, where=where)
    quantized = {layer.name for layer in file.model().layers}
    parts = dict.fromkeys(PARTS, 0)
    for name, size in csq.tensor_bytes(content, where=where).items():
        kind = 0 if name in quantized else 1 if name.endswith(("_scale", "_zero_point")) or name.startswith(":") else 2
        parts[PARTS[kind]] += size
    return file.finalized_sha256, parts


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


def _attach_export(found: Gathered, origin: str, export: ExportedFile) -> None:
    """Add an exported file to the model with the SHA-256 `origin`, or to a new subject if that was not named."""
    subject = next((s for s in found.subjects if origin and origin == s.model_sha256), None)
    if subject is None:
        subject = Subject(str(export.path))
        if export.path.suffix == ".csq":
            _model_of_csq(subject, export.path)
        found.subjects.append(subject)
    subject.exports.append(export)


def _attach_plan(found: Gathered, path: Path) -> None:
    """Add the plan in a folder of C to the model that it was made from, or to a new subject."""
    plan = arena.read_plan(path)
    subject = next((s for s in found.subjects if s.model_sha256 == plan.finalized_sha256), None)
    if subject is None:
        found.subjects.append(subject := Subject(str(path)))
    subject.arenas[str(path)] = plan


def _attach_report(found: Gathered, report: VerifyReport) -> None:
    """Add a verification to the subject of its files, or to a new subject if they were not named."""
    named = {_resolved(report.against), _resolved(report.file)}
    for subject in found.subjects:
        files = [subject.model_path, *(export.path for export in subject.exports)]
        if named & {_resolved(file) for file in files if file is not None}:
            subject.verifications.append(report)
            return
    found.subjects.append(Subject(report.file, verifications=[report]))


def _resolved(path: Path | str) -> str:
    return os.path.realpath(path) if "\0" not in str(path) else str(path)


def _model_of_csq(subject: Subject, path: Path) -> None:
    from csqtool import csq

    file = csq.CsqFile(read_bytes(path), where=str(path))
    subject.model = file.model()
    subject.model_sha256 = file.finalized_sha256
