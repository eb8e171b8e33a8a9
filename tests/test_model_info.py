from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csqtool.errors import FormatError
from csqtool.finalized_file import METADATA_KEY, parse_finalized, serialize, to_bytes
from csqtool.model_info import (
    RESERVED,
    DataInfo,
    HalfOrigin,
    Input,
    MethodInfo,
    Metrics,
    ModelFactory,
    ModelInfo,
    PreprocessingInfo,
)
from csqtool.quantized_model import QuantizedLayer, QuantizedModel

# What `csqtool finalize` records, key by key and in its order.
RECORDED: dict[str, Any] = {
    "model": {"factory": "net.py:net", "args": {"width": 8}},
    "data": {
        "source": "digits",
        "task": "classification",
        "preprocessing": {"steps": "grey pixels", "mean": [4.5], "std": [6]},
    },
    "input_shape": [1, 8, 8],
    "inputs": [{"name": "input", "shape": [1, 8, 8], "dtype": "float32"}],
    "method": {"name": "csq", "target_bits": 3, "target_size": None, "act_bits": 8, "epochs": 20,
               "finetune_epochs": 0.5, "seed": 0},
    "metrics": {"name": "accuracy", "float": None, "finalized": 0.875, "samples": 360},
    "float16": {"finalized_sha256": "ab", "metric_float32": 0.875, "metric": 0.8725},
}  # fmt: skip
PARTS: dict[str, Any] = {
    "model": ModelFactory("net.py:net", {"width": 8}),
    "data": DataInfo(
        source="digits", task="classification", preprocessing=PreprocessingInfo("grey pixels", (4.5,), (6.0,))
    ),
    "inputs": (Input("input", (1, 8, 8)),),
    "method": MethodInfo("csq", 3.0, None, 8, 20.0, 0.5, 0),
    "metrics": Metrics("accuracy", None, 0.875, 360),
    "float16": HalfOrigin("ab", 0.875, 0.8725),
}

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
keys = text.filter(lambda key: key not in RESERVED) | st.sampled_from([*RECORDED, "batch_norm_epsilon"])
epsilons = st.dictionaries(st.sampled_from(["bn", "other"]), numbers | values, max_size=2)
documents = st.dictionaries(keys, values, max_size=5) | st.fixed_dictionaries(
    {"before": values, "batch_norm_epsilon": epsilons, "after": values}
)


def finalized_bytes(document: dict[str, Any]) -> bytes:
    """Return a finalized file with one layer and this document, written without csqtool's own writer of metadata."""
    layer = {
        "name": "w", "shape": [2], "precision": 2, "mask": "11", "bit_width": 2, "scale": 0.5, "elements": 2,
        "input_quantizer": None, "batch_norm": "bn",
    }  # fmt: skip
    whole = {"format_version": 1, **document, "layers": [layer], "activations": [], "tied": {}}
    tensors = {"w": np.array([1, -1], np.int8), "w_scale": np.asarray(0.5, np.float32)}
    return serialize(tensors, json.dumps(whole, ensure_ascii=False, separators=(",", ":")))


@given(documents)
def test_any_document_is_written_back_bit_for_bit(document: dict[str, Any]) -> None:
    content = finalized_bytes(document)
    model = parse_finalized(content, where="it")
    assert model.info.document == document
    assert to_bytes(model) == content


@given(documents)
def test_each_part_of_any_document_is_a_record_or_unknown(document: dict[str, Any]) -> None:
    info = ModelInfo(document)
    for name, part in PARTS.items():
        assert getattr(info, name) is None or type(getattr(info, name)) is type(part)
    assert info.inputs != ()


def test_what_finalize_records_is_read_and_built_from_its_parts() -> None:
    info = ModelInfo(RECORDED)
    assert {name: getattr(info, name) for name in PARTS} == PARTS
    built = ModelInfo.of(**PARTS)
    assert built == info
    assert list(built.document) == list(RECORDED)
    assert json.loads(json.dumps(built.document)) == built.document


def test_parts_keep_the_form_of_their_numbers() -> None:
    method = MethodInfo("csq", target_bits=3, epochs=0.5)
    assert json.dumps(ModelInfo.of(method=method).document["method"]).startswith(
        '{"name": "csq", "target_bits": 3, "target_size": null, "act_bits": null, "epochs": 0.5'
    )


def test_nothing_recorded_is_nothing_known() -> None:
    assert ModelInfo().document == {}
    assert [getattr(ModelInfo(), name) for name in PARTS] == [None] * len(PARTS)
    assert ModelInfo.of() == ModelInfo()


@pytest.mark.parametrize(
    ("part", "document"),
    [
        ("model", {"model": "net.py:net"}),
        ("model", {"model": {}}),
        ("model", {"model": {"factory": "net.py:net", "args": [1]}}),
        ("data", {"data": {"source": "digits"}}),
        ("data", {"data": {"source": 1, "task": "classification"}}),
        ("data", {"data": {"source": "digits", "task": "classification", "preprocessing": {"steps": "x"}}}),
        ("inputs", {"inputs": []}),
        ("inputs", {"inputs": [], "input_shape": [1]}),
        ("inputs", {"inputs": [{"name": "input", "shape": [True]}]}),
        ("inputs", {"inputs": [{"name": "input", "shape": [1], "dtype": "float64"}]}),
        ("inputs", {"input_shape": [-1]}),
        ("inputs", {"input_shape": [1.0]}),
        ("method", {"method": {"name": "csq", "seed": "0"}}),
        ("method", {"method": {"name": "csq", "act_bits": 8.0}}),
        ("metrics", {"metrics": {"accuracy": 0.9}}),
        ("metrics", {"metrics": {"name": "accuracy", "finalized": "0.9", "samples": 1}}),
        ("metrics", {"metrics": {"name": "accuracy", "finalized": 10**400, "samples": 1}}),
        ("float16", {"float16": True}),
    ],
    ids=str,
)
def test_a_part_of_another_form_is_unknown_and_the_others_are_not(part: str, document: dict[str, Any]) -> None:
    others = {name: value for name, value in PARTS.items() if name not in (part, "inputs")}
    info = ModelInfo({**{key: RECORDED[key] for key in others}, **document})
    assert getattr(info, part) is None
    assert {name: getattr(info, name) for name in others} == others


