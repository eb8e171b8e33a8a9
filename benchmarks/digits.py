"""Accuracy on the bundled digits: CSQ at 3 bits with 8-bit activations against float trained equally long.

python benchmarks/digits.py          # three seeds, a few minutes on two cores; prints a Markdown table
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path

from csqtool.pipeline import read_pipeline
from csqtool.search import search

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Print one row a seed."""
    sample = read_pipeline(ROOT / "sample_models" / "digits_cnn" / "pipeline.toml").config
    total = sample.pretrain_epochs + sample.epochs + sample.finetune_epochs
    print(f"| seed | float, {total} epochs | csq, {total} epochs in all | average precision | average bit width |")
    print("| --- | --- | --- | --- | --- |")
    for seed in (0, 1, 2):
        with tempfile.TemporaryDirectory() as folder:
            found = search(dataclasses.replace(sample, seed=seed), Path(folder) / "csq")
            # A search of one epoch ends the float run; only its float metric is read.
            baseline = dataclasses.replace(sample, seed=seed, pretrain_epochs=total, epochs=1, finetune_epochs=0)
            plain = search(baseline, Path(folder) / "float")
        print(
            f"| {seed} | {plain['metric_float']:.4f} | {found['metric']:.4f} | "
            f"{found['average_precision']:.3f} | {found['average_bit_width']:.3f} |"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
