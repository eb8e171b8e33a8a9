"""Quantization after training of a MobileNetV2-shaped network on the bundled digits, which it is first trained on.

    python -m benchmarks.post_training_digits --cache DIR

Rows are kept in the cache as JSON, and so are the trained weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

import csqtool
from csqtool.data import batches_of, load_data
from csqtool.evaluation import evaluate
from csqtool.nn.state_dict import load_weights, safetensors_bytes
from csqtool.randomness import epoch_order
from sample_models.mobilenet_v2.model import InvertedResidual, conv_bn_relu

EPOCHS = 30
BATCH = 64
SAMPLES = 1024


# Channels in and out, stride and expansion of each inverted residual block.
BLOCKS = ((16, 16, 1, 1), (16, 24, 2, 4), (24, 24, 1, 4), (24, 40, 2, 4), (40, 40, 1, 4))


def network() -> nn.Module:
    """Return a narrow MobileNetV2 for images of 1 × 8 × 8."""
    head = conv_bn_relu(40, 128, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)
    return nn.Sequential(conv_bn_relu(1, 16, 3), *(InvertedResidual(*shape) for shape in BLOCKS), *head)


def trained(path: Path) -> nn.Module:
    """Return the network trained by Adam, from the cache if it is there."""
    torch.manual_seed(0)
    net, data = network(), load_data("digits")
    if not path.exists():
        images, labels = (torch.cat(list(part)) for part in zip(*batches_of(data.train), strict=True))
        steps = EPOCHS * (len(images) // BATCH)
        optimizer = torch.optim.Adam(net.parameters(), 0.003)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for epoch in range(EPOCHS):
            order = epoch_order(len(images), 0, "float", epoch)
            for chosen in order[: len(images) // BATCH * BATCH].split(BATCH):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(images[chosen]), labels[chosen]).backward()
                optimizer.step()
                rate.step()
        path.write_bytes(safetensors_bytes(net.state_dict()))
    load_weights(net, path)
    return net.eval()


def rows() -> dict[str, dict[str, Any]]:
    """Return the settings of every row, by its name."""
    found: dict[str, dict[str, Any]] = {f"lsq-{planes}": {"target_bits": planes} for planes in (3, 2, 1)}
    for name, equalize in (("nearest", False), ("equalized", True)):
        found |= {f"{name}-{planes}": {"target_bits": planes, "steps": 0, "equalize": equalize} for planes in (3, 2, 1)}
    found |= {f"lsq-{planes}-equalized": {"target_bits": planes, "equalize": True} for planes in (3, 2, 1)}
    found["lsq-2-a8"] = {"target_bits": 2, "act_bits": 8}
    found |= {f"{kind}-2": {"target_bits": 2, "reconstruct": kind} for kind in ("csq", "adaround")}
    return found


def main() -> None:
    """Measure the rows that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    net, data = trained(arguments.cache / "float.safetensors"), load_data("digits")
    print("| reconstruction | activations | accuracy % | bits |\n| --- | --- | --- | --- |")
    print(f"| float32 | float | {100 * evaluate(net, data.test, data.task):.2f} | 32 |")
    for name, settings in rows().items():
        path = arguments.cache / f"{name}.json"
        if not path.exists():
            quantized = csqtool.quantize(net, "digits", samples=SAMPLES, device="cpu", **settings)
            elements = sum(layer.elements for layer in quantized.layers)
            found = evaluate(csqtool.to_torch(quantized, net), data.test, data.task)
            bits = sum(layer.elements * layer.bit_width for layer in quantized.layers) / elements
            path.write_text(json.dumps({"accuracy": found, "bits": bits}))
        row = json.loads(path.read_text())
        kind = "none" if settings.get("steps") == 0 else settings.get("reconstruct", "lsq")
        kind += ", equalized" if settings.get("equalize") else ""
        print(f"| {kind} | {settings.get('act_bits', 'float')} | "
              f"{100 * row['accuracy']:.2f} | {row['bits']:.3f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
