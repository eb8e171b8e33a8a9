from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from csqtool.csq import float32_size, pack
from csqtool.model_info import ModelInfo, PreprocessingInfo
from csqtool.quantized_model import QuantizedLayer, QuantizedModel
from csqtool.summaries import (
    compression,
    compression_text,
    layer_table,
    metric_text,
    origin_text,
    preprocessing_text,
    target_text,
)


def model(**info: Any) -> QuantizedModel:
    """Return a layer of one plane (two bits) with 6 weights, and one of three (four bits) with 2."""
    layers = (
        QuantizedLayer("small.weight", np.array([[1, -1, 0], [0, 1, 1]], np.int8), np.float32(0.5), "1"),
        QuantizedLayer("wide.weight", np.array([[7, -7]], np.int8), np.float32(0.5), "111"),
    )
    return QuantizedModel(layers, (), {"bias": np.zeros(3, np.float32)}, info=ModelInfo(info))


def test_three_compressions_count_planes_a_layer_bits_a_weight_and_bytes_of_the_file() -> None:
    found = compression(model())
    assert found.paper == 32 / ((1 + 3) / 2)
    assert found.elements == 32 / ((6 * 2 + 2 * 4) / 8)
    assert (found.packed_bytes, found.float32_bytes) == (len(pack(model())), float32_size(model()))
    assert found.real == found.float32_bytes / found.packed_bytes
    assert f"{found.real:.2f} ×" in compression_text(model())


def test_a_model_that_cannot_be_packed_is_summarized_with_the_reason() -> None:
    tensors = {"b" * 300: np.zeros(3, np.float32)}
    whole = model()
    text = compression_text(QuantizedModel(whole.layers, (), tensors, info=whole.info))
    assert text.startswith("compression against float32: not known, the model cannot be packed")
    assert "a name has 1 to 255 bytes, this one 300" in text


def test_the_layer_table_ends_in_totals_weighted_by_elements() -> None:
    *_, small, wide, total = (line.split() for line in layer_table(model()).splitlines())
    assert small == ["small.weight", "1", "1", "2", "6", "2"]
    assert wide == ["wide.weight", "3", "111", "4", "2", "1"]
    assert total == ["total", "1.500", "2.500", "8", "3"]


def test_a_budget_is_shown_as_it_was_given() -> None:
    none = {"target_bits": None, "target_size": None, "target_bops": None}
    assert target_text(none | {"target_bits": 3.0}) == "target 3 bits"
    assert target_text(none | {"target_bits": 2.5}) == "target 2.5 bits"
    assert target_text(none | {"target_size": "60KB"}) == "target 60KB"
    assert target_text(none | {"target_bops": "1.5G"}) == "target 1.5G BOPs"
    assert target_text(none) == "no target"


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (None, "metric     not measured"),
        ({"name": "top1", "float": None, "finalized": 0.5, "samples": 10}, "top1       finalized 0.5000 on 10 samples"),
        ({"name": "top1", "float": 0.75, "finalized": 0.5, "samples": 10},
         "top1       float 0.7500 → finalized 0.5000 on 10 samples"),
    ],
)  # fmt: skip
def test_the_metric_is_told_as_far_as_it_was_measured(metrics: dict[str, Any] | None, said: str) -> None:
    assert metric_text(model(**({} if metrics is None else {"metrics": metrics}))) == said


def test_the_origin_says_what_is_not_recorded() -> None:
    assert origin_text(model()).splitlines() == [
        "model      factory not recorded",
        "data       not recorded",
        "method     not recorded",
    ]


def test_the_origin_names_model_data_input_and_method() -> None:
    info = {
        "model": {"factory": "m.py:net", "args": {}},
        "data": {"source": "digits", "task": "classification"},
        "input_shape": [1, 8, 8],
        "method": {"name": "csq", "target_bits": 3, "act_bits": 8, "seed": 7},
    }
    assert origin_text(model(**info)).splitlines() == [
        "model      m.py:net  input [1, 8, 8]",
        "data       digits (classification)",
        "method     csq, target 3 bits, activations 8 bits, seed 7",
    ]


def test_a_preprocessing_that_changes_nothing_is_only_its_steps() -> None:
    assert preprocessing_text(PreprocessingInfo("scaled to 0 … 1", (0.0,), (1.0,))) == "scaled to 0 … 1"
    shown = preprocessing_text(PreprocessingInfo("scaled", (0.5, 0.25), (0.2, 1.0)))
    assert shown == "scaled, then (x − mean) / std: mean 0.5 0.25, std 0.2 1"
