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
import samples
import torch
from torch import Tensor, nn

from csqtool.benchmarking import BenchResult, bench
from csqtool.errors import InputError
from csqtool.nn.finalized_net import finalized_net
from csqtool.nn.post_training import post_training_model
from csqtool.onnx_file import flattened
from csqtool.onnx_kernels import is_integer_kernel
from csqtool.onnx_session import session
from csqtool.quantized_model import QuantizedModel
from csqtool.verifying.backends import Backend, OnnxRuntime, OpenVino, Reference
from csqtool.verifying.weights import onnx_activation_problems, onnx_weight_problems
from exporters.onnx import OnnxOptions, to_onnx
from exporters.onnx.capture import capture_float
from exporters.onnx.options import REFUSED, WEIGHTS

# Sample models by what they are called here, with an input's shape.
NETWORKS: dict[str, tuple[str, tuple[int, ...]]] = {
    "MobileNetV2": ("mobilenet_v2/model.py:mobilenet_v2", (3, 96, 96)),
    "VGG19-BN": ("vgg_cifar/model.py:vgg19_bn", (3, 32, 32)),
    "ResNet-18": ("resnet_imagenet/model.py:resnet18", (3, 64, 64)),
    "ResNet-50": ("resnet_imagenet/model.py:resnet50", (3, 64, 64)),
    "DS-CNN": ("keyword_ds_cnn/model.py:ds_cnn", (1, 49, 10)),
    "vision transformer": ("digits_vit/model.py:digits_vit", (1, 8, 8)),
    "autoencoder": ("digits_autoencoder/model.py:digits_autoencoder", (1, 8, 8)),
}


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
    maker = Maker(folder, "resnet20", samples.resnet20(weights), torch.randn(128, 3, 32, 32))
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
            found = measure(paths, threads, batch, 300 if batch == 1 else 80)
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
    wanted = finalized_net(copy.deepcopy(maker.net), maker.models["weight only"])(maker.inputs).numpy()
    got = session(paths["weight only"]).run(None, {"input": maker.inputs.numpy()})[0]
    print(f"\nweight only: largest difference of a logit to PyTorch {np.abs(got - wanted).max():.1e}")


def measure(paths: dict[str, Path], threads: int, batch: int, rounds: int) -> dict[str, BenchResult]:
    results = bench(list(paths.values()), threads=threads, batch=batch, rounds=rounds, loads=1)
    return dict(zip(paths, results, strict=True))


def loading(folder: Path) -> None:
    factory, shape = NETWORKS["ResNet-18"]
    maker = Maker(folder, "resnet18", samples.build(factory), torch.randn(8, *shape))
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


def outcome(backend: Backend, content: bytes, level: str, inputs: Tensor, wanted: np.ndarray) -> str:
    """Return the text of a table cell: how far a backend's outputs are from PyTorch's."""
    feeds = {"input": inputs[: backend.max_samples].numpy()}
    try:
        found = backend.run(content, level, feeds)["output"]
    except RuntimeError as error:
        return f"fails: {str(error)[:60]}"
    wanted = wanted[: len(found)]
    return f"{(found.argmax(-1) == wanted.argmax(-1)).mean():.0%}, {np.abs(found - wanted).max() / wanted.std():.0e}"


def openvino() -> list[Backend]:
    try:
        return [OpenVino()]
    except InputError:
        return []  # an extra that is not installed


