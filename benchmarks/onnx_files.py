"""What exported ONNX files cost in onnxruntime: latency, bytes, load time and memory, beside onnxruntime's own.

    python benchmarks/onnx_files.py [--resnet20 resnet20.th]      # prints Markdown; ten minutes on two cores

Weights are rounded without training, which changes neither kernels nor sizes. ResNet-20 takes real weights from a
torch checkpoint where one is given, random ones otherwise. All ratios are medians of interleaved runs.
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime.quantization as ortq
import torch
from networks import NETWORKS, ResNet20
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from csqtool.bench import BenchResult, bench
from csqtool.nn.net import finalized_net
from csqtool.nn.post_training import post_training_model
from csqtool.onnx_session import session
from csqtool.quantized_model import QuantizedModel
from csqtool.verify.weights import onnx_activation_problems, onnx_weight_problems
from exporters.onnx import OnnxOptions, to_onnx
from exporters.onnx.capture import capture_float


class Reader(ortq.CalibrationDataReader):
    """Hands the calibration inputs to onnxruntime's quantizer, one by one."""

    def __init__(self, inputs: Tensor) -> None:
        self._rows = iter(inputs.numpy())

    def get_next(self) -> dict[str, np.ndarray] | None:
        row = next(self._rows, None)
        return None if row is None else {"input": row[None]}


def mixed(seed: int) -> object:
    """Return planes a layer, 2 to 4, by the layer's name: 3 on average."""
    rng = np.random.default_rng(seed)
    chosen: dict[str, int] = {}
    return lambda name: chosen.setdefault(name, int(rng.integers(2, 5)))


class Maker:
    """Writes the files of one network into a folder."""

    def __init__(self, folder: Path, name: str, net: nn.Module, inputs: Tensor) -> None:
        self.folder, self.name, self.net, self.inputs = folder, name, net.eval(), inputs
        self.models: dict[str, QuantizedModel] = {}
        self.paths: dict[str, Path] = {}

    def float32(self) -> Path:
        import onnx_ir

        model = post_training_model(self.net, [self.inputs[:2]], act_bits=None)
        path = self._path("float32")
        onnx.save(onnx_ir.to_proto(capture_float(model, copy.deepcopy(self.net))), path)
        return path

    def ours(self, label: str, planes: object, act_bits: int | None, **options: object) -> Path:
        model = post_training_model(self.net, [self.inputs], planes=planes, act_bits=act_bits)  # type: ignore[arg-type]
        content, _ = to_onnx(model, copy.deepcopy(self.net), OnnxOptions(**options))  # type: ignore[arg-type]
        self.models[label] = model
        path = self._path(label)
        path.write_bytes(content)
        return path

    def onnxruntime_static(self, label: str, weight_type: ortq.QuantType) -> Path:
        path = self._path(label)
        logging.disable(logging.WARNING)
        ortq.quantize_static(
            self._path("float32"), path, Reader(self.inputs[:32]), per_channel=True, weight_type=weight_type,
            activation_type=ortq.QuantType.QUInt8, quant_format=ortq.QuantFormat.QDQ,
        )  # fmt: skip
        return path

    def _path(self, label: str) -> Path:
        self.paths[label] = self.folder / f"{self.name} {label}.onnx".replace(" ", "_")
        return self.paths[label]


def packed_bits(model: QuantizedModel) -> int:
    """Return the bytes of packed integers, scales and biases that a file cannot do without."""
    count = 0
    for layer in model.layers:
        channels = layer.shape[0]
        count += layer.packed_bytes + (4 * channels if layer.batch_norm else 4)  # scales
        biased = layer.batch_norm or f"{layer.name.removesuffix('weight')}bias" in model.tensors
        count += 4 * channels if biased else 0
    return count + 4 * len(model.activations)


def row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |")
    sys.stdout.flush()


def head(*cells: str) -> None:
    row(*cells)
    row(*["---"] * len(cells))


