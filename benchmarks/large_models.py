"""Deep and large models on the whole way: seconds of export, pack and verify, and peak memory.

``python benchmarks/large_models.py --layers 100 200 400`` measures residual chains of small convolutions with 8-bit
activations, ``--weights 100000000`` one layer of so many weights as a ``.csq`` file, ``--layer-level`` the memory of
verify's layers level on a network of ResNet-50's shape. Each measurement runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import csqtool
from csqtool.nn.post_training import post_training_model


class Block(nn.Module):
    """A 1 × 1 convolution with BatchNorm on a residual path."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        nn.init.constant_(self.bn.weight, 0.01)  # so that values neither vanish nor grow

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)) + x)


def chain(layers: int) -> nn.Module:
    return nn.Sequential(*(Block(2) for _ in range(layers)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))


def seconds(step: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = step()
    return time.perf_counter() - begin, result


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def deep(layers: int, folder: Path) -> dict[str, Any]:
    net = chain(layers).eval()
    inputs = torch.randn(64, 2, 4, 4)  # 2,048 values a layer: one value a step off is within the share allowed
    model = post_training_model(net, [inputs], act_bits=8)
    data = [(x, 0) for x in inputs]
    found: dict[str, Any] = {"layers": layers}
    found["export"], _ = seconds(lambda: csqtool.export(model, folder / "m.onnx", model=net))
    found["pack"], _ = seconds(lambda: csqtool.pack(model, folder / "m.csq"))
    for kind in ("onnx", "csq"):
        found[f"verify {kind}"], report = seconds(
            lambda kind=kind: csqtool.verify(folder / f"m.{kind}", model, model=net, data=data)
        )
        found[f"passed {kind}"] = report.passed
    return found | {"peak MB": peak_mb()}


def large(weights: int, folder: Path) -> dict[str, Any]:
    net = nn.Sequential(nn.Linear(weights // 1000, 1000, bias=False)).eval()
    inputs = torch.randn(2, weights // 1000)
    model = post_training_model(net, [inputs], act_bits=None)
    found: dict[str, Any] = {"weights": weights}
    found["pack"], _ = seconds(lambda: csqtool.pack(model, folder / "m.csq"))
    data = [(x, 0) for x in inputs]
    found["verify csq"], report = seconds(lambda: csqtool.verify(folder / "m.csq", model, model=net, data=data))
    return found | {"passed csq": report.passed, "peak MB": peak_mb()}


class LikeResNet50(nn.Module):
    """ResNet-50's convolutions and shapes, in four stages of bottlenecks."""

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        width = 64
        for stage, blocks in enumerate((3, 4, 6, 3)):
            inner = 64 << stage
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                for inputs, outputs, kernel, step in (
                    (width, inner, 1, 1), (inner, inner, 3, stride), (inner, 4 * inner, 1, 1)
                ):  # fmt: skip
                    parts += [nn.Conv2d(inputs, outputs, kernel, step, kernel // 2), nn.ReLU()]
                width = 4 * inner
        self.parts = nn.Sequential(*parts)
        self.head = nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.parts(x).mean((2, 3)))


def layer_level(pixels: int, limit: int, folder: Path) -> dict[str, Any]:
    """Return the peak of verify; `limit` are the bytes that the layers level may hold, 0 its own."""
    from csqtool.verifying import onnx_checks

    if limit:
        onnx_checks.LAYER_BYTES = limit
    net = LikeResNet50().eval()
    inputs = torch.randn(64, 3, pixels, pixels)
    model = post_training_model(net, [inputs[:2]], act_bits=None)
    csqtool.export(model, folder / "m.onnx", model=net)
    before = peak_mb()
    data = [(x, 0) for x in inputs]
    took, report = seconds(lambda: csqtool.verify(folder / "m.onnx", model, model=net, data=data))
    return {"pixels": pixels, "limit": limit, "verify onnx": took, "passed onnx": report.passed, "before MB": before,
            "peak MB": peak_mb()}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, nargs="*", default=[])
    parser.add_argument("--weights", type=int, nargs="*", default=[])
    parser.add_argument("--layer-level", type=int, nargs="*", default=[], metavar="PIXELS")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        kind, *numbers = json.loads(chosen.one)
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps({"deep": deep, "large": large, "layer_level": layer_level}[kind](*numbers, Path(folder))))
        return
    jobs: list[tuple[Any, ...]] = [("deep", n) for n in chosen.layers] + [("large", n) for n in chosen.weights]
    jobs += [("layer_level", pixels, limit) for pixels in chosen.layer_level for limit in (1 << 40, 0)]
    for job in jobs:
        command = [sys.executable, __file__, "--one", json.dumps(job)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{job}: {done.stderr.strip().splitlines()[-1]}")
            continue
        row = json.loads(done.stdout.splitlines()[-1])
        print(" | ".join(f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)


if __name__ == "__main__":
    main()