def breadth(folder: Path) -> None:
    others: list[Backend] = [Reference(), *openvino()]
    print("\n## Sample models, random weights, four-bit integers, 8-bit activations\n")
    print("Share of equal labels, and largest difference over the outputs' standard deviation, against PyTorch on 64")
    print("random inputs (onnx's evaluator: 32). OpenVINO reads a file written for it, `--runtime openvino`.\n")
    head("network", "float32 bytes", "bytes", "weights", "integer compute nodes", "in float", "onnxruntime, off",
         "onnxruntime", *(backend.name for backend in others))  # fmt: skip
    for name, (factory, shape) in NETWORKS.items():
        net = samples.build(factory)
        inputs = torch.randn(64, *shape)
        model = post_training_model(net, [inputs], planes=3, act_bits=8)
        content, report = to_onnx(model, copy.deepcopy(net), OnnxOptions())
        for_openvino, _ = to_onnx(model, copy.deepcopy(net), OnnxOptions(runtime="openvino"))
        flat = flattened(onnx.load_from_string(content), where=name)
        problems = [*onnx_weight_problems(flat, model), *onnx_activation_problems(flat, model)]
        wanted = finalized_net(copy.deepcopy(net), model)(inputs).numpy()
        runtime = OnnxRuntime()
        found = [outcome(runtime, content, level, inputs, wanted) for level in ("off", "on")]
        found += [outcome(b, for_openvino if b.name == "openvino" else content, b.levels[-1], inputs, wanted)
                  for b in others]  # fmt: skip
        integer = sum(count for operator, count in report.kernels.items() if is_integer_kernel(operator))
        total = integer + len(report.float_nodes)
        path = Maker(folder, name, net, inputs).float32()
        in_float = sorted({node.operator for node in report.float_nodes})
        row(name, f"{path.stat().st_size:,}", f"{len(content):,}", problems[0] if problems else "equal",
            f"{integer} of {total} ({integer / total:.0%})", ", ".join(in_float) or "–", *found)  # fmt: skip


def storages(weights: Path | None) -> None:
    """Say which storage of weights works where, on ResNet-20 with three-bit integers (int2: two-bit ones)."""
    net = samples.resnet20(weights)
    inputs = torch.randn(64, 3, 32, 32)
    runtime = OnnxRuntime()
    others: list[Backend] = [Reference(), *openvino()]
    print("\n## Which storage works where: ResNet-20\n")
    print("Written for onnxruntime, and *plain* with `--runtime generic`: integers are then the direct input of")
    print("DequantizeLinear. int2 holds two-bit integers, the others three-bit ones. Cells as above.\n")
    head("activations", "weights", "bytes", "onnxruntime, off", "onnxruntime", "latency against packed",
         "plain, onnxruntime", "latency", "onnx's evaluator", *["plain, OpenVINO"] * (len(others) - 1))  # fmt: skip
    for act_bits in (8, 4, None):
        first: Path | None = None
        with tempfile.TemporaryDirectory() as name:
            for storage in [kind for kind in WEIGHTS if kind != "auto"]:
                planes = 1 if storage == "int2" else 2
                model = post_training_model(net, [inputs], planes=planes, act_bits=act_bits)
                content, _ = to_onnx(model, copy.deepcopy(net), OnnxOptions(weights=storage))
                plain, _ = to_onnx(model, copy.deepcopy(net), OnnxOptions(weights=storage, runtime="generic"))
                wanted = finalized_net(copy.deepcopy(net), model)(inputs).numpy()
                files = [Path(name) / f"{storage}.onnx", Path(name) / f"{storage}-plain.onnx"]
                for file, written in zip(files, (content, plain), strict=True):
                    file.write_bytes(written)
                first = first or files[0]
                cells = [outcome(runtime, content, level, inputs, wanted) for level in ("off", "on")]
                cells += [latency(files[0], first), outcome(runtime, plain, "on", inputs, wanted),
                          latency(files[1], first)]  # fmt: skip
                for backend in others:
                    refused = REFUSED.get((backend.name, storage))
                    written = plain if backend.name == "openvino" else content
                    cells.append(f"refused: {refused}" if refused else
                                 outcome(backend, written, backend.levels[-1], inputs, wanted))  # fmt: skip
                row("float" if act_bits is None else act_bits, storage, f"{len(content):,}", *cells)


def latency(file: Path, against: Path) -> str:
    """Return the latency of a file over another's at batch 1, one thread."""
    try:
        return f"{bench([against, file], rounds=60, loads=1)[1].ratio:.2f}"
    except InputError:
        return "–"


def main() -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resnet20", type=Path, help="a torch checkpoint of ResNet-20 for CIFAR-10")
    parser.add_argument("--only", choices=("resnet20", "loading", "breadth", "storages"))
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
        if chosen.only in (None, "storages"):
            storages(chosen.resnet20)


if __name__ == "__main__":
    main()
