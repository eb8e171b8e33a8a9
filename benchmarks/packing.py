"""Sizes of `.csq` files beside their entropy and other forms, and the speed of packing and decoding beside a copy.

    python benchmarks/packing.py [model.safetensors ...] [--resnet20 resnet20.th]    # prints Markdown; some minutes

Any finalized models can be named. ResNet-20 takes a float checkpoint, whose weights are rounded without training:
that changes no rule of the sizes. Speeds are the best of seven interleaved passes in one run, on one thread.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from csqtool.csq import CsqFile, float32_size, open_csq, pack
from csqtool.csq.bit_fields import pack_integers
from csqtool.finalized_file import read_finalized, to_tensors
from csqtool.quantized_model import QuantizedLayer, QuantizedModel

HERE = Path(__file__).parent
WEIGHTS = 1 << 24
PASSES = 7


def normal(bits: int, count: int = 1 << 20) -> np.ndarray:
    """Return normal weights rounded to `bits` bits, the scale at three standard deviations; one bit is the sign."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    values = np.random.default_rng(bits).normal(0, max(high, 0.5) / 3, count).astype(np.float32)
    return (np.rint(values) if bits > 1 else np.floor(values)).clip(low, high).astype(np.int8)


def model_of(q: np.ndarray) -> QuantizedModel:
    return QuantizedModel((QuantizedLayer("w", q, np.float32(0.01), "11111111"),), (), {})


def entropy_bytes(q: np.ndarray) -> float:
    share = np.unique(q, return_counts=True)[1] / q.size
    return float(-(share * np.log2(share)).sum() * q.size / 8)


def bound(model: QuantizedModel) -> float:
    """Return the entropy of the integers and the bytes of everything else, plus 96 bytes a tensor and 4 kB."""
    tensors, _ = to_tensors(model)
    names = {layer.name for layer in model.layers}
    return sum(entropy_bytes(t) if n in names else t.nbytes for n, t in tensors.items()) + 96 * len(tensors) + 4096


def zstd(model: QuantizedModel) -> str:
    """Return the bytes of all integers, one byte each, after `zstd -19`."""
    if shutil.which("zstd") is None:
        return "–"
    raw = b"".join(layer.q.astype(np.int8 if layer.bit_width <= 8 else np.int16).tobytes() for layer in model.layers)
    done = subprocess.run(["zstd", "-19", "-c", "-q"], input=raw, capture_output=True, check=True)
    return f"{len(done.stdout):,}"


def size_row(label: str, model: QuantizedModel, onnx: bytes | None = None) -> None:
    best, dense = pack(model), pack(model, encoding="dense")
    tensors, _ = to_tensors(model)
    cells = [f"{float32_size(model):,}", f"{sum(t.nbytes for t in tensors.values()):,}"]
    cells += [f"{len(onnx):,}" if onnx else "–", f"{len(dense):,}", f"{len(best):,}"]
    integers = sum(entry.length for entry in CsqFile(best, where=label).entries.values() if entry.is_quantized)
    cells += [f"{100 * len(best) / bound(model):.1f} %", f"{integers:,}", zstd(model)]
    cells.append(f"{len(pack(model, onnx=onnx)):,}" if onnx else "–")
    print(f"| {label} | " + " | ".join(cells) + " |", flush=True)


def sizes(files: list[Path], checkpoint: Path | None) -> None:
    print("| model | float32 | int8 | ONNX packed | csq dense | csq | of the bound | its integers | zstd -19 of them "
          "| csq with graph |")  # fmt: skip
    print("| --- |" + " ---: |" * 9)
    for bits in range(1, 9):
        size_row(f"2^20 normal weights, {bits} bits", model_of(normal(bits)))
    if checkpoint is not None:
        for planes in (2, 3):
            size_row(f"ResNet-20, {planes} planes", *resnet20(checkpoint, planes))
    for file in files:
        size_row(file.name, read_finalized(file), exported(file))


def exported(file: Path) -> bytes:
    from csqtool.exporting import export

    with tempfile.TemporaryDirectory() as folder:
        export(file, Path(folder) / "m.onnx", format="onnx")
        return (Path(folder) / "m.onnx").read_bytes()


def resnet20(checkpoint: Path, planes: int) -> tuple[QuantizedModel, bytes]:
    import torch
    from samples import resnet20 as load_resnet20

    from csqtool.nn.post_training import post_training_model
    from exporters.onnx import OnnxOptions, to_onnx

    net = load_resnet20(checkpoint)
    torch.manual_seed(0)
    model = post_training_model(net, [torch.randn(64, 3, 32, 32)], planes=planes, act_bits=8)
    return model, to_onnx(model, net, OnnxOptions(weights="packed"))[0]


def best_of(**passes: Callable[[], Any]) -> dict[str, float]:
    """Return the shortest seconds of each, interleaved."""
    best = dict.fromkeys(passes, float("inf"))
    for _ in range(PASSES):
        for name, call in passes.items():
            begin = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - begin)
    return best


