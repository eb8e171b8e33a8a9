"""Accuracy of methods on digits at equal sizes of the packed file, equal epochs, several seeds.

    python benchmarks/digits_sizes.py [--epochs 12] [--seeds 3]

All start from one float model. csq spends half of its epochs on the search.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from csqtool.searching.config import SearchConfig
from csqtool.searching.runs import begin

MODEL = f"{Path(__file__).parent.parent}/sample_models/digits_cnn/model.py:digits_cnn"
BASE: dict[str, Any] = {"model": MODEL, "data": "digits"}
SIZES = ("9KB", "7.5KB", "6KB")
SMALLEST_OF_PLANES = 7_000  # bytes; methods of planes refuse less than what they can promise


def settings(method: str, epochs: int) -> dict[str, Any]:
    """Return the settings of a method by its name, with ``csq+entropy`` for csq finetuned by entropy."""
    if not method.startswith("csq"):
        return {"method": method, "epochs": epochs}
    tuned = {"epochs": epochs / 2, "finetune_epochs": epochs / 2}
    return {"method": "csq", **tuned, "finetune_with": "entropy" if method == "csq+entropy" else "lsq"}


def main() -> None:
    """Train and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    print("| method | target size | accuracy %, mean | of each seed | packed bytes |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "start"
        config = SearchConfig.make(**BASE, method="lsq", target_bits=7, pretrain_epochs=30, epochs=1)
        begin(config, start)
        weights = str(start / "float.safetensors")
        for size in SIZES:
            for method in ("entropy", "csq+entropy", "csq", "lsq"):
                if float(size.removesuffix("KB")) * 1000 < SMALLEST_OF_PLANES and "entropy" not in method:
                    continue
                found = []
                for seed in range(arguments.seeds):
                    config = SearchConfig.make(
                        **BASE, **settings(method, arguments.epochs), target_size=size, weights=weights, seed=seed
                    )
                    found.append(begin(config, Path(folder) / f"{method}-{size}-{seed}").summary)
                each = ", ".join(f"{100 * one.metric:.1f}" for one in found)
                sizes = ", ".join(f"{one.cost:,.0f}" for one in found)
                row = f"| {method} | {size} | {100 * mean(one.metric for one in found):.1f} | {each} | {sizes} |"
                print(row, flush=True)


if __name__ == "__main__":
    main()
