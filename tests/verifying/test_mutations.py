"""Ways to break an export: verify fails on every one, at the right level, and names the layer."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from csqtool.factories import build_model
from csqtool.nn.post_training import post_training_model
from csqtool.quantized_model import QuantizedModel
from csqtool.verifying.weights import named_tensors, onnx_tensor_problems
from exporters.onnx import to_onnx
from tests.support.commands import DIGITS, QUICK, ROOT, Built, invoke, ok

Proto = onnx.ModelProto
Mutation = Callable[[Proto], None]


def array(proto: Proto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == name)).copy()


def put(proto: Proto, name: str, values: np.ndarray) -> None:
    next(t for t in proto.graph.initializer if t.name == name).CopyFrom(numpy_helper.from_array(values, name))


def node(proto: Proto, output: str) -> onnx.NodeProto:
    return next(n for n in proto.graph.node if output in n.output)


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Mutation:
    def mutate(proto: Proto) -> None:
        before = array(proto, name)
        after = np.asarray(change(before.copy()), before.dtype)
        assert after.shape != before.shape or not np.array_equal(after, before)
        put(proto, name, after)

    return mutate


def one_off(step: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(q: np.ndarray) -> np.ndarray:
        q.reshape(-1)[q.size // 2] += step
        return q

    return change


def first_channel_negated(q: np.ndarray) -> np.ndarray:
    q[next(i for i in range(len(q)) if q[i].any())] *= -1
    return q


def first_value(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values.reshape(-1)[0] = value
        return values

    return change


def scales_of_two_layers_swapped(proto: Proto) -> None:
    one, other = "block.conv1.0.weight_scale", "block.conv2.0.weight_scale"
    first, second = array(proto, one), array(proto, other)
    put(proto, one, second)
    put(proto, other, first)


def weights_of_two_layers_swapped(proto: Proto) -> None:
    for suffix in ("weight", "weight_scale", "bias"):
        one, other = f"block.conv1.0.{suffix}", f"block.conv2.0.{suffix}"
        first, second = array(proto, one), array(proto, other)
        put(proto, one, second)
        put(proto, other, first)


def bias_dropped(proto: Proto) -> None:
    del node(proto, "relu@3").input[2]


def zero_point_moved(proto: Proto) -> None:
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray(1, np.uint8), "moved"))
    for output in ("relu@2.output_q", "relu@2.output"):
        node(proto, output).input[2] = "moved"


def activation_scale_changed_on_one_side(proto: Proto) -> None:
    wrong = array(proto, "relu@4.output_scale") * np.float32(1.01)
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray(wrong, np.float32), "wrong"))
    node(proto, "relu@4.output").input[1] = "wrong"


def quantizer_removed(proto: Proto) -> None:
    node(proto, "relu@3").input[0] = "relu@2"


def float_weight_left_in(proto: Proto) -> None:
    q, scale = array(proto, "mix.0.weight"), array(proto, "mix.0.weight_scale")
    weight = np.asarray(q * scale.reshape(-1, 1, 1, 1), np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "mix.float"))
    node(proto, "relu@4").input[1] = "mix.float"


def batch_fixed(proto: Proto) -> None:
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 450


def output_batch_fixed(proto: Proto) -> None:
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1


def scale_dropped(proto: Proto) -> None:
    del node(proto, "relu@2.output_q").input[1:]


def residual_added_twice(proto: Proto) -> None:
    add = node(proto, "block.relu@2")
    add.input[0] = add.input[1]


def stride_changed(proto: Proto) -> None:
    attribute = next(a for a in node(proto, "block.relu").attribute if a.name == "pads")
    attribute.CopyFrom(helper.make_attribute("pads", [2, 2, 0, 0]))


def custom_operator(proto: Proto) -> None:
    last = node(proto, "pool")
    last.domain = "com.microsoft"
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def origin_forgotten(proto: Proto) -> None:
    kept = [p for p in proto.metadata_props if p.key != "csqtool.finalized_sha256"]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)


def output_without_classes(proto: Proto) -> None:
    """Shapes that would broadcast: one score instead of ten."""
    for name in ("classifier.weight", "classifier.bias", "classifier.bias_scale"):
        put(proto, name, array(proto, name)[:1])
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1


def transposed(q: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(q.transpose(0, 1, 3, 2))


def in_and_out_exchanged(q: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(q.transpose(1, 0, 2, 3))


MUTATIONS: dict[str, tuple[Mutation, str, str | None]] = {
    "one weight + 1, first layer": (changed("stem.0.weight", one_off(1)), "weights", "stem.0.weight"),
    "one weight − 1, depthwise": (changed("depthwise.0.weight", one_off(-1)), "weights", "depthwise.0.weight"),
    "one weight + 1, pointwise": (changed("pointwise.0.weight", one_off(1)), "weights", "pointwise.0.weight"),
    "one weight − 1, classifier": (changed("classifier.weight", one_off(-1)), "weights", "classifier.weight"),
    "one weight + 1, residual": (changed("block.conv1.0.weight", one_off(1)), "weights", "block.conv1.0.weight"),
    "one weight − 1, residual": (changed("block.conv2.0.weight", one_off(-1)), "weights", "block.conv2.0.weight"),
    "one weight + 1, mix": (changed("mix.0.weight", one_off(1)), "weights", "mix.0.weight"),
    "scales of two layers swapped": (scales_of_two_layers_swapped, "weights", "block.conv1.0.weight"),
    "two layers swapped": (weights_of_two_layers_swapped, "weights", "block.conv2.0.weight"),
    "sign of one channel": (changed("mix.0.weight", first_channel_negated), "weights", "mix.0.weight"),
    "kernel transposed": (changed("block.conv1.0.weight", transposed), "weights", "block.conv1.0.weight"),
    "in and out channels exchanged": (
        changed("block.conv2.0.weight", in_and_out_exchanged), "weights", "block.conv2.0.weight",
    ),
    "kernel flipped": (changed("stem.0.weight", lambda q: q[..., ::-1].copy()), "weights", "stem.0.weight"),
    "channels rotated": (changed("mix.0.weight", lambda q: np.roll(q, 1, 0)), "weights", "mix.0.weight"),
    "one scale × 1.01": (changed("mix.0.weight_scale", lambda s: s * np.float32(1.01)), "weights", "mix.0.weight"),
    "one scale's last bit": (
        changed("mix.0.weight_scale", lambda s: np.nextafter(s, np.float32(9), dtype=np.float32)),
        "weights", "mix.0.weight",
    ),
    "BatchNorm folded twice": (
        changed("depthwise.0.weight_scale", lambda s: s * s / s.mean()), "weights", "depthwise.0.weight",
    ),
    "bias dropped": (bias_dropped, "weights", "pointwise.0.weight"),
    "bias not snapped": (changed("stem.0.bias", lambda b: b + np.float32(1e-4)), "weights", "stem.0.weight"),
    "integer bias + 1": (changed("classifier.bias", one_off(1)), "weights", "classifier.weight"),
    "bias scale × 1.01": (
        changed("classifier.bias_scale", lambda s: s * np.float32(1.01)), "weights", "classifier.weight",
    ),
    "NaN weight scale": (changed("mix.0.weight_scale", first_value(np.nan)), "integrity", "mix.0.weight_scale"),
    "an activation scale of zero": (
        changed("relu@4.output_scale", lambda s: s * np.float32(0)), "integrity", "relu@4.output",
    ),
    "a quantizer without a scale": (scale_dropped, "weights", "relu@2.output"),
    "infinite bias": (changed("stem.0.bias", first_value(np.inf)), "integrity", "stem.0.bias"),
    "wrong zero point": (zero_point_moved, "weights", "relu@2.output"),
    "one activation scale × 1.01": (
        changed("relu@4.output_scale", lambda s: s * np.float32(1.01)), "weights", "relu@4.output",
    ),
    "an activation scale × 1.01 on one side": (activation_scale_changed_on_one_side, "weights", "relu@4.output"),
    "an activation quantizer passed by": (quantizer_removed, "layers", "pointwise.0.weight"),
    "float weights left in": (float_weight_left_in, "weights", "mix.0.weight"),
    "residual added twice": (residual_added_twice, "layers", "block.relu@2.output"),
    "padding moved": (stride_changed, "layers", "block.conv1.0.weight"),
    "batch axis fixed": (batch_fixed, "integrity", None),
    "batch axis of the output fixed": (output_batch_fixed, "integrity", None),
    "a custom operator": (custom_operator, "integrity", None),
    "origin forgotten": (origin_forgotten, "integrity", None),
    "shapes that broadcast": (output_without_classes, "weights", "classifier.weight"),
}  # fmt: skip

Caught = Callable[[str, object], None]


@pytest.fixture(scope="module")
def export(eight_bits: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export whose integers can be changed in place."""
    path = tmp_path_factory.mktemp("mutations") / "model.onnx"
    ok("export", eight_bits.model, "--format", "onnx", "--weights", "int8", "-o", path)
    return path