def bits_of_numpy(stream: np.ndarray, bits: int) -> np.ndarray:
    """Return what a user of numpy alone would write: unpackbits, then a weighted sum (the two's complement)."""
    weights = np.array([1 << i for i in range(bits - 1)] + [-(1 << (bits - 1))], np.int8)
    rows = np.unpackbits(stream, bitorder="little").reshape(-1, bits).view(np.int8)
    return (rows * weights).sum(1, dtype=np.int8)


def bits_to_numpy(q: np.ndarray, bits: int) -> bytes:
    """Return what a user of numpy alone would write: every bit as a byte, then packbits."""
    rows = (q.view(np.uint8)[:, None] >> np.arange(bits, dtype=np.uint8)) & np.uint8(1)
    return np.packbits(rows.reshape(-1), bitorder="little").tobytes()


def packing_speeds() -> None:
    print("\n| packing 2^24 weights | G weights/s | of a copy |\n| --- | ---: | ---: |")
    for bits in (3, 4):
        q = normal(bits, WEIGHTS)
        buffer, model = np.empty_like(q), model_of(q)
        assert bits_to_numpy(q, bits) == pack_integers(q, bits)
        passes = {
            "copy": lambda q=q, buffer=buffer: np.copyto(buffer, q),
            f"integers alone, dense, {bits} bits": lambda q=q, b=bits: pack_integers(q, b),
            f"numpy packbits, {bits} bits": lambda q=q, b=bits: bits_to_numpy(q, b),
            f"whole file with SHA-256, dense, {bits} bits": lambda m=model: pack(m, encoding="dense"),
            f"whole file with SHA-256, smallest, {bits} bits": lambda m=model: pack(m),
            "safetensors save, int8": lambda q=q: save({"w": q}),
        }
        print_speeds(best_of(**passes))


def speeds() -> None:
    print("\n| decoding 2^24 weights | G weights/s | of a copy |\n| --- | ---: | ---: |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = {}
        for bits in (3, 4):
            q = normal(bits, WEIGHTS)
            for encoding in ("dense", "smallest"):
                path = folder / f"{bits}-{encoding}.csq"
                path.write_bytes(pack(model_of(q), encoding=encoding))
                paths[bits, encoding] = path
            stream = np.frombuffer(CsqFile(paths[bits, "dense"].read_bytes(), where="m")._content, np.uint8)
            stream = stream[: WEIGHTS * bits // 8]
            files = {e: open_csq(paths[bits, e]) for e in ("dense", "smallest")}
            raw, buffer = save({"w": q}), np.empty_like(q)
            passes = {
                "copy": lambda q=q, buffer=buffer: np.copyto(buffer, q),
                f"Python, dense, {bits} bits": lambda f=files["dense"]: f.tensor("w"),
                f"numpy unpackbits, {bits} bits": lambda s=stream, b=bits: bits_of_numpy(s, b),
                f"Python, entropy-coded, {bits} bits": lambda f=files["smallest"]: f.tensor("w"),
                "safetensors load, int8": lambda raw=raw: load(raw),
            }
            print_speeds(best_of(**passes))
        if shutil.which("gcc"):
            program = folder / "speed"
            header = HERE.parent / "csqtool" / "csq" / "c"
            subprocess.run(
                ["gcc", "-std=c99", "-O2", f"-I{header}", str(HERE / "csq_speed.c"), "-o", program], check=True
            )
            done = subprocess.run([program, *paths.values()], capture_output=True, text=True, check=True)
            for (bits, encoding), line in zip(paths, done.stdout.splitlines(), strict=True):
                decoding, copying, _ = map(float, line.split())
                label = "dense" if encoding == "dense" else "entropy-coded"
                print_speeds({"copy": copying, f"C (gcc -O2), {label}, {bits} bits": decoding}, copy=False)
        opening(folder)


def print_speeds(best: dict[str, float], copy: bool = True) -> None:
    for name, seconds in best.items():
        if name != "copy" or copy:
            print(f"| {name} | {WEIGHTS / seconds / 1e9:.3g} | {100 * best['copy'] / seconds:.1f} % |", flush=True)


def opening(folder: Path) -> None:
    q = np.random.default_rng(0).integers(-128, 128, 100 << 20).astype(np.int8)
    path = folder / "large.csq"
    path.write_bytes(pack(model_of(q), encoding="dense"))
    best = best_of(opening=lambda: open_csq(path).metadata, reading=path.read_bytes)
    megabytes, opened, read = path.stat().st_size / 1e6, best["opening"] * 1e3, best["reading"] * 1e3
    print(f"\nOpening a file of {megabytes:.0f} MB and its metadata takes {opened:.2f} ms, reading it {read:.0f} ms.")


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ", 1)[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, help="finalized models")
    parser.add_argument("--resnet20", type=Path, help="a torch checkpoint of ResNet-20 for CIFAR-10")
    chosen = parser.parse_args()
    print(f"{processor()}, one thread; Python {platform.python_version()}, numpy {np.__version__}\n")
    sizes(chosen.models, chosen.resnet20)
    packing_speeds()
    speeds()
