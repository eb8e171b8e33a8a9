"""What the settings of the search do on digits, from pretrained weights and from scratch: why the defaults are these.

    python benchmarks/digits_settings.py     # a quarter of an hour

Two planes a weight, three seeds a row. "Found" is the average precision when the search ends and "searched" the
accuracy of its hard weights then, before planes are dropped or added; "finished" is that of the finalized model.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from digits_sweeps import BASE, float_model

from csqtool.documents import plain
from csqtool.searching.config import SearchConfig
from csqtool.searching.runs import begin

SEEDS = (0, 1, 2)
HALVES: dict[str, Any] = {"epochs": 30, "finetune_epochs": 30}
PAPER: dict[str, Any] = {"recipe": "paper", "epochs": 60}
PRETRAINED: dict[str, dict[str, Any]] = {
    "default": {},
    "gate rate 0.3 (default 3)": {"gate_learning_rate": 0.3},
    "gate rate 30": {"gate_learning_rate": 30.0},
    "mask rate 0.01 (default 0.1)": {"mask_learning_rate": 0.01},
    "mask rate 1": {"mask_learning_rate": 1.0},
    "masks start at 0 (default 0.05 to 0.4)": {"mask_init": 0.0},
    "masks start at 0.2 to 1.6": {"mask_init": 0.2},
    "momentum 0.9 on masks (default none)": {"mask_momentum": 0.9},
    "decay 5e-4 on gates, masks, scales (default none)": {"gate_weight_decay": 5e-4},
    "every plane pressed alike (default by elements)": {"element_pressure": False},
    "scale not carried over when β rises": {"keep_norms": False},
    "β to 20 (default 200)": {"beta_max": 20.0},
    "β rises every step": {"beta_schedule": "step"},
    "warm-up of 2 epochs": {"warmup_epochs": 2},
    "AdamW": {"optimizer": "adamw"},
    "gates start as the authors' (0 and 1)": {"init": "paper"},
}
SCRATCH: dict[str, dict[str, Any]] = {
    "default, 30 + 30 epochs": HALVES,
    "paper, 60 epochs": PAPER,
    "paper, 60 epochs, then settled": {**PAPER, "repair": True},
    "paper, 60 epochs, then settled without holes": {**PAPER, "repair": True, "contiguous": True},
    "paper, 30 + 30 epochs of gates": {**PAPER, **HALVES, "finetune_with": "csq"},
    "paper, 30 + 30 epochs of LSQ": {**PAPER, **HALVES, "finetune_with": "lsq"},
}


def row(label: str, folder: Path, starts: dict[int, str | None]) -> str:
    """Search with every seed and return a line of the table."""
    settings = {**PRETRAINED, **SCRATCH}[label]
    found, searched, finished, met, widths = [], [], [], [], []
    holes = 0
    for seed, weights in starts.items():
        run = folder / f"{len(list(folder.iterdir()))}"
        config = SearchConfig.make(**{**BASE, **settings}, target_bits=2, seed=seed, weights=weights)
        summary = plain(begin(config, run).summary)
        log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        last = [entry for entry in log if entry["stage"] == "search"][-1]
        found.append(last["average_precision"])
        searched.append(100 * last["metric_hard"])
        finished.append(100 * summary["metric"])
        met.append(summary["average_precision"])
        widths.append(summary["average_bit_width"])
        scheme = json.loads((run / "scheme.json").read_text())
        holes += sum("0" in entry["mask"].strip("0") for entry in scheme)
    each = ", ".join(f"{accuracy:.2f}" for accuracy in finished)
    return (f"| {label} | {mean(found):.3f} | {mean(searched):.2f} | {mean(met):.3f} | {mean(widths):.3f} | {holes} | "
            f"{mean(finished):.2f} | {each} |")  # fmt: skip


def main() -> None:
    """Print both tables."""
    head = ("| settings | found | searched % | met | bit width | layers with holes | finished %, mean | each seed |\n"
            "| --- | --- | --- | --- | --- | --- | --- | --- |")  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        starts = {seed: float_model(seed, Path(name)) for seed in SEEDS}
        print(f"From float models of 30 epochs, 20 + 20 epochs:\n\n{head}", flush=True)
        for label in PRETRAINED:
            print(row(label, Path(name), dict(starts)), flush=True)
        floats = []
        for seed in SEEDS:
            config = SearchConfig.make(**BASE, method="lsq", target_bits=7, seed=seed, pretrain_epochs=60, epochs=1)
            floats.append(100 * (begin(config, Path(name) / f"float60-{seed}").metric_float or 0.0))
        each = ", ".join(f"{accuracy:.2f}" for accuracy in floats)
        print(f"\nFrom scratch, 60 epochs in all (float32, 60 epochs: {mean(floats):.2f}, {each}):\n\n{head}")
        for label in SCRATCH:
            print(row(label, Path(name), dict.fromkeys(SEEDS)), flush=True)


if __name__ == "__main__":
    main()
