from __future__ import annotations

import copy
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from csqtool.errors import ConfigError, ExportError
from csqtool.finalized_file import read_finalized
from csqtool.onnx_file import flattened
from csqtool.onnx_session import session
from csqtool.quantized_model import QuantizedModel, smallest_dtype, twos_complement_bits
from exporters.onnx import OnnxOptions, to_onnx
from exporters.onnx.choosing import WaitingWeight
from exporters.onnx.compact import compact
from exporters.onnx.functions import FUNCTION_DOMAIN
from exporters.onnx.packing import pack_fields, pack_weight
from tests.support.commands import Built, invoke, ok
from tests.support.onnx_nets import ConvNet, export_module

pytestmark = pytest.mark.usefixtures("one_capture")

torch.manual_seed(0)


def unpacking_graph(q: np.ndarray) -> onnx.ModelProto:
    placeholder = ir.Node(FUNCTION_DOMAIN, "Packed", [])
    placeholder.outputs[0].name = "q"
    output = ir.node("Identity", placeholder.outputs).outputs[0]
    output.name, output.shape = "y", ir.Shape(q.shape)
    output.dtype = ir.DataType.INT8 if q.dtype == np.int8 else ir.DataType.INT16
    opsets = {"": 18, FUNCTION_DOMAIN: 1}
    graph = ir.Graph([], [output], nodes=[placeholder, output.producer()], opset_imports=opsets, name="g")
    functions = compact(graph, {placeholder: WaitingWeight("q", q, ("packed",))})[0].values()
    for function in functions:
        function.opset_imports[""] = 18
    return ir.to_proto(ir.Model(graph, ir_version=8, functions=list(functions)))


# Integers of eight bits are stored as int8, without a stream.
integers = st.sampled_from([1, 2, 3, 4, 5, 6, 7, 9]).flatmap(
    lambda bits: st.tuples(
        st.just(bits),
        st.lists(st.integers(1, 5), min_size=1, max_size=4),
        st.integers(0, 2**32 - 1),
        st.sampled_from(["all", "odd", "holes"]),
    )
)


@settings(deadline=None, max_examples=60)
@given(integers)
def test_integers_of_every_width_and_shape_come_back_from_the_stream(
    drawn: tuple[int, list[int], int, str],
) -> None:
    bits, shape, seed, kind = drawn
    low, high = -(1 << (bits - 1)), 1 << (bits - 1)
    q = np.random.default_rng(seed).integers(low, high, shape)
    q = {"all": q, "odd": q | 1, "holes": q - q % 4}[kind]
    q.reshape(-1)[0] = low
    q = smallest_dtype(q)
    proto = unpacking_graph(q)
    onnx.checker.check_model(proto, full_check=True)
    for found in (ReferenceEvaluator(proto).run(None, {})[0], session(proto.SerializeToString()).run(None, {})[0]):
        assert found.dtype == q.dtype
        assert np.array_equal(found, q)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_a_stream_holds_each_field_where_the_layout_says(bits: int, count: int, seed: int) -> None:
    fields = np.random.default_rng(seed).integers(0, 1 << bits, count)
    stream = pack_fields(fields, bits)
    lanes = -(-count // 8)
    assert len(stream) == bits * lanes
    for i, field in enumerate(fields):
        j, g = divmod(i, lanes)
        lane = int.from_bytes(stream[g::lanes].tobytes(), "little")
        assert lane >> (j * bits) & ((1 << bits) - 1) == field


def test_levels_are_indexed_where_that_takes_fewer_bits() -> None:
    rng = np.random.default_rng(0)
    odd = rng.choice(np.array([-7, -5, -3, -1, 1, 3, 5, 7], np.int8), 4000)
    packed = pack_weight(odd)
    assert (packed.bits, twos_complement_bits(odd)) == (3, 4)
    assert packed.levels is not None
    assert pack_weight(odd[:64]).levels is None  # so few weights do not pay for a table
    signs = pack_weight(rng.choice(np.array([-1, 1], np.int8), 4000))
    assert signs.bits == 1


def with_integers(bits: int, *, holes: bool = False) -> object:
    """Return a change of a model: every layer holds random integers of just this width."""

    def change(model: QuantizedModel) -> QuantizedModel:
        rng = np.random.default_rng(bits)
        layers = []
        for layer in model.layers:
            bound = (1 << (bits - 1)) - 1
            q = rng.integers(-bound, bound + 1, layer.shape)
            q = np.where(q % 2, q, 1) if holes else q
            q.reshape(-1)[:2] = bound, -bound
            layers.append(dataclasses.replace(layer, q=smallest_dtype(q), mask="1" * max(1, bits - 1)))
        return dataclasses.replace(model, layers=tuple(layers))

    return change


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, 9])
@pytest.mark.parametrize("act_bits", [None, 8])
def test_every_width_is_exported_and_read_back_bit_for_bit(bits: int, act_bits: int | None) -> None:
    export = export_module(ConvNet(), (3, 6, 6), act_bits=act_bits, prepare=with_integers(bits), weights="packed")
    export.assert_faithful()
    wide = [n for n in export.report.float_nodes if "nine bits" in n.reason]
    assert bool(wide) == (bits == 9 and act_bits == 8)
    if act_bits is not None and bits < 9:
        assert export.operators().count("QLinearConv") == 3
        assert export.report.float_nodes == []


