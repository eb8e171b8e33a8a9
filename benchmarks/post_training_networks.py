"""Time of `csqtool.quantize` on networks of torchvision, timm and transformers in their shipped form, verified.

    python -m benchmarks.post_training_networks --cache DIR [NETWORK …]

The networks and their inputs are those of `benchmarks.zoo`: random weights that learned the inputs, 64 small inputs of
noise; 20 steps. The question is whether a network comes through, and how long it takes; accuracy is none of it. Rows
are kept in the cache as JSON. Extra ``zoo``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import csqtool
from benchmarks.zoo import AnyOutputs, learn
from benchmarks.zoo_networks import SAMPLES, declare_missing_operators, networks

NETWORKS = ("torchvision:resnet18", "torchvision:mobilenet_v2", "transformers:bert", "timm:efficientnet_lite0")
BATCHES = 8
STEPS = 20


def measured(name: str) -> dict[str, Any]:
    """Quantize one network with 8-bit activations, export and verify it."""
    declare_missing_operators()
    build, example = networks()[name]
    torch.manual_seed(0)
    module, inputs = build(), example()
    learn(module, inputs)
    batches: list[Any] = [(x, torch.zeros(SAMPLES)) for x in (inputs, *(example() for _ in range(BATCHES - 1)))]
    loader = DataLoader(batches, batch_size=None)
    clock, processor = time.monotonic(), time.process_time()
    quantized = csqtool.quantize(
        module.eval(), loader, target_bits=3, act_bits=8, steps=STEPS, task=AnyOutputs(), device="cpu"
    )
    row: dict[str, Any] = {
        "parameters": sum(p.numel() for p in module.parameters()),
        "processor": time.process_time() - processor,
        "clock": time.monotonic() - clock,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        csqtool.export(quantized, path, model=module)
        report = csqtool.verify(path, quantized, model=module, data=batches, task=AnyOutputs())
    return {**row, "verified": report.passed, "failures": [f"{c.level} {c.name}: {c.detail}" for c in report.failures]}


def main() -> None:
    """Measure the networks that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--cache", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    print("| network | parameters | processor s | clock s | verified |\n| --- | --- | --- | --- | --- |")
    for name in arguments.networks:
        path = arguments.cache / f"{name.replace(':', '-').replace(' ', '-')}.json"
        if not path.exists():
            path.write_text(json.dumps(measured(name)))
        row = json.loads(path.read_text())
        verified = "yes" if row["verified"] else "no: " + "; ".join(row["failures"])[:120]
        print(
            f"| {name} | {row['parameters']:,} | {row['processor']:.0f} | {row['clock']:.0f} | {verified} |", flush=True
        )


if __name__ == "__main__":
    main()
