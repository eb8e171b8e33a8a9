"""The layers level: every layer of an ONNX file, given PyTorch's own input to that layer (teacher-forced).

The graph is cut at each activation quantizer; in a model with float activations, at the output of each layer.
A cut value becomes an output of the graph, and the nodes that used it read PyTorch's value instead. So an early
difference cannot grow, and one run compares all layers. Where the values of all layers take much memory, few samples
are compared at a time, and of very large ones few layers (`in_groups`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from csqtool.nn.activation import to_integers
from csqtool.nn.quantized_net import QuantizedNet
from csqtool.nn.signature import named_outputs
from csqtool.nn.sites import is_operation
from csqtool.quantized_model import QuantizedModel
from csqtool.trees import call, chosen, samples

FORCED = "__from_torch"
SMALL = 3000  # values of a quantizer up to which they are also kept unrounded


@dataclass(frozen=True)
class Cut:
    """A value that both sides have.

    Attributes:
        name: quantizer, layer or output.
        value: the ONNX value to compare; for a quantizer, its integers once the graph is known.
        reference: PyTorch's value, [N, …]; uint8 integers for a quantizer, float32 elsewhere.
        fan_in: the number of products in the sum of each value of a float layer.
        is_output: it is one of the model's outputs.
        bias: of a layer in float, if it has one.
        unrounded: of a quantizer with few values, these in steps before rounding and clipping, float64, [N, …].
    """

    name: str
    value: str
    reference: NDArray[Any]
    fan_in: int = 1
    is_output: bool = False
    bias: NDArray[Any] | None = None
    unrounded: NDArray[np.float64] | None = None

    @property
    def is_quantizer(self) -> bool:
        """Whether the values are a quantizer's integers."""
        return self.reference.dtype == np.uint8 and not self.is_output


@torch.no_grad()
def reference_cuts(
    net: QuantizedNet, model: QuantizedModel, inputs: Any, *, keep: Collection[str] | None = None
) -> list[Cut]:
    """Run the PyTorch network and return its value at every cut, in the order of the forward pass.

    Args:
        net: the finalized network.
        model: the finalized model.
        inputs: those of N samples.
        keep: names of the cuts to return; None returns all that can be compared.
    """
    cuts: list[Cut] = []
    if model.activations:
        quantizers = net.quantizers

        def observe(name: str, value: Tensor) -> Tensor:
            quantizer = quantizers[name]
            if keep is None or name in keep:
                integers = to_integers(value, quantizer.scale, quantizer.zero_point, quantizer.largest)
                unrounded = None
                if value.numel() <= SMALL:
                    unrounded = (value.double() / quantizer.scale + quantizer.zero_point).numpy()
                cuts.append(Cut(name, name, integers.numpy().astype(np.uint8), unrounded=unrounded))
            replaced: Tensor = quantizer(value)
            return replaced

        output = net.observed(inputs, observe)
    else:
        output, cuts = _float_cuts(net, model, inputs, keep)
    fan_in = int(np.prod(model.layers[-1].shape[1:]))
    named = named_outputs(output, net.kept_outputs)
    return [*cuts, *(Cut(name, name, value.numpy(), fan_in, is_output=True) for name, value in named.items())]


def _float_cuts(
    net: QuantizedNet, model: QuantizedModel, inputs: Any, keep: Collection[str] | None
) -> tuple[Any, list[Cut]]:
    values: dict[str, list[Tensor]] = {}
    fan_ins: dict[str, int] = {}
    handles = []
    norms = _Norms()
    for layer in model.layers:
        name, _, attribute = layer.name.rpartition(".")
        if layer.batch_norm is None and (attribute != "weight" or not is_operation(net.model.get_submodule(name))):
            continue  # its module returns something else than the product; its effect shows in the next layer
        name = layer.batch_norm or name
        if keep is not None and name not in keep:
            continue
        fan_ins[name] = int(np.prod(layer.shape[1:]))
        values[name] = []
        collect = norms.collector(values[name]) if layer.batch_norm else _collector(values[name])
        handles.append(net.model.get_submodule(name).register_forward_hook(collect))
    try:
        with norms:
            output = call(net, inputs)
    finally:
        for handle in handles:
            handle.remove()
    # A module that is called twice has no single value to compare; its effect is seen in the next layer.
    # A layer that computes one of the model's outputs is compared as the output.
    outputs = list(named_outputs(output, net.kept_outputs).values())
    cuts = [
        Cut(n, n, v[0].numpy(), fan_ins[n], bias=model.tensors.get(f"{n}.bias")) for n, v in values.items()
        if keep is not None or (len(v) == 1 and not any(torch.equal(v[0], one) for one in outputs))
    ]  # fmt: skip
    return output, cuts


