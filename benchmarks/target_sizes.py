"""How near files come to their target size: ten targets each, `--method entropy`, on digits and on ResNet-20.

    python -m benchmarks.target_sizes digits FOLDER
    python -m benchmarks.target_sizes resnet20 FOLDER --data cifar10:DIR --weights resnet20.th

All targets of a network start from one float model. Runs are kept in the folder, and a run that was stopped goes on.
Prints the table; it is about sizes, so training is short.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from csqtool.progress import stderr_progress
from csqtool.searching.config import SearchConfig
from csqtool.searching.result import SearchResult
from csqtool.searching.runs import begin, resume

ROOT = Path(__file__).resolve().parent.parent
NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    # settings of all runs, of the float model's, of each target's, and the targets
    "digits": (
        {"model": f"{ROOT}/sample_models/digits_cnn/model.py:digits_cnn", "data": "digits"},
        {"pretrain_epochs": 20},
        {"epochs": 6},
        ("6.5KB", "7KB", "7.5KB", "8KB", "8.5KB", "9KB", "9.5KB", "10KB", "11KB", "12KB"),
    ),
    "resnet20": (
        {"model": f"{ROOT}/sample_models/resnet_cifar/model.py:resnet20", "batch_size": 128, "amp": "bf16",
         "learning_rate": 0.02},
        {"pretrain_epochs": 1},
        {"epochs": 0.5},
        ("30KB", "38KB", "46KB", "55KB", "65KB", "75KB", "85KB", "97.8KB", "110KB", "125KB"),
    ),
}  # fmt: skip


def done(settings: dict[str, Any], folder: Path) -> SearchResult:
    """Return the result of a run, after doing what is missing of it."""
    with stderr_progress() as progress:
        if (folder / "config.json").is_file():
            return resume(folder, progress=progress)
        return begin(SearchConfig.make(**settings), folder, progress=progress)


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=list(NETWORKS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--weights")
    arguments = parser.parse_args()
    common, of_float, of_each, targets = NETWORKS[arguments.network]
    given = {name: value for name in ("data", "weights") if (value := getattr(arguments, name)) is not None}
    common = {**common, **given}
    start = arguments.folder / "float"
    float_model = done({**common, **of_float, "method": "lsq", "target_bits": 7, "epochs": 0.01}, start)
    print(f"float32: {float_model.summary.metric_float:.2%}\n")
    print("| target | packed bytes | below, % | accuracy % |")
    print("| --- | ---: | ---: | ---: |")
    common["weights"] = str(start / "float.safetensors")
    for target in targets:
        settings = {**common, **of_each, "method": "entropy", "target_size": target}
        summary = done(settings, arguments.folder / target).summary
        wanted = 1000 * float(target.removesuffix("KB"))
        below = 100 * (1 - summary.cost / wanted)
        print(f"| {target} | {summary.cost:,.0f} | {below:.2f} | {100 * summary.metric:.1f} |", flush=True)


if __name__ == "__main__":
    main()
