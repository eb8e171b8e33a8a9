"""Bytes of context-coded integers beside the smallest encoding of version 2 of `.csq`, and the speed of decoding both.

    python benchmarks/context_coding.py [model.safetensors ...] [--resnet20 resnet20.th]    # prints Markdown; minutes

Any finalized models can be named. ResNet-20 takes a float checkpoint, whose weights are rounded without training.
Speeds are of one convolution of 512 × 128 kernels of 3 × 3, drawn from those of each model, in seconds of CPU: of
seven passes in C the best, and one in Python.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from packing import model_of, processor, resnet20

from csqtool.csq import CsqFile, pack
from csqtool.finalized_file import read_finalized
from csqtool.quantized_model import QuantizedModel
from csqtool.verifying.csq_decoder import decode

HERE = Path(__file__).parent
ENCODINGS = ("smallest", "context")


def integer_bytes(content: bytes) -> int:
    return sum(entry.length for entry in CsqFile(content, where="m").entries.values() if entry.is_quantized)


def size_row(label: str, model: QuantizedModel) -> None:
    old, new = (pack(model, encoding=encoding) for encoding in ENCODINGS)
    bits = 8 * integer_bytes(new) / sum(layer.elements for layer in model.layers)
    change = 100 * (integer_bytes(new) / integer_bytes(old) - 1)
    print(
        f"| {label} | {integer_bytes(old):,} | {integer_bytes(new):,} | {change:+.1f} % | {bits:.2f} "
        f"| {len(old):,} | {len(new):,} |",
        flush=True,
    )


def drawn(model: QuantizedModel) -> QuantizedModel:
    """Return a model of one large convolution, of kernels that are drawn from those of `model`."""
    kernels = np.concatenate([layer.q.reshape(-1, 3, 3) for layer in model.layers if layer.shape[2:] == (3, 3)])
    chosen = np.random.default_rng(0).integers(0, len(kernels), 512 * 128)
    return model_of(kernels[chosen].reshape(512, 128, 3, 3).astype(np.int8))


def speed_rows(label: str, model: QuantizedModel, folder: Path) -> None:
    large = drawn(model)
    paths = [folder / f"{encoding}.csq" for encoding in ENCODINGS]
    for path, encoding in zip(paths, ENCODINGS, strict=True):
        path.write_bytes(pack(large, encoding=encoding))
    content, cells = paths[1].read_bytes(), []
    weights = large.layers[0].elements
    for option in ("-O2", "-O3"):
        program, header = folder / "speed", HERE.parent / "csqtool" / "csq" / "c"
        subprocess.run(["gcc", "-std=c99", option, f"-I{header}", HERE / "csq_speed.c", "-o", program], check=True)
        done = subprocess.run([program, *paths], capture_output=True, text=True, check=True)
        cells += [f"{weights / float(line.split()[0]) / 1e6:.0f}" for line in done.stdout.splitlines()]
    for read in (lambda: CsqFile(content, where="m").tensor("w"), lambda: decode(content, where="m")):
        begin = time.process_time()
        read()
        cells.append(f"{weights / (time.process_time() - begin) / 1e6:.2f}")
    print(f"| {label} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, help="finalized models")
    parser.add_argument("--resnet20", type=Path, help="a torch checkpoint of ResNet-20 for CIFAR-10")
    arguments = parser.parse_args()
    models = {path.parent.name + "/" + path.name: read_finalized(path) for path in arguments.models}
    if arguments.resnet20 is not None:
        models |= {f"ResNet-20, planes: {n}": resnet20(arguments.resnet20, n)[0] for n in (1, 2, 3, 5)}
    print(f"{processor()}, one thread; Python {platform.python_version()}, numpy {np.__version__}\n")
    print("| model | integers, version 2 | context | change | bits a weight | file, version 2 | context |")
    print("| --- |" + " ---: |" * 6)
    for name, model in models.items():
        size_row(name, model)
    if shutil.which("gcc"):
        print("\n| M weights/s | C -O2, rANS | context | C -O3, rANS | context | codec, context | verifier, context |")
        print("| --- |" + " ---: |" * 6)
        with tempfile.TemporaryDirectory() as name:
            for label, model in models.items():
                speed_rows(label, model, Path(name))
