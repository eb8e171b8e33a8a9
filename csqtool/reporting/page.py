"""Renders gathered sources as one HTML file, without scripts and without external resources."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import tomli_w
from markupsafe import Markup

from csqtool.benchmarking import BenchDocument
from csqtool.errors import ConfigError, InputError
from csqtool.files import write_bytes
from csqtool.model_info import ModelInfo
from csqtool.reporting.allocations import view as view_of_allocation
from csqtool.reporting.arena import picture as picture_of_arena
from csqtool.reporting.blames import view as view_of_blame
from csqtool.reporting.charts import Series, chart, heatmap, histogram
from csqtool.reporting.sensitivities import view as view_of_sensitivity
from csqtool.reporting.sources import PARTS, Gathered, Subject, gather
from csqtool.reporting.sweeps import view as view_of_sweep
from csqtool.searching.config import SearchConfig
from csqtool.searching.records import LogEntry
from csqtool.summaries import preprocessing_text, target_text
from csqtool.text import operations, printable, size
from csqtool.verifying.findings import LEVELS, VerifyReport
from csqtool.version import __version__

HERE = Path(__file__).parent
IN_TABLES_OF_THEIR_OWN = ("model", "data", "model_args", "task", "weights")


def report(paths: Sequence[Path], output: Path, *, bench: bool = False) -> Path:
    """Write a report on everything in `paths`; the same inputs give the same bytes.

    Args:
        paths: see `csqtool.reporting.sources.gather`.
        output: the ``.html`` file to write.
        bench: measure the latency of the ONNX files among them, now.

    Raises:
        ConfigError: `output` is no ``.html`` file.
        InputError: a path is missing, or a report cannot be made of such a file.
        FormatError: a file is damaged.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{output}: a report's name ends in .html")
    found = gather(paths)
    if bench:
        found.benches.append(_measured(found))
    write_bytes(output, render(found).encode())
    return output


def render(found: Gathered) -> str:
    """Return the page."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, finalize=_without_control_characters,
    )  # fmt: skip
    environment.filters |= {"size": size, "verdict": _verdict}
    subjects = [_view(subject) for subject in found.subjects]
    verdicts = [view["passed"] for view in subjects if view["passed"] is not None]
    return environment.get_template("page.html").render(
        version=__version__,
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
        subjects=subjects,
        passed=all(verdicts) if verdicts else None,
        accuracy=_accuracy(found.subjects),
        benches=found.benches,
        sweeps=[view_of_sweep(one) for one in found.sweeps],
        sensitivities=[view_of_sensitivity(one, label) for label, one in found.sensitivities],
        allocations=[view_of_allocation(one.allocation, one.label) for one in found.subjects if one.allocation],
        blames=[view_of_blame(one, label) for label, one in found.blames],
        parts=PARTS,
    )


def _without_control_characters(value: Any) -> Any:
    """Escape control characters, because names come from files; line ends and markup are kept."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return "\n".join(printable(line) for line in value.split("\n"))


def _measured(found: Gathered) -> BenchDocument:
    from csqtool.benchmarking import bench as measure

    paths = [e.path for subject in found.subjects for e in subject.exports if e.path.suffix == ".onnx"]
    files = [path for path in paths if not path.name.endswith(".qonnx.onnx")]  # onnxruntime does not run these
    if not files:
        raise InputError("there is no ONNX file among the inputs whose latency could be measured")
    return BenchDocument(threads=1, batch=1, rounds=50, files=measure(files))


def _verdict(passed: bool | None) -> str:
    return {True: "PASS", False: "FAIL", None: "not verified"}[passed]