def test_odd_levels_are_stored_as_indices_and_fuse() -> None:
    export = export_module(ConvNet(32), (3, 6, 6), act_bits=8, prepare=with_integers(4, holes=True), weights="packed")
    export.assert_faithful()
    assert "(levels)" in export.report.storage["conv2.weight"]
    assert export.operators().count("QLinearConv") == 3


@pytest.mark.parametrize("weights", ["packed", "coded", "int8", "int4", "int2"])
@pytest.mark.parametrize("act_bits", [None, 4])
def test_every_storage_loads_in_onnxruntime_without_a_slow_node(weights: str, act_bits: int | None) -> None:
    export = export_module(ConvNet(), (3, 6, 6), planes=1, act_bits=act_bits, weights=weights)
    export.assert_faithful()
    operators = export.operators()
    if act_bits is None:
        assert "DequantizeLinear" not in operators  # weights are folded to float32 at load
    else:
        assert operators.count("QLinearConv") == 3


def test_float_nodes_bear_names_of_the_exported_file() -> None:
    # onnxruntime lays images out anew for convolutions, and names what it makes by itself.
    export = export_module(ConvNet(), (3, 6, 6))
    made = {name for node in flattened(export.proto, where="x").graph.node for name in node.output}
    convolutions = [node.name for node in export.report.float_nodes if "Conv" in node.operator]
    assert convolutions == ["norm1", "depthwise", "conv2"]
    assert {node.name for node in export.report.float_nodes} <= made


def test_weights_of_other_consumers_stand_directly_behind_dequantize_linear() -> None:
    export = export_module(ConvNet(), (3, 6, 6), weights="int4", runtime="generic")
    proto = export.proto
    kinds = {t.name: t.data_type for t in proto.graph.initializer}
    weights = [n.input[0] for n in proto.graph.node if n.op_type == "DequantizeLinear"]
    assert len(weights) == 4
    assert {kinds[name] for name in weights} == {onnx.TensorProto.INT4}
    assert export.problems() == []


def test_a_negative_batch_norm_that_the_type_cannot_hold_is_refused() -> None:
    def lowest(model: QuantizedModel) -> QuantizedModel:
        layers = [dataclasses.replace(x, q=np.full(x.shape, -128, np.int8)) for x in model.layers]
        return dataclasses.replace(model, layers=tuple(layers))

    with pytest.raises(ExportError, match=r"conv1\.weight.*norm1 flips its sign"):
        export_module(ConvNet(), (3, 6, 6), prepare=lowest)


def test_the_same_model_always_gives_the_same_bytes() -> None:
    net = ConvNet()
    assert export_module(net, (3, 6, 6)).content == export_module(copy.deepcopy(net), (3, 6, 6)).content


def test_a_function_that_computes_other_integers_is_found() -> None:
    export = export_module(ConvNet(), (3, 6, 6))
    proto = export.proto
    node = [n for n in proto.functions[0].node if n.op_type == "Sub"][-1]  # fields − offset
    node.input[0], node.input[1] = node.input[1], node.input[0]
    export.content = proto.SerializeToString()
    assert {name for name, _ in export.problems()} >= {"conv2.weight"}