def test_the_untouched_export_passes(eight_bits: Built, export: Path) -> None:
    assert eight_bits.verify(export, "--samples", 100)[0] == 0


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_export_fails_at_the_right_level_and_layer(
    eight_bits: Built, export: Path, tmp_path: Path, name: str, record_property: Caught
) -> None:
    mutate, level, layer = MUTATIONS[name]
    proto = onnx.load(export)
    mutate(proto)
    onnx.save(proto, tmp_path / "broken.onnx")
    code, report = eight_bits.verify(tmp_path / "broken.onnx", "--samples", 100)
    failed = [check for check in report["checks"] if not check["passed"]]  # type: ignore[attr-defined]
    assert code == 1
    assert report["passed"] is False
    assert level in {check["level"] for check in failed}
    blamed = {check["layer"] for check in failed if check["level"] == level}
    assert layer is None or any(layer in str(name) for name in blamed), blamed
    record_property("caught", [name, ", ".join(sorted({check["level"] for check in failed}))])


def attribute(proto: Proto, output: str, name: str) -> onnx.AttributeProto:
    return next(a for a in node(proto, output).attribute if a.name == name)


def stream_bit_flipped(proto: Proto) -> None:
    tensor = attribute(proto, "block.conv1.0.weight", "stream").t
    tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]


