"""Quantization after training: ResNet-20 on CIFAR-10 images, 1,024 unlabelled training images, all weights quantized.

    python -m benchmarks.post_training --data cifar10:DIR --weights resnet20.th --cache DIR [--only lsq-1 …]

A row is a call of `csqtool.quantize`, and an evaluation on all test images. A finished one is kept in the cache as JSON
and not repeated. The table of what is finished is printed; `results/post_training.md` holds one.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import csqtool
from csqtool.data import DataSource, load_data
from csqtool.evaluation import evaluate, reestimate_batch_norm
from csqtool.model_source import ModelSource
from csqtool.nn.state_dict import load_weights
from csqtool.progress import stderr_progress
from csqtool.quantizing import calibration_source

ROOT = Path(__file__).parents[1]
MODEL = f"{ROOT}/sample_models/resnet_cifar/model.py:resnet20"
SAMPLES = 1024
STEPS = 400
# Figures of AIMET and MCT on these images with as many deployed bits, without training, measured elsewhere.
RIVALS = {3: "78.9, 77.5", 2: "63.5, 65.7"}
FLOATS = {"float": "kept", "float-bn": "re-estimated", "float-bn-plain": "re-estimated without augmentation"}


def rows() -> dict[str, dict[str, Any]]:
    """Return the settings of every row, the most telling first."""
    planes = (1, 2, 3)
    found: dict[str, dict[str, Any]] = {f"lsq-{k}": {"target_bits": k} for k in planes}
    found |= {f"lsq-{k}-a8": {"target_bits": k, "act_bits": 8, "steps": 150} for k in planes}
    found |= {f"lsq-{k}-plain": {"target_bits": k, "batch_norm": False} for k in planes}
    found |= {f"{kind}-{k}": {"target_bits": k, "reconstruct": kind} for k in planes for kind in ("adaround", "csq")}
    found |= {f"nearest-{k}": {"target_bits": k, "steps": 0, "equalize": False} for k in planes}
    found |= {f"equalized-{k}": {"target_bits": k, "steps": 0, "equalize": True} for k in planes}
    found |= {"lsq-1-equalized": {"target_bits": 1, "equalize": True}}
    found |= {
        "lsq-1-a8-400": {"target_bits": 1, "act_bits": 8},
        "lsq-3-a4": {"target_bits": 3, "act_bits": 4, "steps": 150},
    }
    return found


def measured_float(name: str, source: DataSource, weights: str) -> dict[str, Any]:
    """Return the accuracy of the float network."""
    net = ModelSource.of(MODEL).build()
    load_weights(net, Path(weights))
    if name != "float":
        limited = calibration_source(source, SAMPLES)
        limited = replace(limited, augment=None) if name == "float-bn-plain" else limited
        reestimate_batch_norm(net, limited, torch.device("cpu"), batch_size=64, seed=0)
    return {"accuracy": evaluate(net, source.test, source.task)}


def measured(settings: dict[str, Any], source: DataSource, data: str, weights: str) -> dict[str, Any]:
    """Return what a row shows: accuracy, planes and bits a weight, seconds of a processor, and memory."""
    before = time.process_time()
    with stderr_progress() as progress:
        quantized = csqtool.quantize(
            MODEL,
            data,
            samples=SAMPLES,
            weights=weights,
            device="cpu",
            progress=progress,
            **{"steps": STEPS, **settings},
        )
    seconds = time.process_time() - before
    elements = sum(layer.elements for layer in quantized.layers)
    return {
        "accuracy": evaluate(csqtool.to_torch(quantized), source.test, source.task),
        "planes": sum(layer.elements * layer.precision for layer in quantized.layers) / elements,
        "bits": sum(layer.elements * layer.bit_width for layer in quantized.layers) / elements,
        "seconds": seconds,
    }


def table(cache: Path) -> str:
    """Return the table of the rows that are finished."""
    found = {name: json.loads(path.read_text()) for name in (*FLOATS, *rows())
             if (path := cache / f"{name}.json").exists()}  # fmt: skip
    head = ("reconstruction", "steps", "BatchNorm", "activations", "accuracy %", "planes", "bits", "processor s",
            "AIMET, MCT")  # fmt: skip
    cells: list[tuple[object, ...]] = [head, ("---",) * len(head)]
    for name, row in found.items():
        accuracy = f"{100 * row['accuracy']:.2f}"
        if name in FLOATS:
            cells.append(("float32", "", FLOATS[name], "float", accuracy, "", 32, "", ""))
            continue
        settings = rows()[name]
        cells.append((
            (settings.get("reconstruct", "lsq") if settings.get("steps") != 0 else "none")
            + (", equalized" if settings.get("equalize") else ""),
            settings.get("steps", STEPS),
            "kept" if settings.get("batch_norm") is False else "re-estimated",
            settings.get("act_bits", "float"),
            accuracy,
            f"{row['planes']:.3f}",
            f"{row['bits']:.3f}",
            f"{row['seconds']:.0f}",
            "" if "act_bits" in settings else RIVALS.get(settings["target_bits"], ""),
        ))  # fmt: skip
    lines = [f"| {' | '.join(map(str, row))} |" for row in cells]
    return "\n".join(lines)


def main() -> None:
    """Measure the rows that are missing, and print the table of all that are finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--cache", type=Path, required=True, help="a folder for what is measured")
    parser.add_argument("--only", nargs="*", help="names of rows, such as lsq-2; none: only print the table")
    arguments = parser.parse_args()
    known = (*FLOATS, *rows())
    chosen = known if arguments.only is None else arguments.only
    if unknown := sorted(set(chosen) - set(known)):
        parser.error(f"unknown row {unknown[0]}; the rows are {', '.join(known)}")
    arguments.cache.mkdir(parents=True, exist_ok=True)
    missing = [name for name in chosen if not (arguments.cache / f"{name}.json").exists()]
    source = load_data(arguments.data) if missing else None
    for name in missing:
        assert source is not None
        path = arguments.cache / f"{name}.json"
        if name in FLOATS:
            found = measured_float(name, source, arguments.weights)
        else:
            found = measured(rows()[name], source, arguments.data, arguments.weights)
        path.write_text(json.dumps(found))
    print(table(arguments.cache))


if __name__ == "__main__":
    main()
