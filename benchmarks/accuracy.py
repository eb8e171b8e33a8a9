"""Accuracy of all methods on CIFAR-10 images, ResNet-20, equal epochs for all.

    python benchmarks/accuracy.py --data cifar10:DIR --weights resnet20.th --cache DIR [--epochs 6]
                                  [--search-epochs 0.5] [--only lsq-2] [--plot accuracy.svg]

Everything starts from one float finetuning of the given checkpoint. Each run is a run directory in the cache: a
finished one is not repeated, an interrupted one goes on, so the benchmark continues where it was stopped. The
table holds what is finished.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from csqtool import finalize
from csqtool.documents import plain
from csqtool.finalized_file import read_finalized
from csqtool.packing import pack
from csqtool.progress import stderr_progress
from csqtool.searching.config import SearchConfig
from csqtool.searching.runs import begin, resume

ROOT = Path(__file__).parent.parent
MODEL = f"{ROOT}/sample_models/resnet_cifar/model.py:resnet20"
FLOAT_EPOCHS = 6
COMMON: dict[str, Any] = {"batch_size": 128, "amp": "bf16", "learning_rate": 0.02}
SEARCHED = ("csq", "bsq")
ENTROPY_SIZES = ("55KB", "66KB", "75KB", "97.8KB", "38KB", "28KB")
LSQ_SIZES = {3: "125.1KB", 2: "97.8KB"}  # what lsq's files take, for csq at equal bytes


def runs(epochs: int, search_epochs: float) -> dict[str, dict[str, Any]]:
    """Return the settings of every run, the most telling first; a search takes its share of the epochs."""
    searching = {"epochs": search_epochs, "finetune_epochs": epochs - search_epochs}
    fixed = {"epochs": epochs}
    found: dict[str, dict[str, Any]] = {}
    for bits in (2, 3, 1):
        for method in ("lsq", "csq", "csq-uniform", "ste-uniform", "bsq"):
            budget = searching if method in SEARCHED else fixed
            found[f"{method}-{bits}"] = {"method": method, "target_bits": bits, **budget}
    for size in ENTROPY_SIZES:
        found[f"entropy-{size}"] = {"method": "entropy", "target_size": size, **fixed}
    for bits, size in LSQ_SIZES.items():
        found[f"csq-{bits}-size"] = {"method": "csq", "target_size": size, **searching}
    for bits in (3, 2, 1):
        found[f"csq-uniform-{bits}-step"] = {**found[f"csq-uniform-{bits}"], "beta_schedule": "step"}
    for seed in (1, 2):
        for name in ("lsq-2", "csq-2", "csq-uniform-3", "ste-uniform-3"):
            found[f"{name}-seed{seed}"] = {**found[name], "seed": seed}
    for act_bits in (8, 3):
        for bits in (3, 2):
            for method in ("lsq", "csq"):
                found[f"{method}-{bits}-a{act_bits}"] = {**found[f"{method}-{bits}"], "act_bits": act_bits}
    return found


def run(config: SearchConfig, folder: Path, progress: Any) -> dict[str, Any]:
    """Return the summary of a run: from the cache, continued, or done now."""
    if (folder / "config.json").is_file():
        summary = plain(resume(folder, progress=progress).summary)
    else:
        summary = plain(begin(config, folder, progress=progress).summary)
    model = folder / "model.safetensors"
    if not model.is_file():
        finalize(folder, model)
    packed = folder / "model.csq"
    pack(model, packed)
    metrics = read_finalized(model).info.metrics
    assert metrics is not None  # finalizing measures
    return {**summary, "accuracy": metrics.finalized, "bytes": packed.stat().st_size}


def label(settings: dict[str, Any]) -> str:
    """Return the method, and what differs from its defaults."""
    more = {
        ", β every step": "beta_schedule" in settings,
        ", by size": "target_size" in settings and settings["method"] != "entropy",
    }
    return str(settings["method"]) + "".join(text for text, holds in more.items() if holds)


def row(settings: dict[str, Any], result: dict[str, Any]) -> str:
    """Return a line of the table."""
    bits = "float" if settings.get("act_bits") is None else settings["act_bits"]
    finetuning = settings.get("finetune_epochs", 0)
    epochs = f"{settings['epochs']:g}" + (f" + {finetuning:g}" if finetuning else "")
    target = settings.get("target_bits", settings.get("target_size"))
    return (f"| {label(settings)} | {target} | {bits} | {settings.get('seed', 0)} | {epochs} | "
            f"{100 * result['accuracy']:.2f} | {result['average_precision']:.3f} | "
            f"{result['average_bit_width']:.3f} | {result['bytes']:,} |")  # fmt: skip


def plot(found: list[tuple[dict[str, Any], dict[str, Any]]], baseline: float | None, path: Path) -> None:
    """Draw accuracy against packed bytes: float activations, the first seed."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    courses: dict[str, list[tuple[float, float]]] = {}
    for settings, result in found:
        if not {"seed", "act_bits"} & settings.keys():
            courses.setdefault(label(settings), []).append((result["bytes"] / 1000, 100 * result["accuracy"]))
    for order, (name, points) in enumerate(courses.items()):
        # Ever smaller: some courses lie on each other.
        axes.plot(*zip(*sorted(points), strict=True), "o-", label=name, markersize=11 - 1.4 * order)
    if baseline is not None:
        axes.axhline(100 * baseline, color="grey", linestyle=":", label="float32")
    axes.set(xlabel="packed file, kB", ylabel="accuracy, % (from 80 on)", title="ResNet-20, CIFAR-10 images (JPEG)")
    axes.set_ylim(80, 89)
    axes.set_xlim(left=50)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Do the runs that are missing, and print the table of all that are finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True, help="the checkpoint, or with --finetuned what all start from")
    parser.add_argument("--finetuned", action="store_true", help="the weights were finetuned on these data before")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--search-epochs", type=float, default=0.5, help="how many of them csq and bsq search")
    parser.add_argument("--only", nargs="*", help="names of runs, such as csq-2; none: only print the table")
    parser.add_argument("--plot", type=Path, help="also draw the table, as SVG; needs the extra benchmarks")
    arguments = parser.parse_args()
    base = {"model": MODEL, "data": arguments.data, **COMMON}
    cache = arguments.cache
    wanted = runs(arguments.epochs, arguments.search_epochs)
    share = {True: f"-s{arguments.search_epochs:g}", False: ""}  # in the names of those that search
    folders = {name: cache / f"{name}-e{arguments.epochs}{share[settings['method'] in SEARCHED]}"
               for name, settings in wanted.items()}  # fmt: skip
    with stderr_progress() as progress:
        # A search of one epoch ends the float runs; only their float model is used.
        tail = {"method": "lsq", "target_bits": 7, "epochs": 1}
        weights = arguments.weights
        if not arguments.finetuned:
            config = SearchConfig.make(**base, **tail, weights=weights, pretrain_epochs=FLOAT_EPOCHS)
            run(config, cache / "float-start", progress)
            weights = str(cache / "float-start" / "float.safetensors")
        for name, settings in wanted.items():
            if arguments.only is None or name in arguments.only:
                progress.line(f"== {name}")
                config = SearchConfig.make(**base, **settings, weights=weights)
                run(config, folders[name], progress)
        float_run = cache / f"float-e{arguments.epochs}"
        if arguments.only is None or "float" in arguments.only:
            config = SearchConfig.make(**base, **tail, weights=weights, pretrain_epochs=arguments.epochs)
            run(config, float_run, progress)
    print("| method | target | activations | seed | epochs | accuracy % | precision | bit width | packed bytes |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    baseline: float | None = None
    if (float_run / "summary.json").is_file():
        baseline = json.loads((float_run / "summary.json").read_text())["metric_float"]
        print(f"| float32 | | float | 0 | {arguments.epochs} | {100 * baseline:.2f} | | 32 | |")
    found: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for name, settings in wanted.items():
        folder = folders[name]
        if not (folder / "summary.json").is_file():
            continue
        result = run(SearchConfig.make(**base, **settings), folder, None)
        if not found:
            print(f"| float32, where all start | | float | 0 | 0 | {100 * result['metric_float']:.2f} | | 32 | |")
        print(row(settings, result))
        found.append((settings, result))
    if arguments.plot:
        plot(found, baseline, arguments.plot)


if __name__ == "__main__":
    main()
