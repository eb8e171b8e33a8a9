"""Accuracy of all methods on CIFAR-10 images, ResNet-20, equal epochs for all.

    python benchmarks/accuracy.py --data cifar10:DIR --weights resnet20.th --cache DIR [--epochs 6] [--jobs 2]
                                  [--search-epochs 0.5] [--only lsq-2] [--plot accuracy.svg]

Everything starts from one float finetuning of the given checkpoint. Each row is a run of a sweep
(`csqtool.sweeping`): a finished one is not repeated, an interrupted one goes on. The table holds what is finished.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from csqtool.errors import SearchInterrupted
from csqtool.progress import stderr_progress
from csqtool.searching.config import SearchConfig
from csqtool.sweeping.plan import Plan
from csqtool.sweeping.result import SweepRow
from csqtool.sweeping.runner import read_sweep, run_plan

ROOT = Path(__file__).parent.parent
MODEL = f"{ROOT}/sample_models/resnet_cifar/model.py:resnet20"
FLOAT_EPOCHS = 6
COMMON: dict[str, Any] = {"batch_size": 128, "amp": "bf16", "learning_rate": 0.02}
SEARCHED = ("csq", "bsq")
ENTROPY_SIZES = ("55KB", "66KB", "75KB", "97.8KB", "38KB", "28KB")
CSQ_ENTROPY_SIZES = ("75KB", "55KB", "38KB", "28KB")
LSQ_SIZES = {3: "125.1KB", 2: "97.8KB"}  # what lsq's files take, for csq at equal bytes
START = "float-start"
# A run whose float training is what counts; the rest of it is as short as it can be.
FLOAT_ONLY: dict[str, Any] = {"method": "lsq", "target_bits": 7, "epochs": 0.01}


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
    for size in CSQ_ENTROPY_SIZES:
        found[f"csq-entropy-{size}"] = {"method": "csq", "target_size": size, "finetune_with": "entropy", **searching}
    for bits, size in LSQ_SIZES.items():
        found[f"csq-{bits}-size"] = {"method": "csq", "target_size": size, **searching}
    for bits in (3, 2, 1):
        found[f"csq-uniform-{bits}-step"] = {**found[f"csq-uniform-{bits}"], "beta_schedule": "step"}
    again = ("lsq-1", "lsq-2", "csq-1", "csq-2", "csq-uniform-3", "ste-uniform-2", "ste-uniform-3")
    sized = ("entropy-55KB", "entropy-75KB", "entropy-38KB", "entropy-28KB", "csq-entropy-55KB", "csq-entropy-38KB")
    found |= {f"{name}-seed{seed}": {**found[name], "seed": seed} for seed in (1, 2) for name in (*again, *sized)}
    for act_bits in (8, 3):
        for bits in (3, 2):
            for method in ("lsq", "csq"):
                found[f"{method}-{bits}-a{act_bits}"] = {**found[f"{method}-{bits}"], "act_bits": act_bits}
    for act_bits in (8, 4):
        for size in ("75KB", "55KB"):
            found[f"entropy-{size}-a{act_bits}"] = {**found[f"entropy-{size}"], "act_bits": act_bits}
        found.setdefault(f"lsq-2-a{act_bits}", {**found["lsq-2"], "act_bits": act_bits})
    return found


def label(settings: dict[str, Any]) -> str:
    """Return the method, and what differs from its defaults."""
    more = {
        " + entropy": settings.get("finetune_with") == "entropy",
        ", β every step": "beta_schedule" in settings,
        ", by size": "target_size" in settings and settings["method"] == "csq" and "finetune_with" not in settings,
    }
    return str(settings["method"]) + "".join(text for text, holds in more.items() if holds)


def row(settings: dict[str, Any], found: SweepRow) -> str:
    """Return a line of the table."""
    assert found.outcome is not None
    assert found.summary is not None
    bits = "float" if settings.get("act_bits") is None else settings["act_bits"]
    finetuning = settings.get("finetune_epochs", 0)
    epochs = f"{settings['epochs']:g}" + (f" + {finetuning:g}" if finetuning else "")
    target = settings.get("target_bits", settings.get("target_size"))
    return (f"| {label(settings)} | {target} | {bits} | {settings.get('seed', 0)} | {epochs} | "
            f"{100 * found.outcome.metric:.2f} | {found.summary.average_precision:.3f} | "
            f"{found.summary.average_bit_width:.3f} | {found.outcome.bytes:,} |")  # fmt: skip


def plot(found: list[tuple[dict[str, Any], SweepRow]], baseline: float | None, path: Path) -> None:
    """Draw accuracy against packed bytes: float activations, the first seed."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    courses: dict[str, list[tuple[float, float]]] = {}
    for settings, result in found:
        if not {"seed", "act_bits"} & settings.keys() and (outcome := result.outcome) is not None:
            courses.setdefault(label(settings), []).append((outcome.bytes / 1000, 100 * outcome.metric))
    for order, (name, points) in enumerate(courses.items()):
        # Ever smaller: some courses lie on each other.
        axes.plot(*zip(*sorted(points), strict=True), "o-", label=name, markersize=11 - 1.4 * order)
    if baseline is not None:
        axes.axhline(100 * baseline, color="grey", linestyle=":", label="float32")
    axes.set(xlabel="packed file, kB", ylabel="accuracy, % (from 80 on)", title="ResNet-20, CIFAR-10 images (JPEG)")
    axes.set_ylim(80, 89)
    axes.set_xlim(left=20)
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
    parser.add_argument("--cache", type=Path, required=True, help="the folder of the sweep")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--search-epochs", type=float, default=0.5, help="how many of them csq and bsq search")
    parser.add_argument("--only", nargs="*", help="names of runs, such as csq-2; none: only print the table")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--plot", type=Path, help="also draw the table, as SVG; needs the extra benchmarks")
    arguments = parser.parse_args()
    base = {"model": MODEL, "data": arguments.data, "device": arguments.device, **COMMON}
    wanted = runs(arguments.epochs, arguments.search_epochs)
    share = {True: f"-s{arguments.search_epochs:g}", False: ""}  # in the names of those that search
    names = {name: f"{name}-e{arguments.epochs}{share[settings['method'] in SEARCHED]}"
             for name, settings in wanted.items()}  # fmt: skip
    float_run = f"float-e{arguments.epochs}"
    chosen = [name for name in (arguments.only if arguments.only is not None else wanted) if name in wanted]
    try:
        with stderr_progress() as progress:
            weights = arguments.weights
            if not arguments.finetuned:
                config = SearchConfig.make(**base, **FLOAT_ONLY, weights=weights, pretrain_epochs=FLOAT_EPOCHS)
                run_plan(Plan({START: config.to_json()}), arguments.cache, jobs=1, progress=progress)
                weights = str(arguments.cache / "runs" / START / "float.safetensors")
            plan = {names[name]: SearchConfig.make(**base, **wanted[name], weights=weights).to_json()
                    for name in chosen}  # fmt: skip
            if arguments.only is None or "float" in arguments.only:
                trained = {**FLOAT_ONLY, "weights": weights, "pretrain_epochs": arguments.epochs}
                plan[float_run] = SearchConfig.make(**base, **trained).to_json()
            if plan:
                run_plan(Plan(plan), arguments.cache, jobs=arguments.jobs, progress=progress)
    except SearchInterrupted as stopped:
        print(stopped)
    done = {row.name: row for row in read_sweep(arguments.cache).finished}
    print("| method | target | activations | seed | epochs | accuracy % | precision | bit width | packed bytes |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    found = [(settings, done[names[name]]) for name, settings in wanted.items() if names[name] in done]
    start = next((result.summary.metric_float for _, result in found if result.summary), None)
    baseline = done[float_run].summary.metric_float if float_run in done and done[float_run].summary else None
    for name, epochs, metric in (("float32", arguments.epochs, baseline), ("float32, where all start", 0, start)):
        if metric is not None:
            print(f"| {name} | | float | 0 | {epochs} | {100 * metric:.2f} | | 32 | |")
    for settings, result in found:
        print(row(settings, result))
    if arguments.plot:
        plot(found, baseline, arguments.plot)


if __name__ == "__main__":
    main()