def _view(subject: Subject) -> dict[str, Any]:
    """Return the values that the page shows for one subject."""
    layers = _layers(subject)
    return {
        "label": subject.label,
        "passed": subject.passed,
        "cards": _cards(subject),
        "facts": _facts(subject),
        "settings": [(k, json.dumps(v, ensure_ascii=False)) for k, v in _config(subject).items()],
        "layers": layers,
        "widest": max((layer.bit_width for layer in layers), default=1) or 1,
        "epochs": _epochs(subject),
        "histograms": [
            {"name": layer.name, "picture": histogram(f"Integers of {layer.name}", layer.q), "bits": layer.bit_width,
             "levels": np.unique(layer.q).size, "entropy": layer.entropy}
            for layer in (subject.model.layers if subject.model else ())
        ],
        "exports": [
            {"path": str(e.path), "size": e.size_bytes, "parts": e.parts, "sha256": e.sha256, "encodings": e.encodings}
            for e in subject.exports
        ],
        "arenas": [
            {"path": path, "plan": plan, "picture": picture_of_arena(plan)} for path, plan in subject.arenas.items()
        ],
        "float_bytes": _float_bytes(subject),
        "verifications": [_verification_view(v) for v in subject.verifications],
        "pipeline": pipeline_text(subject),
        "model_path": subject.model_path and str(subject.model_path),
        "model_sha256": subject.model_sha256,
    }  # fmt: skip


def _metrics(subject: Subject) -> tuple[str, float | None, float | None]:
    """Return the metric's name, and its value for the float and for the quantized model."""
    if subject.model is not None and (metrics := subject.model.info.metrics) is not None:
        return metrics.name, metrics.float_model, metrics.finalized
    summary = subject.summary
    return ("metric", None, None) if summary is None else (summary.metric_name, summary.metric_float, summary.metric)


def _cards(subject: Subject) -> list[tuple[str, str, str]]:
    """Return (value, name, details) of the most important figures."""
    cards = []
    name, before, after = _metrics(subject)
    if after is not None:
        change = "" if before is None else f"float {before:.4f}, {after - before:+.4f}"
        cards.append((f"{after:.4f}", name, change))
    if layers := _layers(subject):
        weights = sum(layer.elements for layer in layers)
        bits, planes = (sum(getattr(x, k) * x.elements for x in layers) / weights for k in ("bit_width", "precision"))
        cards.append((f"{bits:.3f}", "bits a weight", f"{planes:.3f} planes, {_target(subject)}"))
    if subject.summary is not None and subject.summary.bops:
        cards.append((operations(subject.summary.bops), "bit operations", "a sample, in the quantized layers"))
    floats = _float_bytes(subject)
    cards += [
        (size(e.size_bytes), e.path.name, f"{floats / e.size_bytes:.1f} × below float32" if floats else "")
        for e in subject.exports
    ]
    if agreements := [share for report in subject.verifications for share in report.figures("agreement")]:
        cards.append((f"{min(agreements):.2%}", "equal labels", "exported file and PyTorch"))
    return cards


def _target(subject: Subject) -> str:
    settings = _settings(subject)
    return target_text(settings) if settings else "target not recorded"


def _settings(subject: Subject) -> dict[str, Any]:
    """Return the settings of the search by name: all of the run's, or those that the model records."""
    if subject.config is not None:
        return subject.config.to_json()
    method = subject.model.info.method if subject.model is not None else None
    if method is None:
        return {}
    settings = msgspec.structs.asdict(method)
    return {"method": settings.pop("name"), **settings}


def _config(subject: Subject) -> dict[str, Any]:
    return {} if subject.config is None else subject.config.to_json()


def _float_bytes(subject: Subject) -> int | None:
    """Return the bytes of all parameters and buffers in float32."""
    if subject.model is None:
        return None
    return 4 * subject.model.elements + sum(tensor.nbytes for tensor in subject.model.tensors.values())


