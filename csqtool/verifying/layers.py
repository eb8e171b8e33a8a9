"""The layers level: every layer of an ONNX file, given PyTorch's own input to that layer (teacher-forced).

The graph is cut at each activation quantizer; in a model with float activations, at the output of each layer.
A cut value becomes an output of the graph, and the nodes that used it read PyTorch's value instead. So an early
difference cannot grow, and one run compares all layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from csqtool.nn.activation import to_integers
from csqtool.nn.quantized_net import QuantizedNet
from csqtool.quantized_model import QuantizedModel
from csqtool.verifying.tolerances import Tolerances

FORCED = "__from_torch"


@dataclass(frozen=True)
class Cut:
    """A value that both sides have.

    Attributes:
        name: quantizer, layer or output.
        value: the ONNX value to compare; for a quantizer, its integers once the graph is known.
        reference: PyTorch's value, [N, …]; uint8 integers for a quantizer, float32 elsewhere.
        fan_in: the number of products in the sum of each value of a float layer.
    """

    name: str
    value: str
    reference: NDArray[Any]
    fan_in: int = 1


@torch.no_grad()
def reference_cuts(net: QuantizedNet, model: QuantizedModel, inputs: Tensor) -> list[Cut]:
    """Run the PyTorch network and return its value at every cut, in the order of the forward pass."""
    cuts: list[Cut] = []
    if model.activations:

        def observe(name: str, value: Tensor) -> Tensor:
            quantizer = net.quantizers[name]
            integers = to_integers(value, quantizer.scale, quantizer.zero_point, quantizer.largest)
            cuts.append(Cut(name, name, integers.numpy().astype(np.uint8)))
            replaced: Tensor = quantizer(value)
            return replaced

        output = net.observed(inputs, observe)
    else:
        output, cuts = _float_cuts(net, model, inputs)
    fan_in = int(np.prod(model.layers[-1].shape[1:]))
    return [*cuts, Cut("output", "output", output.numpy(), fan_in)]


def _float_cuts(net: QuantizedNet, model: QuantizedModel, inputs: Tensor) -> tuple[Tensor, list[Cut]]:
    values: dict[str, list[Tensor]] = {}
    fan_ins: dict[str, int] = {}
    handles = []
    for layer in model.layers:
        name = layer.batch_norm or layer.name.rpartition(".")[0]
        fan_ins[name] = int(np.prod(layer.shape[1:]))
        values[name] = []
        handles.append(net.model.get_submodule(name).register_forward_hook(_collector(values[name])))
    try:
        output: Tensor = net(inputs)
    finally:
        for handle in handles:
            handle.remove()
    # A module that is called twice has no single value to compare; its effect is seen in the next layer.
    # A layer that computes the model's output is compared as the output.
    cuts = [
        Cut(n, n, v[0].numpy(), fan_ins[n]) for n, v in values.items() if len(v) == 1 and not torch.equal(v[0], output)
    ]
    return output, cuts


def _collector(values: list[Tensor]) -> Callable[[nn.Module, Any, Tensor], None]:
    def collect(_module: nn.Module, _arguments: Any, output: Tensor) -> None:
        values.append(output.detach().clone())  # an in-place activation may follow

    return collect


def cut_graph(proto: onnx.ModelProto, cuts: list[Cut]) -> tuple[onnx.ModelProto, list[Cut]]:
    """Return the graph cut at `cuts` and the cuts that were found in it."""
    cut = onnx.ModelProto()
    cut.CopyFrom(proto)
    graph = cut.graph
    makers = {output: node for node in graph.node for output in node.output}
    made = set(makers)
    outputs = {output.name for output in graph.output}
    found = []
    for place in cuts:
        if place.reference.dtype == np.uint8 and place.name in makers:
            maker = makers[place.name]  # integers are looked at before they are dequantized
            place = replace(place, value=maker.input[0] if maker.op_type == "DequantizeLinear" else "")  # noqa: PLW2901
        if place.value not in made:
            value = _linear_output(graph, place.name)
            if value is None:
                continue
            place = replace(place, value=value)  # noqa: PLW2901
        found.append(place)
        if place.value in outputs:
            continue
        element = onnx.TensorProto.UINT8 if place.reference.dtype == np.uint8 else onnx.TensorProto.FLOAT
        for node in graph.node:
            for position, name in enumerate(node.input):
                if name == place.value:
                    node.input[position] = place.value + FORCED
        shape = ["batch", *place.reference.shape[1:]]
        graph.input.append(onnx.helper.make_tensor_value_info(place.value + FORCED, element, shape))
        graph.output.append(onnx.helper.make_tensor_value_info(place.value, element, shape))
    return cut, found


def _linear_output(graph: onnx.GraphProto, layer: str) -> str | None:
    """Return the output of a linear layer on more than two axes: of a MatMul, or of the Add that adds its bias."""
    weights = {f"{layer}.weight", f"{layer}.weight_dq"}
    products = [node for node in graph.node if node.op_type == "MatMul" and weights & set(node.input)]
    if len(products) != 1:
        return None
    product: str = products[0].output[0]
    sums = [node.output[0] for node in graph.node
            if node.op_type == "Add" and {product, f"{layer}.bias"} == set(node.input)]  # fmt: skip
    return sums[0] if sums else product


def compare_cut(cut: Cut, found: NDArray[Any], allowed: Tolerances) -> tuple[bool, str, dict[str, float]]:
    """Return verdict, detail and figures of one layer.

    Integer layers: by default at most one step off, on at most 1e-3 of the values (the float result lies next to a
    rounding boundary there). Float layers: float32 rounding, 32·ε·√K of the largest value for K products.
    """
    if found.shape != cut.reference.shape:
        return False, f"shape {list(found.shape)} instead of {list(cut.reference.shape)}", {}
    if cut.reference.dtype == np.uint8:
        steps = np.abs(found.astype(np.int16) - cut.reference.astype(np.int16))
        share, largest = float((steps > 0).mean()), int(steps.max())
        holds = largest <= allowed.layer_steps and share <= allowed.layer_share
        detail = f"{largest} steps off at most, {share:.2g} of the values"
        if not holds:
            detail += f" ({allowed.layer_steps:g} and {allowed.layer_share:g} allowed)"
        return holds, detail, {"steps": largest, "share": share}
    difference = float(np.abs(found - cut.reference).max())
    unit = float(np.finfo(np.float32).eps) * cut.fan_in**0.5
    tolerance = allowed.layer_rounding * unit * max(1.0, float(np.abs(cut.reference).max()))
    return difference <= tolerance, f"{difference:.2g} off, {tolerance:.2g} allowed", {"max_abs_diff": difference}


def weights_behind(proto: onnx.ModelProto, value: str, cuts: list[Cut], model: QuantizedModel) -> str | None:
    """Return the quantized parameters between `value` and the cuts before it, which may cause its error."""
    makers = {output: node for node in proto.graph.node for output in node.output}
    names = {layer.name for layer in model.layers}
    stops = {cut.value for cut in cuts} - {value}
    queue, seen, found = [value], set(), []
    while queue:
        name = queue.pop()
        if name in seen or name in stops:
            continue
        seen.add(name)
        if name in names:
            found.append(name)
        if name in makers:
            queue.extend(makers[name].input)
    return ", ".join(sorted(found)) or None


def likely_cause(
    cut: Cut, behind: str | None, figures: dict[str, float], wrong: set[str], held_unoptimized: bool
) -> str:
    """Return the likely cause of a layer's error, derived from everything else that was compared.

    Args:
        cut: the layer.
        behind: the quantized parameters that it is computed from, from `weights_behind`.
        figures: of `compare_cut`.
        wrong: parameters and quantizers that failed the weights level.
        held_unoptimized: the layer held with optimizations off.
    """
    if at_fault := wrong & set((behind or "").split(", ")):
        return f"the weights of {min(at_fault)} are wrong"
    if cut.name in wrong:
        return "its activation quantizer is wrong"
    if held_unoptimized:
        return "a fusion: with optimizations off it holds"
    if figures.get("steps", 2) <= 1:
        return "rounding: no value is further off than the next step"
    return "the graph: weights and quantizers are right, an operator, a bias or an edge is not"
