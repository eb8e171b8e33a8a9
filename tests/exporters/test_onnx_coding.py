"""Coded weights: three decoders agree on every code, sizes are near the entropy, and no broken code passes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from csqtool.onnx_session import session
from csqtool.quantized_model import IntegerArray, QuantizedModel, smallest_dtype
from csqtool.verifying.coded_weights import coded_problems, decoded_integers, decoded_symbols
from exporters.onnx.choosing import WaitingWeight, choose
from exporters.onnx.coding import SYMBOLS, code_weights, entropy_bytes
from exporters.onnx.compact import compact
from exporters.onnx.functions import FUNCTION_DOMAIN
from tests.support.commands import ROOT
from tests.support.onnx_changes import attribute
from tests.support.onnx_nets import ConvNet, Export, export_module

LAYER = "conv2.weight"
GOLDEN = ROOT / "tests" / "golden" / "v1-coded.onnx"


def decoding_graph(layers: list[IntegerArray]) -> onnx.ModelProto:
    placeholders = {ir.Node(FUNCTION_DOMAIN, "Stored", []): q for q in layers}
    outputs = []
    for i, (node, q) in enumerate(placeholders.items()):
        node.outputs[0].name = f"q{i}"
        output = ir.node("Identity", node.outputs).outputs[0]
        output.name, output.shape = f"y{i}", ir.Shape(q.shape)
        output.dtype = ir.DataType.INT8 if q.dtype == np.int8 else ir.DataType.INT16
        outputs.append(output)
    nodes = [*placeholders, *(output.producer() for output in outputs)]
    graph = ir.Graph([], outputs, nodes=nodes, opset_imports={"": 18, FUNCTION_DOMAIN: 1}, name="g")
    waiting = {node: WaitingWeight(f"q{i}", q, ("coded",)) for i, (node, q) in enumerate(placeholders.items())}
    functions = compact(graph, waiting)[0].values()
    for function in functions:
        function.opset_imports[""] = 18
    return ir.to_proto(ir.Model(graph, ir_version=8, functions=list(functions)))


def by_decoder(proto: onnx.ModelProto) -> list[np.ndarray]:
    symbols, found = [], []
    for node in proto.graph.node:
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == SYMBOLS:
            symbols = decoded_symbols(given)
        elif node.domain == FUNCTION_DOMAIN:
            found.append(decoded_integers(symbols, given))
    return found


def skewed(rng: np.random.Generator, shape: list[int], spread: float) -> IntegerArray:
    """Return integers of a geometric distribution of magnitudes, with the sign of a coin."""
    magnitudes = np.minimum(rng.geometric(1 / (1 + spread), shape) - 1, 255)
    return smallest_dtype(magnitudes * rng.choice([-1, 1], shape))


layers_drawn = st.lists(
    st.tuples(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.sampled_from([0, 0.05, 0.5, 2, 12, 90])),
    min_size=1,
    max_size=4,
)


@settings(deadline=None, max_examples=25)
@given(layers_drawn, st.integers(0, 2**32 - 1))
def test_three_decoders_give_the_integers_of_every_layer(drawn: list[tuple[list[int], float]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = [skewed(rng, shape, spread) for shape, spread in drawn]
    proto = decoding_graph(layers)
    onnx.checker.check_model(proto, full_check=True)
    for found in (
        ReferenceEvaluator(proto).run(None, {}),
        session(proto.SerializeToString()).run(None, {}),
        by_decoder(proto),
    ):
        for one, q in zip(found, layers, strict=True):
            assert one.dtype == q.dtype
            assert np.array_equal(one, q)


def test_a_code_takes_hardly_more_than_the_entropy_of_single_integers() -> None:
    rng = np.random.default_rng(0)
    layers = [skewed(rng, [64, 64, 3, 3], spread) for spread in (0.05, 0.1, 0.3, 0.7)]
    coded = code_weights(layers)
    entropy = sum(entropy_bytes(q) for q in layers)
    assert sum(one.size_bytes for one in coded) <= 1.12 * entropy
    assert coded[0].levels.shape[1] > coded[-1].levels.shape[1]  # of mostly zeros, larger groups are a symbol


def golden_integers() -> list[IntegerArray]:
    """Return the integers of the golden file."""
    count = np.arange(240)
    sparse = np.where(count % 7 == 0, count % 5 - 2, 0).reshape(10, 4, 3, 2)
    return [sparse.astype(np.int8), (count[:60] ** 2 % 600 - 300).reshape(3, 20).astype(np.int16)]


def test_all_decoders_read_the_golden_file_for_ever() -> None:
    proto = onnx.load(GOLDEN)
    found = [by_decoder(proto), ReferenceEvaluator(proto).run(None, {}), session(GOLDEN.read_bytes()).run(None, {})]
    for arrays in found:
        for one, q in zip(arrays, golden_integers(), strict=True):
            assert one.dtype == q.dtype
            assert np.array_equal(one, q)


def sparse_integers(model: QuantizedModel) -> QuantizedModel:
    """Give every layer skewed integers of four bits."""
    rng = np.random.default_rng(0)
    layers = []
    for layer in model.layers:
        q = np.clip(skewed(rng, list(layer.shape), 0.4), -7, 7).astype(np.int8)
        q.reshape(-1)[:2] = 7, -7
        layers.append(dataclasses.replace(layer, q=q, mask="111"))
    return dataclasses.replace(model, layers=tuple(layers))


def coded_export(act_bits: int | None = 8, width: int = 64, **options: str) -> Export:
    options = {"weights": "coded"} | options
    return export_module(ConvNet(width), (3, 6, 6), act_bits=act_bits, prepare=sparse_integers, **options)


@pytest.mark.parametrize("act_bits", [None, 8])
def test_coded_weights_are_folded_at_load_and_reach_integer_kernels(act_bits: int | None) -> None:
    export = coded_export(act_bits)
    export.assert_faithful()
    assert list(coded_problems(export.proto, export.model)) == []
    assert all(text.startswith("coded") for text in export.report.storage.values())
    operators = export.operators()
    assert not {"Gather", "ScatterElements", "CumSum", "Slice"} & set(operators)
    if act_bits is not None:
        assert operators.count("QLinearConv") == 3
        assert export.report.float_nodes == []


@pytest.mark.slow
def test_auto_is_never_larger_than_packed_or_coded() -> None:
    for width in (4, 64):
        sizes = {kind: len(coded_export(width=width, weights=kind).content) for kind in ("auto", "packed", "coded")}
        assert sizes["auto"] <= min(sizes["packed"], sizes["coded"])
    assert sizes["auto"] < 0.9 * sizes["packed"]


def test_each_layer_has_the_form_that_takes_fewer_bytes() -> None:
    rng = np.random.default_rng(0)
    flat = rng.integers(-4, 4, (64, 64, 3, 3)).astype(np.int8)
    layers = [skewed(rng, [64, 64, 3, 3], 0.1), flat, skewed(rng, [64, 64, 3, 3], 0.5)]
    chosen = choose([WaitingWeight("x", q, ("packed", "coded")) for q in layers], [("dequantize", False)] * 3)
    assert [str(one).split()[0] for one in chosen] == ["coded", "packed", "coded"]


def test_many_integers_are_several_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporters.onnx.choosing.MOST_INTEGERS", 1000)
    export = coded_export()
    assert sum(node.op_type == SYMBOLS for node in export.proto.graph.node) > 1
    assert export.problems() == []
    assert list(coded_problems(export.proto, export.model)) == []


def test_few_integers_of_eight_bits_stay_a_tensor_and_many_skewed_ones_are_coded() -> None:
    def eight_bits(model: QuantizedModel) -> QuantizedModel:
        rng = np.random.default_rng(0)
        layers = []
        for layer in model.layers:
            drawn = rng.laplace(0, 10, layer.shape) if layer.name == LAYER else rng.uniform(-127, 127, layer.shape)
            q = np.clip(np.rint(drawn), -127, 127).astype(np.int8)
            q.reshape(-1)[:2] = 127, -127
            layers.append(dataclasses.replace(layer, q=q, mask="1111111"))
        return dataclasses.replace(model, layers=tuple(layers))

    export = export_module(ConvNet(128), (3, 6, 6), prepare=eight_bits)
    storage = export.report.storage
    assert storage["classifier.weight"] == "int8"
    assert storage[LAYER].startswith("coded")
    assert export.problems() == []


Mutation = Callable[[onnx.ModelProto], None]


def change(name: str, key: str, new: Callable[[np.ndarray], np.ndarray]) -> Mutation:
    def mutate(proto: onnx.ModelProto) -> None:
        tensor = attribute(proto, name, key).t
        tensor.CopyFrom(numpy_helper.from_array(new(numpy_helper.to_array(tensor).copy())))

    return mutate


def flipped(array: np.ndarray) -> np.ndarray:
    array[len(array) // 2, 0] ^= 1
    return array


def exchanged(array: np.ndarray) -> np.ndarray:
    array[[0, 1]] = array[[1, 0]]
    return array


def other_widths(proto: onnx.ModelProto) -> None:
    widths = attribute(proto, "symbols", "widths").ints
    widths[1] += 1


def moved(proto: onnx.ModelProto) -> None:
    for name in ("begin", "end"):
        attribute(proto, LAYER, name).ints[0] -= 1


def other_class(proto: onnx.ModelProto) -> None:
    """The function adds a bit more to the number of a class than there is."""
    node = next(n for f in proto.functions if f.name == SYMBOLS for n in f.node if n.op_type == "ScatterElements")
    node.input[2] = node.input[0]


def longer(array: np.ndarray) -> np.ndarray:
    return np.concatenate([array, np.zeros((1, 1), np.uint8)])


def unused_group(array: np.ndarray) -> np.ndarray:
    return np.concatenate([array, np.full((1, array.shape[1]), 5, array.dtype)])


WRONG: dict[str, Mutation] = {
    "a bit of the prefix": change("symbols", "prefix", flipped),
    "a bit of the suffix": change("symbols", "suffix", flipped),
    "another width of a class": other_widths,
    "two groups of a table exchanged": change(LAYER, "levels", exchanged),
    "a layer's symbols moved by one": moved,
    "a function that decodes otherwise": other_class,
}
LEFT_OVER: dict[str, Mutation] = {
    "a byte after the suffix": change("symbols", "suffix", longer),
    "two bytes after the prefix": change("symbols", "prefix", lambda array: longer(longer(array))),
    "a group that no symbol names": change(LAYER, "levels", unused_group),
}


@pytest.fixture(scope="module")
def coded() -> Export:
    return coded_export()


def broken(export: Export, mutate: Mutation) -> Export:
    proto = copy.deepcopy(export.proto)
    mutate(proto)
    return dataclasses.replace(export, content=proto.SerializeToString())


@pytest.mark.parametrize("name", WRONG)
def test_a_broken_code_is_found_in_the_weights(coded: Export, name: str) -> None:
    found = broken(coded, WRONG[name])
    by_operators = {layer for layer, _ in found.problems()}
    by_bits = {layer for layer, _ in coded_problems(found.proto, found.model)}
    assert by_operators & {layer.name for layer in coded.model.layers}
    assert bool(by_bits) == ("function" not in name)  # the bits are right, but the file does not read them so


@pytest.mark.parametrize("name", LEFT_OVER)
def test_what_is_left_over_in_a_code_is_found_although_it_changes_no_integer(coded: Export, name: str) -> None:
    found = broken(coded, LEFT_OVER[name])
    assert found.problems() == []
    assert [layer for layer, _ in coded_problems(found.proto, found.model)]


def write_golden(path: Path = GOLDEN) -> None:
    """Write the golden file; only for a new version of the code."""
    path.write_bytes(decoding_graph(golden_integers()).SerializeToString(deterministic=True))
