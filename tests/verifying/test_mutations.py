"""Ways to break an export: verify fails on every one, at the right level, and names the layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.support.commands import Built, ok
from tests.support.onnx_changes import Mutation, array, node, put

pytestmark = pytest.mark.usefixtures("one_capture")

Proto = onnx.ModelProto


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
