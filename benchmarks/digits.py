"""Accuracy on the bundled digits: CSQ at 3 bits with 8-bit activations against float trained equally long.

    python benchmarks/digits.py          # several minutes on two cores; prints a Markdown table

The sample's settings were chosen on the bundled test images with seeds 0, 1 and 2, so rows on that split are
optimistic. The held-out rows use another split and other seeds: their 450 test images were never tested on
while settings were chosen, and the bundled test images train instead.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path

import numpy as np

from csqtool.data import ArrayDataset, DataSource, load_data
from csqtool.pipeline_file import read_pipeline
from csqtool.searching.runs import begin

ROOT = Path(__file__).parent.parent
HELD_OUT = 450


def held_out() -> DataSource:
    """Return the digits with 450 training images for testing, and the bundled test images among the others."""
    bundled = load_data("digits")
    assert isinstance(bundled.train, ArrayDataset)
    assert isinstance(bundled.test, ArrayDataset)
    train, test = bundled.train, bundled.test
    order = np.random.default_rng(2026).permutation(len(train))
    tested, kept = order[:HELD_OUT], order[HELD_OUT:]

    def dataset(inputs: np.ndarray, targets: np.ndarray) -> ArrayDataset:
        return ArrayDataset(inputs, targets, mean=train.preprocessing.mean, std=train.preprocessing.std)

    inputs, targets = train.inputs.numpy(), train.targets.numpy()
    return dataclasses.replace(
        bundled,
        name="digits, held-out split",
        train=dataset(
            np.concatenate([inputs[kept], test.inputs.numpy()]), np.concatenate([targets[kept], test.targets.numpy()])
        ),
        test=dataset(inputs[tested], targets[tested]),
    )


def main() -> None:
    """Print one row a seed."""
    sample = read_pipeline(ROOT / "sample_models" / "digits_cnn" / "pipeline.toml").config
    total = sample.pretrain_epochs + sample.epochs + sample.finetune_epochs
    print(f"| split | seed | float, {total} epochs | csq, {total} epochs in all | precision | bit width |")
    print("| --- | --- | --- | --- | --- | --- |")
    splits = {"held out": (f"{Path(__file__).resolve()}:held_out", (10, 11, 12)), "bundled": ("digits", (0, 1, 2))}
    for split, (data, seeds) in splits.items():
        for seed in seeds:
            config = dataclasses.replace(sample, data=data, seed=seed)
            with tempfile.TemporaryDirectory() as folder:
                found = begin(config, Path(folder) / "csq").summary
                # A search of one epoch ends the float run; only its float metric is read.
                baseline = dataclasses.replace(config, pretrain_epochs=total, epochs=1, finetune_epochs=0)
                plain = begin(baseline, Path(folder) / "float").summary
            print(
                f"| {split} | {seed} | {plain.metric_float:.4f} | {found.metric:.4f} | "
                f"{found.average_precision:.3f} | {found.average_bit_width:.3f} |"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
