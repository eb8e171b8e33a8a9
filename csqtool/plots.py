"""Pictures of searches: precision over epochs, bits a layer, and accuracy against size over several runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csqtool.errors import ConfigError, InputError
from csqtool.files import read_json, replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def available() -> bool:
    """Tell whether pictures can be drawn: matplotlib is an extra."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def plot_run(run: Path) -> list[Path]:
    """Draw a finished search into its ``plots`` folder.

    Returns:
        The files: average precision over epochs (as the CSQ paper's figure 3), and bits a layer (figure 4).

    Raises:
        ConfigError: matplotlib is not installed.
        InputError: `run` holds no finished search.
    """
    summary, scheme = _finished(run)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [
        _save(_precision(log, summary), run / "plots" / "precision.svg"),
        _save(_layers(scheme), run / "plots" / "layers.svg"),
    ]


def plot_runs(runs: Sequence[Path], output: Path) -> Path:
    """Draw the metric of finished searches against the bits of their weights.

    Args:
        runs: run directories.
        output: the ``.svg`` or ``.png`` file to write.

    Raises:
        ConfigError: matplotlib is not installed, or the file's ending is unknown.
        InputError: a run holds no finished search.
    """
    figure, axes = _figure(6, 4)
    points: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        summary, scheme = _finished(run)
        kilobytes = sum(entry["bit_width"] * entry["elements"] for entry in scheme) / 8000
        points.setdefault(summary["method"], []).append((kilobytes, summary["metric"]))
    for method, found in points.items():
        xs, ys = zip(*sorted(found), strict=True)
        axes.plot(xs, ys, "o-", label=method, markersize=5)
    baselines = {_finished(run)[0]["metric_float"] for run in runs} - {None}
    for baseline in baselines:
        axes.axhline(baseline, color="grey", linestyle=":", linewidth=1)
        axes.annotate("float", (1, baseline), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="grey")
    axes.set(xlabel="packed weights, kB", ylabel=_finished(runs[0])[0]["metric_name"])
    axes.legend(frameon=False)
    return _save(figure, output)


def _finished(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    if not (run / "summary.json").is_file():
        raise InputError(f"{run} holds no finished search (no summary.json)")
    return read_json(run / "summary.json"), read_json(run / "scheme.json")


def _precision(log: list[dict[str, Any]], summary: dict[str, Any]) -> Figure:
    figure, axes = _figure(6, 3.5)
    entries = [entry for entry in log if "average_precision" in entry]
    start = 0
    for stage in dict.fromkeys(entry["phase"] for entry in entries):
        course = [entry["average_precision"] for entry in entries if entry["phase"] == stage]
        axes.plot(range(start + 1, start + len(course) + 1), course, "o-", label=stage, markersize=3)
        start += len(course)
    if summary["target_bits"] is not None:
        axes.axhline(summary["target_bits"], color="grey", linestyle=":", linewidth=1, label="target")
    axes.set(xlabel="epoch", ylabel="planes a weight", ylim=(0, 8.3), title="Average precision")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    return figure


def _layers(scheme: list[dict[str, Any]]) -> Figure:
    names = [entry["name"].removesuffix(".weight") for entry in scheme]
    figure, axes = _figure(6, 1.2 + 0.22 * len(names))
    places = range(len(names))
    axes.barh(places, [entry["bit_width"] for entry in scheme], height=0.75, color="#c6d8ef", label="bit width")
    axes.barh(places, [entry["precision"] for entry in scheme], height=0.4, color="#2f6db5", label="planes")
    axes.set(yticks=list(places), xlim=(0, 9.2), xlabel="bits", title="Bits a layer")
    axes.set_yticklabels(names, fontsize=8)
    axes.invert_yaxis()
    axes.legend(frameon=False, loc="lower right")
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    if not available():
        raise ConfigError("plots need matplotlib, an extra: pip install 'csqtool[plots]'")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> Path:
    if path.suffix not in (".svg", ".png"):
        raise ConfigError(f"{path}: a picture's name ends in .svg or .png")
    with replacing(path) as temporary:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(temporary, format=path.suffix[1:], dpi=150, metadata=metadata)
    return path
