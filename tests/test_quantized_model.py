from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from csqtool.errors import FormatError
from csqtool.quantized_model import (
    ActivationQuantizer,
    QuantizedLayer,
    QuantizedModel,
    smallest_dtype,
    twos_complement_bits,
)

LAYER = QuantizedLayer("w", np.array([[1, -3], [0, 2]], np.int8), np.float32(0.5), "00000011")
QUANTIZER = ActivationQuantizer("a.input", np.float32(0.1), 3, 4)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"q": np.array([1], np.int32)}, "w: integers must be int8 or int16, got int32"),
        ({"q": np.array([1.0])}, "w: integers must be int8 or int16, got float64"),
        ({"q": np.array([256], np.int16)}, "w: integers need 10 bits, at most 9"),
        ({"q": np.array([-257], np.int16)}, "w: integers need 10 bits, at most 9"),
        ({"scale": np.float32(0)}, "w: scale must be finite and above zero, got 0.0"),
        ({"scale": np.float32(-1)}, "w: scale must be finite and above zero, got -1.0"),
        ({"scale": np.float32("nan")}, "w: scale must be finite and above zero, got nan"),
        ({"scale": np.float32("inf")}, "w: scale must be finite and above zero, got inf"),
        ({"mask": ""}, "w: mask must be zeros and ones, got ''"),
        ({"mask": "012"}, "w: mask must be zeros and ones, got '012'"),
        ({"batch_norm_epsilon": 1e-5}, "w: a BatchNorm's epsilon without the BatchNorm"),
        ({"batch_norm": "bn", "batch_norm_epsilon": -1e-5}, "w: BatchNorm's epsilon must be finite and not negative"),
        ({"batch_norm": "bn", "batch_norm_epsilon": float("nan")}, "w: BatchNorm's epsilon must be finite"),
        ({"batch_norm": "bn", "batch_norm_epsilon": float("inf")}, "w: BatchNorm's epsilon must be finite"),
    ],
)
def test_a_layer_that_cannot_be_is_refused(change: dict[str, Any], wrong: str) -> None:
    with pytest.raises(FormatError) as error:
        replace(LAYER, **change)
    assert str(error.value).startswith(wrong)


@pytest.mark.parametrize("q", [[255], [-256]])
def test_a_layer_holds_what_eight_planes_and_their_sign_give(q: list[int]) -> None:
    assert replace(LAYER, q=np.array(q, np.int16)).bit_width == 9


def test_a_layer_may_have_a_batch_norm_of_unknown_epsilon() -> None:
    assert replace(LAYER, batch_norm="bn").batch_norm_epsilon is None
    assert replace(LAYER, batch_norm="bn", batch_norm_epsilon=0.0).batch_norm_epsilon == 0


def test_a_layer_counts_its_planes_bits_and_bytes() -> None:
    assert (LAYER.shape, LAYER.elements, LAYER.precision, LAYER.bit_width) == ((2, 2), 4, 2, 3)
    assert LAYER.packed_bytes == 2  # 4 · 3 bits
    assert LAYER.entropy == 2  # four values, once each
    assert replace(LAYER, q=np.zeros(9, np.int8)).entropy == 0
    np.testing.assert_array_equal(LAYER.dequantized(), np.array([[0.5, -1.5], [0, 1]], np.float32))


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"scale": np.float32(0)}, "a.input: scale must be finite and above zero"),
        ({"scale": np.float32("nan")}, "a.input: scale must be finite and above zero"),
        ({"bits": 1}, "a.input: activation bits must be 2 to 8, got 1"),
        ({"bits": 9}, "a.input: activation bits must be 2 to 8, got 9"),
        ({"zero_point": -1}, "a.input: zero point must be 0 to 15, got -1"),
        ({"zero_point": 16}, "a.input: zero point must be 0 to 15, got 16"),
    ],
)
def test_an_activation_quantizer_that_cannot_be_is_refused(change: dict[str, Any], wrong: str) -> None:
    with pytest.raises(FormatError, match=wrong):
        replace(QUANTIZER, **change)


TWIN = replace(LAYER, name="v")
FOLDED = replace(LAYER, batch_norm="bn", batch_norm_epsilon=1e-5)


@pytest.mark.parametrize(
    ("parts", "wrong"),
    [
        ({"layers": ()}, "a quantized model needs at least one quantized layer"),
        ({"layers": (LAYER, LAYER)}, "repeated tensor names: w, w_scale"),
        ({"tensors": {"w": np.zeros(1)}}, "repeated tensor names: w"),
        ({"tensors": {"w_scale": np.zeros(1)}}, "repeated tensor names: w_scale"),
        ({"activations": (QUANTIZER, QUANTIZER)}, "repeated tensor names: a.input_scale, a.input_zero_point"),
        ({"activations": (QUANTIZER,), "tensors": {"a.input_zero_point": np.zeros(1)}},
         "repeated tensor names: a.input_zero_point"),
        ({"tied": {"v": "gone"}}, "tied to layers that do not exist: gone"),
        ({"layers": (replace(LAYER, input_quantizer="b.input"),), "activations": (QUANTIZER,)},
         "w: unknown activation quantizer b.input"),
        ({"layers": (FOLDED, replace(FOLDED, name="v", batch_norm_epsilon=1e-3))},
         "v: another layer has another epsilon of bn"),
        ({"layers": (FOLDED, replace(FOLDED, name="v", batch_norm_epsilon=None))},
         "v: another layer has another epsilon of bn"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_is_refused(parts: dict[str, Any], wrong: str) -> None:
    with pytest.raises(FormatError, match=f"^{wrong}$"):
        QuantizedModel(**{"layers": (LAYER,), "activations": (), "tensors": {}, **parts})


def test_layers_are_found_by_their_names_and_ties() -> None:
    model = QuantizedModel((LAYER, TWIN), (), {}, {"other": "v"})
    assert model.layer("w") is LAYER
    assert model.layer("v") is model.layer("other") is TWIN
    with pytest.raises(KeyError):
        model.layer("gone")


def test_averages_weigh_by_weights_and_the_paper_s_by_layers() -> None:
    wide = QuantizedLayer("v", np.full(12, 100, np.int8), np.float32(1), "01111111")
    model = QuantizedModel((LAYER, wide), (), {})
    assert model.elements == 16
    assert model.average_precision == (2 * 4 + 7 * 12) / 16
    assert model.average_bit_width == (3 * 4 + 8 * 12) / 16
    assert model.layer_mean_precision == 4.5


@pytest.mark.parametrize(("q", "bits"), [([], 1), ([0], 1), ([-1, 0], 1), ([1], 2), ([-2], 2), ([-128], 8), ([128], 9)])
def test_twos_complement_takes_the_fewest_bits_and_the_smallest_type(q: list[int], bits: int) -> None:
    integers = np.array(q, np.int16)
    assert twos_complement_bits(integers) == bits
    assert smallest_dtype(integers).dtype == (np.int8 if bits <= 8 else np.int16)