def _facts(subject: Subject) -> list[tuple[str, str]]:
    """Return the recorded facts about model, data and method."""
    info = subject.model.info if subject.model is not None else ModelInfo()
    config, summary, settings = _config(subject), subject.summary, _settings(subject)
    data = info.data
    act_bits = settings.get("act_bits")
    facts: dict[str, Any] = {
        "model": info.model.factory if info.model else settings.get("model"),
        "input": ", ".join(" × ".join(map(str, i.shape)) for i in info.inputs) if info.inputs else None,
        "data": f"{data.source or 'data handed over in Python'} ({data.task})" if data else settings.get("data"),
        "preprocessing": preprocessing_text(data.preprocessing) if data and data.preprocessing else None,
        "method": settings.get("method"),
        "planes by": settings.get("allocator") or None,
        "target": _target(subject).removeprefix("target "),
        "activations": (f"{act_bits} bits" if act_bits else "float") if settings else None,
    }
    if settings.get("pretrain_epochs"):
        facts["float training"] = f"{settings['pretrain_epochs']:g} epochs"
    facts["started from"] = settings.get("weights")
    if settings.get("epochs") is not None:
        facts["epochs"] = f"{settings['epochs']:g} of training"
        if settings.get("finetune_epochs") is not None:  # methods of fixed bits have none
            facts["epochs"] = f"{settings['epochs']:g} of search, {settings['finetune_epochs']:g} of finetuning"
    facts["seed"] = settings.get("seed")
    if info.metrics is not None:
        facts["test samples"] = f"{info.metrics.samples:,}"
    if summary is not None:
        facts["duration"] = f"{summary.seconds / 60:.1f} minutes"
    elif config:
        facts["state"] = "the search is not finished"
    return [(key, str(value)) for key, value in facts.items() if value not in (None, "")]


@dataclass(frozen=True)
class _Layer:
    """A row of the table of layers; shape and scale are empty without a finalized model."""

    name: str
    mask: str
    precision: int
    bit_width: int
    elements: int
    bytes: int
    shape: str = ""
    scale: str = ""