def resnet20(folder: Path, weights: Path | None) -> None:
    net = ResNet20()
    if weights is not None:
        state = torch.load(weights, weights_only=True, map_location="cpu")["state_dict"]
        net.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})
    maker = Maker(folder, "resnet20", net, torch.randn(128, 3, 32, 32))
    paths = {
        "float32": maker.float32(),
        "ort int8": maker.onnxruntime_static("ort int8", ortq.QuantType.QInt8),
        "A8": maker.ours("A8", mixed(0), 8),
        "A4": maker.ours("A4", mixed(0), 4),
        "weight only": maker.ours("weight only", mixed(0), None),
    }
    int4 = maker.onnxruntime_static("ort int4", ortq.QuantType.QInt4)
    three, two = maker.ours("W3", 3, 8), maker.ours("W2", 2, 8)
    print(f"\n## ResNet-20, {'trained' if weights else 'random'} weights, mixed 2 to 4 planes\n")
    head("threads", "batch", "A8 / ort int8", "A8 / float32", "A4 / A8", "weight only / float32")
    for threads in (1, 2):
        for batch in (1, 32):
            found = measure(paths, threads, batch, 200 if batch == 1 else 40)
            ratio = {a: {b: found[a].median_ms / found[b].median_ms for b in found} for a in found}
            row(threads, batch, *(f"{ratio[a][b]:.2f}" for a, b in (
                ("A8", "ort int8"), ("A8", "float32"), ("A4", "A8"), ("weight only", "float32"))))  # fmt: skip
    print()
    head("file", "bytes", "packed bits, scales, biases", "rest", "against ort int4")
    for label, path in {**paths, "ort int4": int4, "W3 A8": three, "W2 A8": two}.items():
        model = maker.models.get(label.replace("W3 A8", "W3").replace("W2 A8", "W2"))
        bytes_ = path.stat().st_size
        needed = packed_bits(model) if model else None
        row(label, f"{bytes_:,}", f"{needed:,}" if needed else "–", f"{bytes_ - needed:,}" if needed else "–",
            f"{bytes_ / int4.stat().st_size:.2f}")  # fmt: skip
    wanted = finalized_net(copy.deepcopy(net), maker.models["weight only"])(maker.inputs).numpy()
    got = session(paths["weight only"]).run(None, {"input": maker.inputs.numpy()})[0]
    print(f"\nweight only: largest difference of a logit to PyTorch {np.abs(got - wanted).max():.1e}")


def measure(paths: dict[str, Path], threads: int, batch: int, rounds: int) -> dict[str, BenchResult]:
    results = bench(list(paths.values()), threads=threads, batch=batch, rounds=rounds, loads=1)
    return dict(zip(paths, results, strict=True))


def loading(folder: Path) -> None:
    build, shape = NETWORKS["ResNet-18"]
    maker = Maker(folder, "resnet18", build(), torch.randn(8, *shape))
    paths = {
        "int8": maker.ours("int8", 3, 8, weights="int8"),
        "packed": maker.ours("packed", 3, 8, weights="packed"),
        "float32": maker.float32(),
    }
    results = bench(list(paths.values()), rounds=3, loads=9)
    print("\n## Loading ResNet-18, four-bit integers\n")
    head("file", "bytes", "load time against int8", "peak memory against float32")
    for label, result in zip(paths, results, strict=True):
        row(label, f"{result.size_bytes:,}", f"{result.load_ms / results[0].load_ms:.2f}",
            f"{result.load_peak_bytes / results[2].load_peak_bytes:.2f}")  # fmt: skip


def breadth(folder: Path) -> None:
    print("\n## Other networks, random weights, four-bit integers, 8-bit activations\n")
    print("Agreement is on 64 random inputs, files run with optimizations off and on, and in onnx's evaluator.\n")
    head("network", "float32 bytes", "bytes", "weights", "integer compute nodes", "labels equal off / on / onnx",
         "in float")  # fmt: skip
    for name, (build, shape) in NETWORKS.items():
        torch.manual_seed(0)
        net = build().eval()
        inputs = torch.randn(64, *shape)
        model = post_training_model(net, [inputs], planes=3, act_bits=8)
        content, report = to_onnx(model, copy.deepcopy(net), OnnxOptions())
        proto = onnx.load_from_string(content)
        problems = [*onnx_weight_problems(proto, model), *onnx_activation_problems(proto, model)]
        wanted = finalized_net(copy.deepcopy(net), model)(inputs).numpy()
        found = [session(content, o).run(None, {"input": inputs.numpy()})[0] for o in ("off", "on")]
        found.append(ReferenceEvaluator(proto).run(None, {"input": inputs[:2].numpy()})[0])
        equal = [float((f.argmax(-1) == wanted[: len(f)].argmax(-1)).mean()) for f in found]
        integer = sum(n for k, n in report.kernels.items() if k.startswith("QLinear") or k == "QGemm" or "Integer" in k)
        total = integer + len(report.float_nodes)
        path = Maker(folder, name, net, inputs).float32()
        in_float = sorted({node.operator for node in report.float_nodes})
        row(name, f"{path.stat().st_size:,}", f"{len(content):,}", "equal" if not problems else problems[0],
            f"{integer} of {total} ({integer / total:.0%})", " / ".join(f"{e:.0%}" for e in equal),
            ", ".join(in_float) or "–")  # fmt: skip


def main() -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resnet20", type=Path, help="a torch checkpoint of ResNet-20 for CIFAR-10")
    parser.add_argument("--only", choices=("resnet20", "loading", "breadth"))
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        if chosen.only in (None, "resnet20"):
            resnet20(folder, chosen.resnet20)
        if chosen.only in (None, "loading"):
            loading(folder)
        if chosen.only in (None, "breadth"):
            breadth(folder)


if __name__ == "__main__":
    main()