def test_a_foreign_operator_in_a_function_is_found(eight_bits: Built, tmp_path: Path) -> None:
    proto = onnx.load(eight_bits.onnx)
    proto.functions[0].node[0].domain = "somewhere.else"
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    _, report = eight_bits.verify(tmp_path / "m.onnx")
    check = next(c for c in report["checks"] if c["name"] == "standard operators")
    assert not check["passed"]
    assert "somewhere.else" in check["detail"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"weights": "int5"}, "did you mean 'int"),
        ({"runtime": "onxruntime"}, "did you mean 'onnxruntime'"),
        ({"weights": "int2", "runtime": "openvino"}, "OpenVINO does not read int2"),
        ({"weights": "packed", "runtime": "openvino"}, "does not read model-local functions"),
        ({"weight_form": "qqdq"}, "did you mean 'qdq'"),
        ({"dynamic": (0,)}, "axes above 0"),
    ],
)
def test_wrong_options_name_what_is_known(options: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        OnnxOptions(**options)


def test_options_reach_the_exporter_from_the_command_line(eight_bits: Built, tmp_path: Path) -> None:
    for weights in ("packed", "int8"):
        ok("export", eight_bits.model, "-o", tmp_path / f"{weights}.onnx", "--weights", weights)
    packed, int8 = (onnx.load(tmp_path / f"{weights}.onnx") for weights in ("packed", "int8"))
    assert packed.functions
    assert not int8.functions
    failed = invoke("export", eight_bits.model, "-o", tmp_path / "x", "--format", "c", "--weights", "int4")
    assert failed.exit_code == 2
    assert "the format c: unknown weights 'int4'" in failed.stderr


OPENVINO = """
import sys, numpy as np, openvino
found = openvino.Core().compile_model(sys.argv[1], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(np.load(sys.argv[2]))[0]
np.save(sys.argv[3], found)
"""


@pytest.mark.parametrize(("weights", "act_bits"), [("auto", None), ("auto", 8), ("auto", 4), ("int4", None)])
def test_openvino_runs_what_is_exported_for_it(weights: str, act_bits: int | None, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    export = export_module(ConvNet(), (3, 6, 6), planes=2, act_bits=act_bits, weights=weights, runtime="openvino")
    (tmp_path / "m.onnx").write_bytes(export.content)
    np.save(tmp_path / "x.npy", export.inputs.numpy())
    # In a process of its own: it ends the process on some files.
    files = [str(tmp_path / name) for name in ("m.onnx", "x.npy", "y.npy")]
    subprocess.run([sys.executable, "-W", "ignore", "-c", OPENVINO, *files], check=True, capture_output=True)
    wanted = export.torch_output()
    difference = np.abs(np.load(tmp_path / "y.npy") - wanted).max()
    assert difference <= (1e-5 if act_bits is None else 0.05) * np.abs(wanted).max()


def test_openvino_refuses_int4_beside_quantized_activations(eight_bits: Built) -> None:
    model = read_finalized(eight_bits.model)
    with pytest.raises(ExportError, match="OpenVINO computes int4 layers in float"):
        to_onnx(model, None, OnnxOptions(runtime="openvino", weights="int4"))


def test_tensorrt_refuses_unsigned_activations(eight_bits: Built) -> None:
    model = read_finalized(eight_bits.model)
    with pytest.raises(ExportError, match="zero point 0 only"):
        to_onnx(model, None, OnnxOptions(runtime="tensorrt"))


def test_strict_integer_writes_nothing_when_a_node_runs_in_float(
    eight_bits: Built, other_bits: Built, tmp_path: Path
) -> None:
    ok("export", eight_bits.model, "-o", tmp_path / "integer.onnx", "--strict-integer")
    model = read_finalized(other_bits.model)
    done = invoke("export", other_bits.model, "-o", tmp_path / "float.onnx", "--strict-integer")
    assert done.exit_code == (0 if model.activations else 1)
    if not model.activations:
        assert re.search(
            r"error: \d+ compute nodes run in float: |failed: \d+ compute nodes run in float: ", done.stderr
        )
        assert not (tmp_path / "float.onnx").exists()
        listed = json.loads(ok("export", other_bits.model, "-o", tmp_path / "float.onnx", "--json").stdout)
        assert {node["reason"] for node in listed["float_nodes"]} == {"activations are float"}
