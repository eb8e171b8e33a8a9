"""Training step time and peak memory of Brevitas' quantization-aware training against float32.

Run by ``search_speed.py --brevitas PYTHON`` in an environment of its own that holds torch and brevitas, not csqtool:

    PYTHON brevitas_step.py FILE.py FACTORY BITS ROUNDS BATCH THREADS      # BITS of activations; float: weights only

FILE.py is a sample model. Prints a JSON document: the median step over float32's, both taking turns, and the peak
memory of a process that trains three steps of each.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

WEIGHT_BITS = 4


def model(file: str, factory: str) -> nn.Module:
    spec = importlib.util.spec_from_file_location("sample", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sample"] = module
    spec.loader.exec_module(module)
    net: nn.Module = getattr(module, factory)()
    return net


def quantized(net: nn.Module, act_bits: int | None) -> nn.Module:
    """Put Brevitas' layers, with their default quantizers, in the place of torch's."""
    import brevitas.nn as qnn

    for name, child in net.named_children():
        if isinstance(child, nn.Conv2d):
            layer = qnn.QuantConv2d(
                child.in_channels, child.out_channels, child.kernel_size, stride=child.stride, padding=child.padding,
                bias=child.bias is not None, weight_bit_width=WEIGHT_BITS,
            )  # fmt: skip
        elif isinstance(child, nn.Linear):
            layer = qnn.QuantLinear(child.in_features, child.out_features, bias=True, weight_bit_width=WEIGHT_BITS)
        elif isinstance(child, nn.ReLU) and act_bits is not None:
            layer = qnn.QuantReLU(bit_width=act_bits)
        else:
            quantized(child, act_bits)
            continue
        setattr(net, name, layer)
    return net


def stepper(net: nn.Module, batch: int) -> Callable[[], None]:
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    optimizer = torch.optim.SGD(net.train().parameters(), lr=0.01, momentum=0.9, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()

    return step


def peak_megabytes(arguments: list[str]) -> float:
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    file, factory, bits, rounds, batch, threads, *alone = sys.argv[1:]
    torch.set_num_threads(int(threads))
    act_bits = None if bits == "float" else int(bits)
    if alone:  # a process of its own, for the memory
        net = model(file, factory)
        step = stepper(net if alone == ["float32"] else quantized(net, act_bits), int(batch))
        for _ in range(3):
            step()
        status = Path("/proc/self/status").read_text().splitlines()
        print(int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024)
        return
    steps = {"float32": stepper(model(file, factory), int(batch)),
             "brevitas": stepper(quantized(model(file, factory), act_bits), int(batch))}  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(int(rounds) + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if round_ >= 2:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    peaks = {name: peak_megabytes([*sys.argv[1:7], name]) for name in steps}
    print(json.dumps({"step": medians["brevitas"] / medians["float32"], "peak_mb": peaks["brevitas"],
                      "peak": peaks["brevitas"] / peaks["float32"]}))  # fmt: skip


if __name__ == "__main__":
    main()
