"""Which of onnxruntime's operators compute on integers: one table for exporter, verifier and benchmarks."""

from __future__ import annotations

import re

from csqtool.onnx_isolated import optimized_operators

# Operators that compute on integers, by their names in onnxruntime's optimized graph.
_INTEGER_KERNELS = re.compile(
    r"QLinear\w+|QGemm|QAttention|ConvInteger|\w*MatMulInteger\w*|DynamicQuantize\w+|MatMulNBits"
)
# Of these, the ones that return float.
FLOAT_RESULTS = {"DequantizeLinear", "MatMulNBits", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
# Standard ONNX operators that have such a kernel if their inputs and results are quantized.
INTEGER_FORMS = {
    "Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "MaxPool", "Relu", "Clip",
    "LeakyRelu", "Sigmoid", "Softmax", "Where",
}  # fmt: skip
# Operators that move, reshape or convert values, and compute nothing. Pooling and clipping do compute.
MOVES = {
    "Cast", "Concat", "Constant", "ConstantOfShape", "DequantizeLinear", "Expand", "Flatten", "Gather", "Identity",
    "Pad", "QuantizeLinear", "Range", "ReorderInput", "ReorderOutput", "Reshape", "Shape", "Slice", "Split", "Squeeze",
    "Transpose", "Unsqueeze",
}  # fmt: skip
# Operators that runtimes exchange with DequantizeLinear in front of them. Concat is none: its integer kernel needs a
# quantizer of its own.
PASSING_DEQUANTIZED = (MOVES | {"MaxPool"}) - {"Concat"}
INTEGER_RESULTS = {"QuantizeLinear", "Shape", "Size", "ArgMax", "Equal", "Greater", "Less", "Not", "And", "Or"}
# In quantized graphs these run on uint8 and have the same name as in float graphs.
_SAME_NAME_ON_INTEGERS = {"MaxPool", "Clip"}


def is_integer_kernel(operator: str) -> bool:
    """Return whether an operator of onnxruntime's optimized graph computes on integers."""
    return _INTEGER_KERNELS.fullmatch(operator) is not None


def integer_share(content: bytes) -> float:
    """Return the share of integer kernels among the computing nodes of onnxruntime's optimized graph; 1 if it has none.

    Raises:
        RuntimeError: onnxruntime cannot load the file.
    """
    neutral = MOVES | _SAME_NAME_ON_INTEGERS
    computing = [name for name in optimized_operators(content) if name not in neutral]
    return sum(map(is_integer_kernel, computing)) / len(computing) if computing else 1.0
