"""Training step time and peak memory of the methods against float32, and of the gates against the memory floor.

    python benchmarks/search_speed.py [--model resnet20|vgg19_bn] [--rounds 7] [--brevitas PYTHON]

Steps of all variants take turns in one process, so that their ratios mean something on a busy machine; peak
memory is that of a process of its own a variant. "Naive" is eq. 5 as autograd computes it, without kernels of our
own. `--brevitas` names the Python of an environment that holds torch and brevitas; its rows are ratios to float32
in that environment.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csqtool.data import ArrayDataset, DataSource
from csqtool.nn import gates as gates_module
from csqtool.nn.gates import BitGates
from csqtool.nn.kernels import Kernel
from csqtool.progress import Silent
from csqtool.searching.config import SearchConfig
from csqtool.searching.loop import make_optimizer
from csqtool.searching.run_directory import RunDirectory
from csqtool.searching.session import Session
from csqtool.searching.start import Start
from csqtool.task import task_by_name

ROOT = Path(__file__).parent.parent
MODELS = {
    "resnet20": f"{ROOT}/sample_models/resnet_cifar/model.py:resnet20",
    "vgg19_bn": f"{ROOT}/sample_models/vgg_cifar/model.py:vgg19_bn",
}
BATCH = 128
METHODS = ("csq", "csq-uniform", "lsq", "ste-uniform", "bsq")
NAIVE = "csq, naive"
VARIANTS: dict[str, dict[str, Any]] = {"float32": {"pretrain_epochs": 1}}
# With decay, as in the paper, logits have gradients and momenta of their own.
VARIANTS |= {name: {"method": name} for name in METHODS} | {NAIVE: {"method": "csq", "gate_weight_decay": 5e-4}}
VARIANTS |= {f"{name}, 4-bit activations": {"method": name, "act_bits": 4} for name in METHODS}


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
    directory = RunDirectory(tempfile.mkdtemp())
    session = Session(config, directory, Start.of_settings(config), Silent())
    session._enter(session.stages[0])
    training = session.training
    assert training is not None
    if training.method is not None:
        training.method.at_epoch(0.3)
    training.net.train()

    def step() -> None:
        with naive_gates() if variant == NAIVE else nullcontext():
            training._step(session.data.training_batch(range(BATCH), seed=0), 0, 0)

    return step


def naive_weight(
    m_p: Tensor, m_n: Tensor, s: Tensor, m_b: Tensor, plane_weights: Tensor, beta: Tensor, *_: object
) -> tuple[Tensor, Tensor]:
    """Σ_b c_b·(f_β(m_p) − f_β(m_n)) over all planes, as autograd would do it."""
    coefficients = s * plane_weights * torch.sigmoid(beta * m_b)
    digits = torch.sigmoid(beta * m_p) - torch.sigmoid(beta * m_n)
    return torch.tensordot(coefficients, digits, dims=1), coefficients.detach()


@contextmanager
def naive_gates() -> Iterator[None]:
    """Let gates compute their weights naively."""
    own, gates_module.soft_weight = gates_module.soft_weight, naive_weight
    try:
        yield
    finally:
        gates_module.soft_weight = own


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


def gate_step(*, weight_steps: bool, naive: bool = False) -> Callable[[], None]:
    """Return a function that does forward, backward and update of the gates of a 2.36 M-weight layer."""
    gates = BitGates(torch.randn(512, 512, 3, 3), range(8), mask_init=0.05, weight_steps=weight_steps)
    config = SearchConfig.make(model="m", data="d", target_bits=3)
    trained = [p for p in gates.parameters() if p.requires_grad]
    optimizer = make_optimizer([{"params": trained, "lr": 1e-3}], config)
    seed = torch.randn(512, 512, 3, 3)

    def step() -> None:
        optimizer.zero_grad()
        with naive_gates() if naive else nullcontext():
            torch.autograd.backward(gates(), seed)
        optimizer.step()
        gates.take_step()

    return step


def memory_floor() -> Callable[[], None]:
    """Return a function that moves what a step of the gates must move at least once.

    The logits of a layer are 151 MB. The forward pass reads them, so does the backward pass (for scale and masks),
    and the update reads and writes them: four passes, which two copies (a read and a write each) stand for.
    """
    source, target = torch.zeros(2, 8, 2_359_296), torch.zeros(2, 8, 2_359_296)

    def move() -> None:
        for _ in range(2):
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


def brevitas_rows(python: str, model: str, rounds: int) -> dict[str, tuple[float, float, float]]:
    """Return step ratio, peak memory in MB and its ratio of Brevitas with weights of four bits."""
    file, _, factory = MODELS[model].rpartition(":")
    rows = {}
    for label, bits in (("Brevitas, 4-bit weights", "float"), ("Brevitas, 4-bit weights and activations", "4")):
        command = [python, str(Path(__file__).with_name("brevitas_step.py")), file, factory, bits, str(rounds),
                   str(BATCH), str(torch.get_num_threads())]  # fmt: skip
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        rows[label] = found["step"], found["peak_mb"], found["peak"]
    return rows


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="resnet20")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--brevitas", metavar="PYTHON", help="of an environment with torch and brevitas")
    arguments = parser.parse_args()
    steps = {name: stepper(arguments.model, name, compiled="yes") for name in VARIANTS}
    times = medians(steps, arguments.rounds, repeat=3 if arguments.model == "resnet20" else 1)
    del steps
    peaks = {name: peak_megabytes(arguments.model, name) for name in VARIANTS}
    rows = {name: (times[name] / times["float32"], peaks[name], peaks[name] / peaks["float32"]) for name in VARIANTS}
    if arguments.brevitas:
        rows |= brevitas_rows(arguments.brevitas, arguments.model, arguments.rounds)
    print(f"| {arguments.model}, batch {BATCH} | step against float32 | peak memory, MB | against float32 |")
    print("| --- | --- | --- | --- |")
    for name, (step, peak, against) in rows.items():
        print(f"| {name} | {step:.2f} × | {peak:.0f} | {against:.2f} × |")
    Kernel.choose("yes", element_steps=0)
    layer = medians(
        {
            "memory floor": memory_floor(),
            "gates": gate_step(weight_steps=True),
            "gates, logits with gradients and momenta": gate_step(weight_steps=False),
            "naive": gate_step(weight_steps=False, naive=True),
        },
        arguments.rounds,
        repeat=2,
    )
    print("\n| a layer of 2.36 M weights: forward, backward, update | against the memory floor |\n| --- | --- |")
    for name, seconds in layer.items():
        print(f"| {name} | {seconds / layer['memory floor']:.2f} × |")


if __name__ == "__main__":
    main()