def _layers(subject: Subject) -> list[_Layer]:
    if subject.model is not None:
        return [
            _Layer(x.name, x.mask, x.precision, x.bit_width, x.elements, x.packed_bytes,
                   " × ".join(map(str, x.shape)), f"{x.scale:.4g}")
            for x in subject.model.layers
        ]  # fmt: skip
    return [
        _Layer(x.name, x.mask, x.precision, x.bit_width, x.elements, (x.bit_width * x.elements + 7) // 8)
        for x in subject.scheme or []
    ]


def _epochs(subject: Subject) -> dict[str, Any] | None:
    """Return the charts of a search over its epochs."""
    if not subject.log:
        return None
    stages = list(dict.fromkeys(entry.stage for entry in subject.log))
    target = None if subject.config is None else subject.config.target_bits
    return {
        "stages": stages,
        "planes": _course(subject.log, stages, ["average_precision"], "planes a weight",
                          None if target is None else ("target", target)),
        "metric": _course(subject.log, stages, ["metric_hard", "metric"], _metrics(subject)[0]),
        "loss": _course(subject.log, stages, ["loss"], "training loss"),
        "layers": _precision_heatmap(subject.log),
    }  # fmt: skip


def _course(
    log: list[LogEntry],
    stages: list[str],
    keys: Sequence[str],
    label: str,
    level: tuple[str, float] | None = None,
) -> Markup | None:
    """Return a chart of a figure over the epochs, a series for each stage; None if no epoch has it."""
    points: dict[str, list[tuple[float, float]]] = {stage: [] for stage in stages}
    for number, entry in enumerate(log, 1):
        value = next((found for key in keys if (found := getattr(entry, key)) is not None), None)
        if value is not None:
            points[entry.stage].append((number, value))
    if not any(points.values()):
        return None
    series = [Series(stage, found) for stage, found in points.items()]
    return chart(f"{label} over the epochs", series, x="epoch", y=label, level=level,
                 whole_x=True)  # fmt: skip


def _precision_heatmap(log: list[LogEntry]) -> Markup | None:
    courses: dict[str, list[float]] = {}
    for entry in log:
        for name, planes in (entry.precision or {}).items():
            courses.setdefault(name, []).append(planes)
    if not courses:
        return None
    return heatmap("Planes of each layer over the epochs", list(courses.items()), largest=8, unit="planes")


def _accuracy(subjects: list[Subject]) -> dict[str, Any] | None:
    """Return the metric against the bytes of the packed integers, of all subjects and their float models."""
    points: dict[str, list[tuple[tuple[float, float], str]]] = {}
    rows = []
    labels = []
    for subject in subjects:
        name, before, after = _metrics(subject)
        layers = _layers(subject)
        if after is None or not layers:
            continue
        labels.append(name)
        method = dict(_facts(subject)).get("method", "searched")
        kilobytes = sum(layer.bytes for layer in layers) / 1000
        points.setdefault(method, []).append(((kilobytes, after), subject.label))
        rows.append((subject.label, method, kilobytes, after))
        if before is not None:
            floats = sum(layer.elements for layer in layers) * 4 / 1000
            if ((floats, before), "float32") not in points.setdefault("float32", []):
                points["float32"].append(((floats, before), "float32"))
                rows.append((subject.label, "float32", floats, before))
    if not rows:
        return None
    series = [
        Series(kind, [p for p, _ in sorted(found)], [n for _, n in sorted(found)]) for kind, found in points.items()
    ]
    label = labels[0] if len(set(labels)) == 1 else "metric"
    picture = chart(f"{label} against the size of the weights", series, x="weights, kB", y=label, joined=False,
                    from_zero=True)  # fmt: skip
    return {"picture": picture, "kinds": list(points), "rows": rows, "label": label}


def _verification_view(report: VerifyReport) -> dict[str, Any]:
    """Return a report with its checks in the order of the levels, and its layers as rows of a table."""
    checks = sorted(report.checks, key=lambda check: LEVELS.index(check.level) if check.level in LEVELS else 9)
    findings: dict[str, dict[str, Any]] = {}
    for finding in report.layers:
        findings.setdefault(finding.name, {})[finding.optimizations] = finding
    return {
        "file": report.file,
        "against": report.against,
        "passed": report.passed,
        "samples": report.samples,
        "checks": checks,
        "failures": report.failures,
        "outputs": [check for check in checks if check.level == "outputs" and "max_abs_diff" in check.figures],
        "levels": list(dict.fromkeys(finding.optimizations for finding in report.layers)),
        "findings": findings,
        "bisection": report.bisection,
    }


def pipeline_text(subject: Subject) -> str | None:
    """Return a pipeline file that repeats a search; settings with the recipe's defaults are left out."""
    if subject.config is None:
        return None
    config = subject.config.to_json()
    deciding = ("recipe", "optimizer", "method", "target_bits", "target_size", "target_bops", "finetune_with",
                "finetune_epochs")  # fmt: skip
    chosen = {key: config[key] for key in deciding if key in config}
    defaults = SearchConfig.make(**chosen).to_json()
    first = SearchConfig.make(target_bits=1, recipe=config["recipe"]).to_json()
    defaults |= {key: first[key] for key in chosen} | {"recipe": "default", "target_bits": None}
    document = {
        "model": {"factory": config["model"], "args": config["model_args"] or None, "weights": config["weights"]},
        "data": {"source": config["data"], "task": config["task"]},
        "search": {k: v for k, v in config.items() if k not in IN_TABLES_OF_THEIR_OWN and v != defaults[k]},
    }
    if subject.exports:
        document["export"] = {"formats": sorted({export.path.suffix[1:] for export in subject.exports})}
    return _escaped(tomli_w.dumps(_without_none(document)))


def _without_none(value: Any) -> Any:
    """Return a document without keys and items that are None, which TOML cannot represent."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value if item is not None] if isinstance(value, list) else value


def _escaped(toml: str) -> str:
    """Return TOML with control characters as TOML's own escapes; they only occur in strings."""
    return "".join(
        c if c.isprintable() or c == "\n" else f"\\u{ord(c):04x}" if ord(c) < 2**16 else f"\\U{ord(c):08x}"
        for c in toml
    )
