"""The paper's recipe, from scratch: ResNet-20 on CIFAR-10 images, the same number of epochs for every row.

    python benchmarks/paper.py --data cifar10:DIR --folder DIR [--epochs 60] [--jobs 4] [--device cuda]

Each row is a run of a sweep (`csqtool.sweeping`): several run at a time, a finished one is not repeated, a stopped one
goes on. On a machine that is lent for ten minutes, ``timeout -s TERM 560`` before the command stops all of them in
time, with their state saved. The table of what is finished is printed; `results/paper.md` holds one.

Settings: the recipe ``paper`` (CSQ, section IV-A): SGD, learning rate 0.1 with a cosine, weight decay 5e-4, batches of
128, λ = 0.01, β to 200, no finetuning. It differs in the epochs (600 there) and in bfloat16 autocast.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from csqtool.errors import SearchInterrupted
from csqtool.progress import stderr_progress
from csqtool.searching.config import SearchConfig
from csqtool.sweeping.plan import Plan
from csqtool.sweeping.result import SweepResult, SweepRow
from csqtool.sweeping.runner import read_sweep, run_plan

ROOT = Path(__file__).parent.parent
MODEL = f"{ROOT}/sample_models/resnet_cifar/model.py:resnet20"
FLOAT = "float32"
# Row, settings, and what the paper has for it: accuracy and compression (Tables I, IV and V); its images are not JPEG.
ROWS: dict[str, tuple[dict[str, Any], str]] = {
    # Float training is what counts of this row; the rest of it is as short as it can be.
    FLOAT: ({"method": "lsq", "target_bits": 7, "epochs": 0.01, "pretrain_epochs": "EPOCHS"}, "92.62"),
    "csq T2": ({"method": "csq", "target_bits": 2}, "92.68 (16 ×)"),
    "csq-uniform 2": ({"method": "csq-uniform", "target_bits": 2}, ""),
    "ste-uniform 2": ({"method": "ste-uniform", "target_bits": 2}, ""),
    "lsq 2": ({"method": "lsq", "target_bits": 2}, ""),
    "csq T3": ({"method": "csq", "target_bits": 3}, ""),
    "csq T3, A3": ({"method": "csq", "target_bits": 3, "act_bits": 3}, "92.42 (10.67 ×)"),
    "csq-uniform 3, A3": ({"method": "csq-uniform", "target_bits": 3, "act_bits": 3}, ""),
    "ste-uniform 3, A3": ({"method": "ste-uniform", "target_bits": 3, "act_bits": 3}, ""),
}


def run_name(row: str, epochs: int) -> str:
    return f"{row.replace(', ', '-').replace(' ', '-')}-e{epochs}"


def plan(epochs: int, shared: dict[str, Any], rows: list[str]) -> Plan:
    """Return the runs of the rows."""
    runs = {}
    for row in rows:
        settings = {key: epochs if value == "EPOCHS" else value for key, value in ROWS[row][0].items()}
        given = {"recipe": "paper", "epochs": epochs, "amp": "bf16", **shared, **settings}
        runs[run_name(row, epochs)] = SearchConfig.make(row, **given).to_json()
    return Plan(runs)


def line(row: str, found: SweepRow) -> str:
    """Return a line of the table."""
    claim, summary = ROWS[row][1], found.summary
    assert summary is not None
    assert found.outcome is not None
    if row == FLOAT:
        assert summary.metric_float is not None
        return f"| {row} | {100 * summary.metric_float:.2f} | | 32 | 32 | 1 × | | {claim} |"
    return (
        f"| {row} | {100 * found.outcome.metric:.2f} | {100 * summary.metric_soft:.2f} | "
        f"{summary.average_precision:.3f} | {summary.average_bit_width:.3f} | {32 / summary.average_precision:.2f} × | "
        f"{found.outcome.bytes:,} | {claim} |"
    )


def table(found: SweepResult, epochs: int) -> str:
    """Return the table of all rows that are finished."""
    rows = {row.name: row for row in found.rows}
    lines = ["| row | accuracy % | before hardening % | planes | bits | compression | packed bytes | paper |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for row in ROWS:
        run = rows.get(run_name(row, epochs))
        if run is not None and run.summary is not None:
            lines.append(line(row, run))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Do the runs that are missing, and print the table of all that are finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", default="auto", help="fused kernels: auto, yes or no, as of a search")
    parser.add_argument("--only", nargs="*", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    arguments = parser.parse_args()
    shared = {"model": MODEL, "data": arguments.data, "device": arguments.device, "seed": arguments.seed,
              "compile": arguments.compile}  # fmt: skip
    try:
        with stderr_progress() as progress:
            wanted = plan(arguments.epochs, shared, arguments.only)
            run_plan(wanted, arguments.folder, jobs=arguments.jobs, progress=progress)
    except SearchInterrupted as stopped:
        print(stopped)
    print(table(read_sweep(arguments.folder), arguments.epochs))


if __name__ == "__main__":
    main()