def test_files_of_one_float_input_record_its_shape_alone() -> None:
    assert ModelInfo({"input_shape": [3, 32, 32]}).inputs == (Input("input", (3, 32, 32)),)
    assert ModelInfo({"input_shape": []}).inputs == (Input("input", ()),)


def test_replacing_a_part_keeps_the_place_of_its_key_and_leaves_the_old_record_alone() -> None:
    info = ModelInfo({"first": 1, "metrics": {"name": "old"}, "last": 2})
    metrics = Metrics("accuracy", 0.9, 0.8, 10)
    other = info.replace(metrics=metrics, method=MethodInfo("mine"))
    assert list(other.document) == ["first", "metrics", "last", "method"]
    assert other.metrics == metrics
    assert (info.metrics, info.document["metrics"]) == (None, {"name": "old"})


def test_data_handed_over_in_python_are_recorded_without_a_source() -> None:
    info = ModelInfo.of(data=DataInfo(task="classification"))
    assert info.document == {"data": {"task": "classification"}}
    assert info.data == DataInfo(task="classification")


@pytest.mark.parametrize(
    ("parts", "wrong"),
    [
        ({"metrics": Metrics("accuracy", None, "high", 1)}, "metrics: Expected `float`, got `str`"),  # type: ignore[arg-type]
        ({"metrics": Metrics("r2", None, float("nan"), 1)}, "metrics: .*not JSON compliant"),
        ({"model": ModelFactory("net.py:net", {"width": object()})}, "model: .*object"),
        ({"inputs": []}, "inputs: a model has at least one"),
        ({"inputs": [Input("input", (1,), "float64")]}, "inputs: "),
    ],
)
def test_a_part_that_could_not_be_read_again_is_refused(parts: dict[str, Any], wrong: str) -> None:
    with pytest.raises(FormatError, match=wrong):
        ModelInfo.of(**parts)


@pytest.mark.parametrize("key", RESERVED)
def test_keys_that_describe_the_model_are_not_recorded_beside_it(key: str) -> None:
    with pytest.raises(FormatError, match=f"the key '{key}' describes the model itself"):
        ModelInfo({key: 1})


@pytest.mark.parametrize("value", [float("inf"), pytest.param(object(), id="an object"), "\ud800", {1, 2}], ids=repr)
def test_what_is_no_json_is_not_written(value: Any) -> None:
    layer = QuantizedLayer("w", np.array([1], np.int8), np.float32(1), "1")
    with pytest.raises(FormatError, match="cannot be written as JSON"):
        to_bytes(QuantizedModel((layer,), (), {}, info=ModelInfo({"mine": value})))


def epsilon_model(epsilon: float | None, document: dict[str, Any]) -> QuantizedModel:
    q, scale = np.array([1, -1], np.int8), np.float32(0.5)
    layers = (QuantizedLayer("v", q, scale, "11"), QuantizedLayer("w", q, scale, "11", None, "bn", epsilon))
    return QuantizedModel(layers, (), {}, info=ModelInfo(document))


def recorded(content: bytes) -> Any:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return json.loads(header["__metadata__"][METADATA_KEY]).get("batch_norm_epsilon", "not there")


@pytest.mark.parametrize(
    ("epsilon", "before", "after"),
    [
        (None, {}, "not there"),
        (None, {"batch_norm_epsilon": {}}, {}),
        (None, {"batch_norm_epsilon": "x"}, "x"),
        (None, {"batch_norm_epsilon": {"bn": 0.1, "mine": 1}}, {"mine": 1}),
        (0.25, {}, {"bn": 0.25}),
        (0.25, {"batch_norm_epsilon": "x"}, {"bn": 0.25}),
        (0.25, {"batch_norm_epsilon": {"bn": "x", "mine": 1}}, {"bn": 0.25, "mine": 1}),
        (0.25, {"batch_norm_epsilon": {"mine": 1, "bn": 0.5}}, {"mine": 1, "bn": 0.25}),
    ],
)
def test_the_layer_says_which_epsilon_a_file_records(epsilon: float | None, before: dict[str, Any], after: Any) -> None:
    content = to_bytes(epsilon_model(epsilon, before))
    assert recorded(content) == after
    assert [layer.batch_norm_epsilon for layer in parse_finalized(content, where="it").layers] == [None, epsilon]


@pytest.mark.parametrize("value", ["x", None, True, [1e-5], -1e-5, 10**400])
def test_an_epsilon_of_another_form_is_not_recorded(value: Any) -> None:
    model = parse_finalized(finalized_bytes({"batch_norm_epsilon": {"bn": value}}), where="it")
    assert model.layers[0].batch_norm_epsilon is None
