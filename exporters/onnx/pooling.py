"""A mean over all spatial axes as the operator that runtimes have kernels for."""

from __future__ import annotations

import onnx_ir as ir

from exporters.onnx.graph import GraphEditor, constant_of


def global_average_pool(editor: GraphEditor, node: ir.Node) -> None:
    """Replace a ReduceMean by GlobalAveragePool, if its axes are all from the third on."""
    source = node.inputs[0]
    axes = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    if source is None or source.shape is None or axes is None:
        return
    rank = len(source.shape)
    chosen = sorted(int(a) % rank for a in axes.reshape(-1))
    keepdims = node.attributes.get("keepdims")
    if rank < 3 or chosen != list(range(2, rank)):
        return
    value = editor.insert(node, "GlobalAveragePool", [source], f"{node.outputs[0].name}_pooled")
    value.shape = ir.Shape([*list(source.shape)[:2], *[1] * (rank - 2)])
    if keepdims is not None and keepdims.as_int() == 0:
        value = editor.insert(node, "Flatten", [value], f"{node.outputs[0].name}_flat", axis=1)
    editor.replace(node, value)
