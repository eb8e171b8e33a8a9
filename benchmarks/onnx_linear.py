"""One linear layer in onnxruntime: MatMulNBits on 4-bit weights beside float32 and 8-bit integers.

    python benchmarks/onnx_linear.py [--threads 1]      # prints Markdown; a minute

MatMulNBits is what onnxruntime makes of DequantizeLinear and MatMul. By default it quantizes the activations on its
own (accuracy level 4); a session option, which no file can carry, asks for float32 arithmetic (level 1).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

FORMS = ("float32", "4 bits, level 4", "4 bits, level 1", "int8, uint8 activations")
SHAPES = ((64, 10), (512, 512), (1024, 1024), (2048, 2048))
ROUNDS = 60
SCALE = np.float32(0.01)
INPUT_SCALE, INPUT_ZERO = np.float32(0.03), np.uint8(128)


def model(form: str, q: np.ndarray) -> bytes:
    """Return a file with one product of an input [batch, K] and the weight q·SCALE, [K, N]."""
    tensors: dict[str, Any] = {}
    nodes = []
    data = "input"
    if form == "float32":
        tensors["w"] = q * SCALE
    else:
        tensors |= {"q": q if "int8" in form else q.astype(ml_dtypes.int4), "s": SCALE}
        nodes.append(helper.make_node("DequantizeLinear", ["q", "s"], ["w"]))
    if "activations" in form:
        tensors |= {"xs": INPUT_SCALE, "xz": INPUT_ZERO}
        nodes.append(helper.make_node("QuantizeLinear", ["input", "xs", "xz"], ["xq"]))
        nodes.append(helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["x"]))
        data = "x"
    nodes.append(helper.make_node("MatMul", [data, "w"], ["output"]))
    ends = [
        helper.make_tensor_value_info(n, 1, ["batch", k]) for n, k in zip(("input", "output"), q.shape, strict=True)
    ]
    stored = [numpy_helper.from_array(np.asarray(t), name) for name, t in tensors.items()]
    graph = helper.make_graph(nodes, "linear", ends[:1], ends[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


def load(form: str, q: np.ndarray, threads: int) -> tuple[Any, str]:
    """Return a session, and the kernel that computes the product."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if "level 1" in form:
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        session = onnxruntime.InferenceSession(model(form, q), options)
        return session, onnx.load(options.optimized_model_filepath).graph.node[-1].op_type


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    rng = np.random.default_rng(0)
    print("| shape | rows | form | kernel | latency against float32 | largest error over the largest output |")
    print("| --- | --- | --- | --- | --- | --- |")
    for shape in SHAPES:
        q = rng.integers(-7, 8, shape).astype(np.int8)
        loaded = {form: load(form, q, threads) for form in FORMS}
        for rows in (1, 32):
            x = rng.standard_normal((rows, shape[0])).astype(np.float32)
            # What the quantized input stands for, so that its own rounding is no error of the kernel.
            grid = (np.clip(np.rint(x / INPUT_SCALE) + INPUT_ZERO, 0, 255) - INPUT_ZERO) * INPUT_SCALE
            seconds: dict[str, list[float]] = {form: [] for form in FORMS}
            for _ in range(ROUNDS):
                for form, (session, _) in loaded.items():
                    start = time.perf_counter()
                    session.run(None, {"input": x})
                    seconds[form].append(time.perf_counter() - start)
            for form, (session, kernel) in loaded.items():
                wanted = (grid if "activations" in form else x).astype(np.float64) @ (q * SCALE).astype(np.float64)
                error = np.abs(session.run(None, {"input": x})[0] - wanted).max() / np.abs(wanted).max()
                ratio = statistics.median(seconds[form]) / statistics.median(seconds["float32"])
                print(f"| {shape[0]} × {shape[1]} | {rows} | {form} | {kernel} | {ratio:.2f} | {error:.0e} |")


if __name__ == "__main__":
    main()