def _collector(values: list[Tensor]) -> Callable[[nn.Module, Any, Any], None]:
    def collect(_module: nn.Module, _arguments: Any, output: Any) -> None:
        if isinstance(output, Tensor):  # attention returns several; its effect shows in the next layer
            values.append(output.detach().clone())  # an in-place activation may follow

    return collect


class _Norms(TorchFunctionMode):
    """Keeps what BatchNorm computes: a module may do more, such as timm's, which applies the activation as well."""

    def __init__(self) -> None:
        super().__init__()
        self._latest: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is functional.batch_norm:
            self._latest = result.detach().clone()
        return result

    def collector(self, values: list[Tensor]) -> Callable[[nn.Module, Any, Any], None]:
        """Return the hook of a module, which adds the value that BatchNorm had in it."""

        def collect(_module: nn.Module, _arguments: Any, _output: Any) -> None:
            if self._latest is not None:
                values.append(self._latest)
            self._latest = None

        return collect


def cut_graph(proto: onnx.ModelProto, cuts: list[Cut]) -> tuple[onnx.ModelProto, list[Cut]]:
    """Return the graph cut at `cuts` and the cuts that were found in it."""
    found = in_graph(proto, cuts)
    cut = onnx.ModelProto()
    cut.CopyFrom(proto)
    graph = cut.graph
    index = _Index(graph)
    outputs = {output.name for output in graph.output}
    for place in found:
        if place.value in outputs:
            continue
        element = onnx.TensorProto.UINT8 if place.is_quantizer else onnx.TensorProto.FLOAT
        for node, position in index.uses.get(place.value, ()):
            node.input[position] = place.value + FORCED
        # Not the inputs' batch: Swin's windows and GPT-2's tokens, for instance, are folded into this axis.
        shape = [f"batch of {place.value}", *place.reference.shape[1:]]
        graph.input.append(onnx.helper.make_tensor_value_info(place.value + FORCED, element, shape))
        graph.output.append(onnx.helper.make_tensor_value_info(place.value, element, shape))
    return cut, found


def in_graph(proto: onnx.ModelProto, cuts: list[Cut]) -> list[Cut]:
    """Return the cuts that a graph has, each with the name of its value there."""
    index = _Index(proto.graph)
    found = []
    for place in cuts:
        value: str | None = place.value
        if place.is_quantizer and place.name in index.makers:
            maker = index.makers[place.name]  # integers are looked at before they are dequantized
            value = maker.input[0] if maker.op_type == "DequantizeLinear" else ""
        if value not in index.makers:
            value = _linear_output(index, place)
        if value is not None:
            found.append(replace(place, value=value))
    return found