def weight_scale_changed(proto: Proto) -> None:
    tensor = attribute(proto, "block.conv1.0.weight", "scale").t
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01)))


def shape_permuted(proto: Proto) -> None:
    ints = attribute(proto, "stem.0.weight", "shape").ints
    ints[0], ints[1] = ints[1], ints[0]


def activation_scale_changed(proto: Proto) -> None:
    attribute(proto, "relu@4.output", "scale").f *= 1.01


def activation_scale_infinite(proto: Proto) -> None:
    attribute(proto, "relu@4.output", "scale").f = float("inf")


def quantizer_exchanged(proto: Proto) -> None:
    """A function of the file's own that clips more than it should."""
    function = next(f for f in proto.functions if f.name == "FakeQuantize")
    quantize = next(n for n in function.node if n.op_type == "QuantizeLinear")
    dequantize = next(n for n in function.node if n.op_type == "DequantizeLinear")
    function.node.remove(dequantize)
    function.node.extend([
        helper.make_node("Clip", [quantize.output[0], "", quantize.input[2]], ["less"]),
        helper.make_node("DequantizeLinear", ["less", *dequantize.input[1:]], list(dequantize.output)),
    ])  # fmt: skip


def function_negates(proto: Proto) -> None:
    function = next(f for f in proto.functions if f.name == "Weight")
    last = [n for n in function.node if n.op_type == "Sub"][-1]
    last.input[0], last.input[1] = last.input[1], last.input[0]


PACKED: dict[str, tuple[Mutation, str, str]] = {
    "packed: one bit of a stream": (stream_bit_flipped, "weights", "block.conv1.0.weight"),
    "packed: scales × 1.01": (weight_scale_changed, "weights", "block.conv1.0.weight"),
    "packed: a shape's axes exchanged": (shape_permuted, "weights", "stem.0.weight"),
    "packed: an activation scale × 1.01": (activation_scale_changed, "weights", "relu@4.output"),
    "packed: an infinite activation scale": (activation_scale_infinite, "integrity", "relu@4.output.scale"),
    "packed: a function clips": (quantizer_exchanged, "weights", "relu@4.output"),
    "packed: a function negates": (function_negates, "weights", "stem.0.weight"),
}


