"""Training step time and peak memory of the methods against float32, and of the gates against the memory floor.

    python benchmarks/search_speed.py [--model resnet20|vgg19_bn] [--rounds 7]

Steps of all variants take turns in one process, so that their ratios mean something on a busy machine; peak
memory is that of a process of its own a variant.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from csqtool.data import ArrayDataset, DataSource
from csqtool.nn.gates import BitGates
from csqtool.nn.kernels import Kernel
from csqtool.search.config import SearchConfig
from csqtool.search.loop import make_optimizer
from csqtool.search.progress import Silent
from csqtool.search.session import Session
from csqtool.task import task_by_name

ROOT = Path(__file__).parent.parent
MODELS = {
    "resnet20": f"{ROOT}/sample_models/resnet_cifar/model.py:resnet20",
    "vgg19_bn": f"{ROOT}/sample_models/vgg_cifar/model.py:vgg19_bn",
}
BATCH = 128
METHODS = ("csq", "csq-uniform", "lsq", "ste-uniform", "bsq")
VARIANTS: dict[str, dict[str, Any]] = {"float32": {"pretrain_epochs": 1}}
VARIANTS |= {name: {"method": name} for name in METHODS}
VARIANTS |= {f"{name}, 4-bit activations": {"method": name, "act_bits": 4} for name in ("csq", "lsq")}


def random_images() -> DataSource:
    """Return images of noise: a step's time does not depend on what is seen."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (4 * BATCH, 3, 32, 32), np.uint8)
    data = ArrayDataset(images, generator.integers(0, 10, len(images)), mean=[128.0] * 3, std=[64.0] * 3)
    return DataSource("noise", data, data, task_by_name("classification"))


def stepper(model: str, variant: str, *, compiled: str) -> Callable[[], None]:
    """Return a function that trains one step of a variant."""
    config = SearchConfig.make(
        model=MODELS[model], data=f"{Path(__file__).resolve()}:random_images", target_bits=3, batch_size=BATCH,
        compile=compiled, **VARIANTS[variant],
    )  # fmt: skip
    session = Session(config, Path(tempfile.mkdtemp()), Silent())
    session._enter(session.stages[0])
    phase = session.phase
    if phase.method is not None:
        phase.method.set_progress(0.3)
    phase.net.train()
    chosen = torch.arange(BATCH)
    return lambda: phase._step(chosen, 0, 0) and None


def medians(functions: dict[str, Callable[[], None]], rounds: int, repeat: int) -> dict[str, float]:
    """Return seconds a call, the median over rounds in which all take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(repeat):
                function()
            seconds[name].append((time.perf_counter() - start) / repeat)
    return {name: statistics.median(times) for name, times in seconds.items()}


def naive_gates() -> tuple[nn.Module, Callable[[], torch.Tensor]]:
    """Return the gates of a 2.36 M-weight layer with eq. 5 as autograd would do it."""
    gates = BitGates(torch.randn(512, 512, 3, 3), range(8), mask_init=0.05)

    def weight() -> torch.Tensor:
        assert gates.m_b is not None
        digits = torch.sigmoid(gates.beta * gates.m_p) - torch.sigmoid(gates.beta * gates.m_n)
        planes = gates.s * gates.plane_weights() * torch.sigmoid(gates.beta * gates.m_b)
        return torch.tensordot(planes, digits, dims=1)

    return gates, weight


def gate_step(gates: nn.Module, weight: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """Return a function that does forward, backward and update of a layer's gates."""
    config = SearchConfig.make(model="m", data="d", target_bits=3)
    optimizer = make_optimizer([{"params": list(gates.parameters()), "lr": 1e-3}], config)
    seed = torch.randn(512, 512, 3, 3)

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(weight(), seed)
        optimizer.step()

    return step


def memory_floor() -> Callable[[], None]:
    """Return a function that moves what a step of the gates must move at least once.

    Logits, gradients and momenta of a layer are 151 MB each. The forward pass reads the logits; the backward pass
    reads them and writes gradients; the update reads all three and writes logits and momenta: eight passes, which
    four copies (a read and a write each) stand for.
    """
    source, target = torch.zeros(2, 8, 2_359_296), torch.zeros(2, 8, 2_359_296)

    def move() -> None:
        for _ in range(4):
            target.copy_(source)

    return move


def peak_megabytes(model: str, variant: str) -> float:
    """Return the peak memory of a process that trains three steps of a variant."""
    code = f"import search_speed as s; s.child({model!r}, {variant!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def child(model: str, variant: str) -> None:
    """Train three steps and print the peak memory."""
    step = stepper(model, variant, compiled="no")
    for _ in range(3):
        step()
    # Not ru_maxrss: a process inherits it from the one that started it.
    status = Path("/proc/self/status").read_text().splitlines()
    print(json.dumps(int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="resnet20")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    steps = {name: stepper(arguments.model, name, compiled="yes") for name in VARIANTS}
    times = medians(steps, arguments.rounds, repeat=3)
    peaks = {name: peak_megabytes(arguments.model, name) for name in VARIANTS}
    print(f"| {arguments.model}, batch {BATCH} | step against float32 | peak memory, MB | against float32 |")
    print("| --- | --- | --- | --- |")
    for name, seconds in times.items():
        print(f"| {name} | {seconds / times['float32']:.2f} × | {peaks[name]:.0f} | "
              f"{peaks[name] / peaks['float32']:.2f} × |")  # fmt: skip
    del steps
    Kernel.choose("yes", element_steps=0)
    gates, weight = naive_gates()
    fused = BitGates(torch.randn(512, 512, 3, 3), range(8), mask_init=0.05)
    layer = medians(
        {
            "memory floor": memory_floor(),
            "gates": gate_step(fused, fused),
            "eq. 5 in autograd": gate_step(gates, weight),
        },
        arguments.rounds,
        repeat=2,
    )
    print("\n| a layer of 2.36 M weights: forward, backward, update | against the memory floor |\n| --- | --- |")
    for name, seconds in layer.items():
        print(f"| {name} | {seconds / layer['memory floor']:.2f} × |")


if __name__ == "__main__":
    main()