class _Index:
    """Who makes and who uses each value of a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.makers: dict[str, onnx.NodeProto] = {}
        self.uses: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            self.makers.update(dict.fromkeys(node.output, node))
            for position, name in enumerate(node.input):
                self.uses.setdefault(name, []).append((node, position))


def _linear_output(index: _Index, cut: Cut) -> str | None:
    """Return the output of an embedding, or of a linear layer on more than two axes: its MatMul's or its Add's."""
    weights = (f"{cut.name}.weight", f"{cut.name}.weight_dq")
    readers = [node for name in weights for node, _ in index.uses.get(name, ())]
    products = [node for node in readers if node.op_type in ("MatMul", "Gather")]
    if len(products) != 1:
        return None
    product: str = products[0].output[0]
    for node, position in index.uses.get(product, ()):
        if node.op_type == "Add" and _is_bias(node.input[1 - position], index, cut):
            return str(node.output[0])
    return product


def _is_bias(name: str, index: _Index, cut: Cut) -> bool:
    """Tell whether a value is a layer's bias, which has the name of another layer's if the two are equal."""
    if name == f"{cut.name}.bias":
        return True
    constant = index.constants.get(name)
    return (
        constant is not None and cut.bias is not None and np.array_equal(onnx.numpy_helper.to_array(constant), cut.bias)
    )


def in_groups(
    cut_proto: onnx.ModelProto, cuts: list[Cut], most_bytes: float
) -> list[tuple[onnx.ModelProto, list[Cut]]]:
    """Split a cut graph into parts, each with consecutive cuts whose values take at most `most_bytes` (or one cut).

    What a part reads are PyTorch's values: the cuts before it. So it computes the same as in the whole graph.
    """
    groups: list[list[Cut]] = [[]]
    taken = 0
    for cut in cuts:
        if groups[-1] and taken + cut.reference.nbytes > most_bytes:
            groups.append([])
            taken = 0
        groups[-1].append(cut)
        taken += cut.reference.nbytes
    return (
        [(cut_proto, cuts)]
        if len(groups) == 1
        else [(part(cut_proto, [cut.value for cut in group]), group) for group in groups]
    )


def part(proto: onnx.ModelProto, values: Collection[str]) -> onnx.ModelProto:
    """Return the graph that computes some of its outputs alone."""
    makers = {output: position for position, node in enumerate(proto.graph.node) for output in node.output}
    wanted = set(values)
    queue, seen, needed = list(wanted), set(wanted), set()
    while queue:
        position = makers.get(queue.pop())
        if position is not None and position not in needed:
            needed.add(position)
            fresh = set(proto.graph.node[position].input) - seen
            seen |= fresh
            queue.extend(fresh)
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    graph = copy.graph
    kept_nodes = [node for position, node in enumerate(proto.graph.node) if position in needed]
    for field, kept in (
        (graph.node, kept_nodes),
        (graph.input, [value for value in proto.graph.input if value.name in seen]),
        (graph.output, [value for value in proto.graph.output if value.name in wanted]),
        (graph.initializer, [tensor for tensor in proto.graph.initializer if tensor.name in seen]),
    ):
        del field[:]
        field.extend(kept)
    return copy


class References:
    """PyTorch's values at the cuts, a few samples at a time; of few samples they are computed once.

    Args:
        net: the finalized network.
        model: the finalized model.
        inputs: those of all N samples.
        cuts: those that were found in the graph.
        size: samples at a time.
        feeds: returns inputs by the names that they have in the graph.
    """

    def __init__(
        self,
        net: QuantizedNet,
        model: QuantizedModel,
        inputs: Any,
        cuts: list[Cut],
        size: int,
        feeds: Callable[[Any], dict[str, NDArray[Any]]],
    ) -> None:
        self._net = net
        self._model = model
        self._inputs = inputs
        self._count = samples(inputs)
        self._feeds = feeds
        self._values = {cut.name: cut.value for cut in cuts}
        self._size = size
        self._only: dict[str, Cut] | None = None

    def batches(
        self, part: onnx.ModelProto, cuts: list[Cut]
    ) -> Iterator[tuple[dict[str, NDArray[Any]], dict[str, Cut]]]:
        """Yield what a part of the cut graph reads, by input, and the cuts with what it should give, by name."""
        read = {value.name for value in part.graph.input}
        forced = {f"{value}{FORCED}": name for name, value in self._values.items() if f"{value}{FORCED}" in read}
        names = {cut.name for cut in cuts}
        for start in range(0, self._count, self._size):
            inputs = chosen(self._inputs, slice(start, start + self._size), self._count)
            values = self._of(inputs, names | set(forced.values()))
            own = {name: array for name, array in self._feeds(inputs).items() if name in read}
            yield own | {value: values[name].reference for value, name in forced.items()}, values

    def _of(self, inputs: Any, names: set[str]) -> dict[str, Cut]:
        if self._only is not None:
            return self._only
        values = {c.name: c for c in reference_cuts(self._net, self._model, inputs, keep=names)}
        if samples(inputs) == self._count and names == self._values.keys():
            self._only = values
        return values
