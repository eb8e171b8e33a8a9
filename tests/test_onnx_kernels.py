from __future__ import annotations

import pytest
from onnx import TensorProto, helper

from csqtool.onnx_kernels import FLOAT_RESULTS, INTEGER_FORMS, INTEGER_RESULTS, MOVES, integer_share, is_integer_kernel


@pytest.mark.parametrize(
    ("operator", "integer"),
    [
        *((name, True) for name in ("QLinearConv", "QLinearAdd", "QGemm", "QAttention", "ConvInteger", "MatMulNBits")),
        *((name, True) for name in ("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")),
        *((name, False) for name in ("Conv", "FusedConv", "MatMul", "QuantizeLinear", "DequantizeLinear", "QLinear")),
    ],
)
def test_integer_kernels_are_known_by_their_names(operator: str, integer: bool) -> None:
    assert is_integer_kernel(operator) == integer


def test_no_operator_that_moves_or_has_float_kernels_is_an_integer_kernel() -> None:
    assert not any(map(is_integer_kernel, MOVES | INTEGER_FORMS | INTEGER_RESULTS))
    assert all(map(is_integer_kernel, FLOAT_RESULTS - {"DequantizeLinear"}))


def test_the_integer_share_counts_computing_nodes_of_the_optimized_graph() -> None:
    def share(*operators: str) -> float:
        names = ["x", *(f"v{i}" for i in range(len(operators) - 1)), "y"]
        nodes = [helper.make_node(op, [a], [b]) for op, a, b in zip(operators, names, names[1:], strict=False)]
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in ("x", "y")]
        graph = helper.make_graph(nodes, "main", values[:1], values[1:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        return integer_share(model.SerializeToString())

    assert share("Tanh", "Exp") == 0
    assert share("Transpose", "Transpose", "Transpose") == 1  # nothing computes
