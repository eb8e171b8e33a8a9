"""What strength λ and target do to the precision that a search finds, on digits (the CSQ paper's figures 2 and 3).

    python benchmarks/digits_sweeps.py -o benchmarks/results     # some ten minutes; needs the extra benchmarks

The last tables are 2 planes from pretrained weights with five seeds, and what closing holes of masks, the way of
finetuning, and distillation do to it.

Every search starts from one float model a seed. "Found" is the average precision when the search ends, before
planes are dropped or added by measured loss; "met" is what the finalized model has.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from csqtool.documents import plain
from csqtool.searching.config import SearchConfig
from csqtool.searching.runs import begin

ROOT = Path(__file__).parent.parent
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
TARGETS = (1.0, 2.0, 3.0, 4.0, 5.0)
SEEDS = (0, 1, 2, 3, 4)
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "masks with holes (--no-contiguous)": {"contiguous": False},
    "gates again (--finetune-with csq)": {"finetune_with": "csq"},
    "gates again, masks with holes": {"finetune_with": "csq", "contiguous": False},
    "half distilled (--distill 0.5)": {"distill": 0.5},
}
BASE: dict[str, Any] = {"model": f"{ROOT}/sample_models/digits_cnn/model.py:digits_cnn", "data": "digits",
                        "batch_size": 32}  # fmt: skip


def float_model(seed: int, folder: Path) -> str:
    """Train the float model of a seed for 30 epochs and return its file."""
    run = folder / f"float-{seed}"
    config = SearchConfig.make(**BASE, method="lsq", target_bits=7, seed=seed, pretrain_epochs=30, epochs=1)
    begin(config, run)
    return str(run / "float.safetensors")


def found(weights: str, run: Path, **settings: Any) -> tuple[dict[str, Any], list[float]]:
    """Search and return the summary, with the precision found, and the average precision after each epoch."""
    summary = plain(begin(SearchConfig.make(**BASE, weights=weights, **settings), run).summary)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    course = [entry["average_precision"] for entry in log if entry["stage"] == "search"]
    return {**summary, "found": next(e["cost_found"] for e in log if e["stage"] == "settle")}, course


def plot(courses: dict[str, list[float]], path: Path, title: str, targets: list[float]) -> None:
    """Draw the average precision over epochs."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for number, (label, course) in enumerate(courses.items()):
        axes.plot(range(1, len(course) + 1), course, label=label, color=f"C{number}")
    for number, target in enumerate(targets):
        axes.axhline(target, color=f"C{number}" if len(targets) > 1 else "grey", linestyle=":", linewidth=1)
    axes.set(title=title, xlabel="search epoch", ylabel="average precision, planes a weight", ylim=(0, 8.2))
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Print the tables and write the plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = float_model(0, folder)
        print("| λ | target | found | met | accuracy | float |\n| --- | --- | --- | --- | --- | --- |")
        courses = {}
        for strength in STRENGTHS:
            result, courses[f"λ = {strength:g}"] = found(
                weights, folder / f"s{strength}", strength=strength, target_bits=3
            )
            print(f"| {strength:g} | 3 | {result['found']:.3f} | {result['average_precision']:.3f} | "
                  f"{result['metric']:.4f} | {result['metric_float']:.4f} |", flush=True)  # fmt: skip
        plot(courses, output / "digits-strength.svg", "Digits, target 3, by strength λ", [3.0])
        courses = {}
        for target in TARGETS:
            result, courses[f"target {target:g}"] = found(weights, folder / f"t{target}", target_bits=target)
            print(f"| 0.01 | {target:g} | {result['found']:.3f} | {result['average_precision']:.3f} | "
                  f"{result['metric']:.4f} | {result['metric_float']:.4f} |", flush=True)  # fmt: skip
        plot(courses, output / "digits-target.svg", "Digits, λ = 0.01, by target", list(TARGETS))
        starts = {seed: weights if seed == 0 else float_model(seed, folder) for seed in SEEDS}
        print("\n| settings | seed | met | bit width | fewest planes | accuracy | float |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for number, (label, settings) in enumerate(VARIANTS.items()):
            for seed, start in starts.items():
                run = folder / f"two-{number}-{seed}"
                result, _ = found(start, run, target_bits=2, seed=seed, **settings)
                fewest = min(entry["precision"] for entry in json.loads((run / "scheme.json").read_text()))
                print(f"| {label} | {seed} | {result['average_precision']:.3f} | {result['average_bit_width']:.3f} | "
                      f"{fewest} | {result['metric']:.4f} | {result['metric_float']:.4f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
