"""Which share of a file's computing nodes onnxruntime runs on integers."""

from __future__ import annotations

import re

from csqtool.onnx_session import optimized_operators

INTEGER = re.compile(r"QLinear\w+|QGemm|QAttention|ConvInteger|MatMulInteger\w*|DynamicQuantize\w+|MatMulNBits")
# What moves, reshapes or converts values, and computes nothing. Pooling and clipping count as computing.
MOVES = {
    "Cast", "Concat", "Constant", "ConstantOfShape", "DequantizeLinear", "Expand", "Flatten", "Gather", "Identity",
    "Pad", "QuantizeLinear", "Range", "ReorderInput", "ReorderOutput", "Reshape", "Shape", "Slice", "Split", "Squeeze",
    "Transpose", "Unsqueeze",
}  # fmt: skip
ON_INTEGERS_TOO = {"MaxPool", "Clip"}  # the same operator runs on uint8 inside quantized graphs


def integer_share(content: bytes) -> float:
    """Return integer kernels over all computing nodes of the graph that onnxruntime really runs; 1 if none computes.

    Raises:
        RuntimeError: onnxruntime cannot load the file.
    """
    computing = [name for name in optimized_operators(content) if name not in MOVES | ON_INTEGERS_TOO]
    return sum(bool(INTEGER.fullmatch(name)) for name in computing) / len(computing) if computing else 1.0