@pytest.fixture(scope="module")
def packed_export(eight_bits: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed export of a model in which no layer needs eight bits: those are no streams."""
    folder = tmp_path_factory.mktemp("packed")
    ok("search", DIGITS, "--data", "digits", "--target-bits", 3, "--max-bits", 6, "--act-bits", 8, *QUICK, "-o",
       folder / "run")  # fmt: skip
    ok("finalize", folder / "run", "-o", folder / "model.safetensors")
    ok("export", folder / "model.safetensors", "-o", folder / "model.onnx")
    return folder


@pytest.mark.parametrize("name", PACKED)
def test_a_broken_packed_export_fails_at_the_right_level_and_layer(
    packed_export: Path, tmp_path: Path, name: str, record_property: Caught
) -> None:
    mutate, level, layer = PACKED[name]
    proto = onnx.load(packed_export / "model.onnx")
    mutate(proto)
    onnx.save(proto, tmp_path / "broken.onnx")
    against = ["--against", packed_export / "model.safetensors", "--samples", 100]
    assert invoke("verify", packed_export / "model.onnx", *against).exit_code == 0
    result = invoke("verify", tmp_path / "broken.onnx", *against, "--json")
    assert result.exit_code == 1
    failed = [check for check in json.loads(result.stdout)["checks"] if not check["passed"]]
    assert layer in {check["layer"] for check in failed if check["level"] == level}
    record_property("caught", [name, ", ".join(sorted({check["level"] for check in failed}))])


@pytest.fixture(scope="module")
def transformer() -> tuple[QuantizedModel, onnx.ModelProto]:
    net = build_model(f"{ROOT}/sample_models/digits_vit/model.py:digits_vit", {}).eval()
    model = post_training_model(net, [torch.randn(8, 1, 8, 8)], planes=3, act_bits=8)
    return model, onnx.load_from_string(to_onnx(model, copy.deepcopy(net))[0])


@pytest.mark.parametrize("name", ["position", "blocks.0.norm1.weight", "blocks.0.mlp.0.bias", "patches.bias"])
def test_a_changed_float_tensor_of_a_transformer_is_named(
    transformer: tuple[QuantizedModel, onnx.ModelProto], name: str
) -> None:
    model, untouched = transformer
    assert list(onnx_tensor_problems(named_tensors(untouched, model), model)) == []
    broken = onnx.ModelProto()
    broken.CopyFrom(untouched)
    put(broken, name, array(broken, name) * np.float32(1.0001))
    assert [layer for layer, _ in onnx_tensor_problems(named_tensors(broken, model), model)] == [name]


def test_a_stale_file_after_another_search_fails_on_its_origin(
    eight_bits: Built, other_seed: Built, tmp_path: Path
) -> None:
    code, report = eight_bits.verify(other_seed.onnx, "--samples", 100)
    failed = {check["name"] for check in report["checks"] if not check["passed"]}  # type: ignore[attr-defined]
    assert code == 1
    assert {"origin", "integers, scales, biases"} <= failed
    # Not even a forged origin helps.
    proto = onnx.load(other_seed.onnx)
    own = next(p.value for p in onnx.load(eight_bits.onnx).metadata_props if p.key == "csqtool.finalized_sha256")
    next(p for p in proto.metadata_props if p.key == "csqtool.finalized_sha256").value = own
    onnx.save(proto, tmp_path / "forged.onnx")
    code, report = eight_bits.verify(tmp_path / "forged.onnx", "--samples", 100)
    assert code == 1


def test_an_empty_test_set_is_a_failure_and_not_a_pass(eight_bits: Built, tmp_path: Path) -> None:
    inputs, labels = np.zeros((4, 1, 8, 8), np.float32), np.zeros(4, np.int64)
    np.savez(tmp_path / "empty.npz", x_train=inputs, y_train=labels, x_test=inputs[:0], y_test=labels[:0])
    code, report = eight_bits.verify(eight_bits.onnx, "--data", f"npz:{tmp_path / 'empty.npz'}")
    assert code == 1
    assert any("is empty" in check["detail"] for check in report["checks"])  # type: ignore[attr-defined]


def test_a_test_set_in_a_loader_gives_the_verdicts_of_the_data_set(eight_bits: Built, tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text(
        "from torch.utils.data import DataLoader\nfrom csqtool.data import load_data\n"
        "def loaders():\n    source = load_data('digits')\n"
        "    return DataLoader(source.train, batch_size=7), DataLoader(source.test, batch_size=7)\n"
    )
    reports = [
        eight_bits.verify(eight_bits.onnx, "--data", data, "--samples", 100)
        for data in ("digits", f"{tmp_path}/data.py:loaders")
    ]
    assert reports[0] == reports[1]
    assert reports[0][0] == 0


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_truncated_file_is_bad_input_or_fails(eight_bits: Built, tmp_path: Path, keep: int) -> None:
    content = eight_bits.onnx.read_bytes()
    (tmp_path / "short.onnx").write_bytes(content[:keep])
    result = invoke("verify", tmp_path / "short.onnx", "--against", eight_bits.model)
    assert result.exit_code in (1, 2)
    assert "Traceback" not in result.output


def test_external_data_is_refused(eight_bits: Built, tmp_path: Path) -> None:
    onnx.save(onnx.load(eight_bits.onnx), tmp_path / "outside.onnx", save_as_external_data=True, size_threshold=0,
              location="weights.bin")  # fmt: skip
    os.truncate(tmp_path / "weights.bin", 10)
    result = invoke("verify", tmp_path / "outside.onnx", "--against", eight_bits.model)
    assert result.exit_code == 2
    assert "in files beside it; save it as one file" in result.stderr


def test_two_verifications_write_the_same_bytes(eight_bits: Built, tmp_path: Path) -> None:
    for name in ("one", "two"):
        ok("verify", eight_bits.onnx, "--against", eight_bits.model, "--json", tmp_path / f"{name}.json",
           "--junit", tmp_path / f"{name}.xml", "--markdown", tmp_path / f"{name}.md")  # fmt: skip
    for suffix in ("json", "xml", "md"):
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()
    assert json.loads((tmp_path / "one.json").read_text())["schema_version"] == 1
