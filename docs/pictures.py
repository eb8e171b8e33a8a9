"""Draws the pictures of ``docs/concepts.md`` from the sample's own search.

Run ``csqtool run sample_models/digits_cnn/pipeline.toml``, then ``python -m docs.pictures`` in the repository's root;
the drawing needs the extra ``benchmarks``. The pictures are committed.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from csqtool.finalized_file import read_finalized
from csqtool.quantized_model import QuantizedLayer, QuantizedModel

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "pictures"
LAYER = "block.conv2.0.weight"  # neither few nor many planes
BLUE, ORANGE, GREY = "#3566a8", "#d9822b", "#8a94a3"


def planes(model: QuantizedModel, log: list[dict[str, Any]], plt: Any) -> Any:
    """Draw one layer's weights: the integers, and the planes that they are made of."""
    layer = model.layer(LAYER)
    q = layer.q[:8].reshape(8, -1)[:, :36].astype(int)
    largest = 2**layer.precision - 1
    shown = [(f"integer weights q, −{largest} … {largest}", q, largest)]
    shown += [(f"plane of ±{2**b}", np.sign(q) * (np.abs(q) >> b & 1), 1) for b in reversed(range(layer.precision))]
    figure, axes = plt.subplots(len(shown), 1, figsize=(8, 1.25 * len(shown)))
    for axis, (title, values, limit) in zip(axes, shown, strict=True):
        axis.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xticks([])
        axis.set_yticks([])
    return figure


def masks(model: QuantizedModel, log: list[dict[str, Any]], plt: Any) -> Any:
    """Draw which planes each layer keeps."""
    kept = np.array([[int(digit) for digit in layer.mask] for layer in model.layers])
    figure, axis = plt.subplots(figsize=(8, 3.2))
    axis.pcolormesh(kept[::-1], cmap="Blues", vmin=0, vmax=1.4, edgecolors="white", linewidth=2)
    axis.set_yticks(np.arange(len(kept)) + 0.5, [layer.name for layer in reversed(model.layers)])
    axis.set_xticks(np.arange(8) + 0.5, [f"plane {b}" for b in range(7, -1, -1)])
    for row, layer in enumerate(reversed(model.layers)):
        axis.text(8.15, row + 0.5, f"precision {layer.precision}", va="center", fontsize=9)
    axis.set_xlim(0, 9.6)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return figure


def bit_width(model: QuantizedModel, log: list[dict[str, Any]], plt: Any) -> Any:
    """Draw the integers of a layer, which need a bit more than it has planes."""
    layer = model.layer(LAYER)
    values, counts = np.unique(layer.q, return_counts=True)
    low, high = -(2 ** (layer.precision - 1)), 2 ** (layer.precision - 1) - 1
    figure, axis = plt.subplots(figsize=(8, 3))
    axis.bar(values, counts, color=[BLUE if low <= value <= high else ORANGE for value in values])
    axis.set_xticks(range(2 * low, 2 * high + 2, 2))
    axis.set_xlabel(
        f"integer: {layer.precision} planes give −{2 * high + 1} … {2 * high + 1}. Orange ones do not fit into "
        f"{layer.precision} bits ({low} … {high}); all fit into {layer.bit_width}"
    )
    axis.set_ylabel("weights")
    return figure


def gates(model: QuantizedModel, log: list[dict[str, Any]], plt: Any) -> Any:
    """Draw the gate at several temperatures, and what the search measured while β rose."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2))
    x = np.linspace(-1.5, 1.5, 301)
    for beta, colour in ((1, GREY), (5, BLUE), (200, ORANGE)):
        left.plot(x, 1 / (1 + np.exp(-beta * x)), color=colour, label=f"β = {beta}")
    left.set_xlabel("trained number x")
    left.set_ylabel("gate σ(βx)")
    left.legend(frameon=False)
    found = [entry for entry in log if entry["stage"] == "search"]
    epochs = [entry["epoch"] for entry in found]
    right.plot(epochs, [entry["metric_soft"] for entry in found], color=BLUE, label="soft gates")
    right.plot(epochs, [entry["metric_hard"] for entry in found], color=ORANGE, label="gates as steps")
    right.set_xlabel("epoch of the search")
    right.set_ylabel("accuracy")
    right.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=2)
    return figure


def scales(model: QuantizedModel, log: list[dict[str, Any]], plt: Any) -> Any:
    """Draw each layer's scale: the distance of neighbouring weights, and the range they reach."""
    largest = max(float(np.abs(layer.dequantized()).max()) for layer in model.layers)
    figure, axis = plt.subplots(figsize=(8, 3.2))
    for row, layer in enumerate(reversed(model.layers)):
        grid = np.unique(layer.q) * float(layer.scale)
        axis.plot(grid, np.full(len(grid), row), "|", color=BLUE, markersize=11)
        axis.text(largest * 1.04, row, f"Δ = {layer.scale:.4f}", va="center", fontsize=9)
    axis.set_yticks(range(len(model.layers)), [layer.name for layer in reversed(model.layers)])
    axis.set_xlim(-largest * 1.03, largest * 1.32)
    axis.set_xlabel("value of a weight, q·Δ: every mark is one that the layer uses")
    return figure


def kernels(model: QuantizedModel, log: list[dict[str, Any]], plt: Any, onnx_file: Path) -> Any:
    """Draw which operators onnxruntime runs after it optimized the exported graph."""
    from csqtool.onnx_isolated import optimized_operators
    from csqtool.onnx_kernels import MOVES, is_integer_kernel

    counts = Counter(name for name in optimized_operators(onnx_file) if name not in MOVES)
    figure, axis = plt.subplots(figsize=(8, 2.6))
    names = sorted(counts, key=lambda name: counts[name])
    colours = [BLUE if is_integer_kernel(name) else GREY for name in names]
    axis.barh(names, [counts[name] for name in names], color=colours)
    axis.set_xlabel("nodes that compute")
    return figure


def entropy(model: QuantizedModel, log: list[dict[str, Any]], plt: Any) -> Any:
    """Draw bits a weight: the width that holds every integer, and the entropy, which the .csq file approaches."""
    figure, axis = plt.subplots(figsize=(8, 3.2))
    layers: list[QuantizedLayer] = list(reversed(model.layers))
    rows = np.arange(len(layers))
    axis.barh(rows + 0.2, [layer.bit_width for layer in layers], 0.38, color=GREY, label="bit width")
    axis.barh(rows - 0.2, [layer.entropy for layer in layers], 0.38, color=BLUE, label="entropy")
    axis.set_yticks(rows, [layer.name for layer in layers])
    axis.set_xlabel("bits a weight (float32: 32)")
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def main(build: Path = ROOT / "sample_models" / "digits_cnn" / "build") -> None:
    """Draw all pictures from a finished run of the sample."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "csqtool", "axes.spines.top": False, "axes.spines.right": False, "font.size": 10}
    model = read_finalized(build / "model.safetensors")
    lines = (build / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    log = [json.loads(line) for line in lines]
    FOLDER.mkdir(exist_ok=True)
    for draw in (planes, masks, bit_width, gates, scales, entropy):
        _save(draw(model, log, plt), draw.__name__)
    _save(kernels(model, log, plt, build / "model.onnx"), "kernels")


def _save(figure: Any, name: str) -> None:
    figure.tight_layout()
    figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
