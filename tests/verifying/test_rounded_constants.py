from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from csqtool.verifying.rounded_constants import rounded_constants

GAIN = np.linspace(0.5, 1.5, 64).astype(np.float32)


def graph(**tensors: np.ndarray) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(values, name) for name, values in tensors.items()]
    return helper.make_model(helper.make_graph([], "g", [], [], initializers))


def next_to(values: np.ndarray, places: int) -> np.ndarray:
    moved = values.copy()
    moved[:places] = np.nextafter(moved[:places], np.float32(9))
    return moved


def test_of_constants_that_are_equal_up_to_rounding_the_equal_one_is_meant() -> None:
    near, nearer = next_to(GAIN, 30), next_to(GAIN, 1)
    pairs = rounded_constants(graph(a=GAIN), graph(x=near, y=GAIN, z=nearer), set())
    assert np.array_equal(pairs[GAIN.tobytes()], GAIN)
    pairs = rounded_constants(graph(a=GAIN), graph(x=near, z=nearer), set())
    assert np.array_equal(pairs[GAIN.tobytes()], nearer)


def test_what_must_be_exact_or_is_further_off_stands_for_nothing() -> None:
    near = next_to(GAIN, 3)
    assert rounded_constants(graph(a=GAIN), graph(x=near), {near.tobytes()}) == {}
    assert rounded_constants(graph(a=GAIN), graph(x=GAIN * np.float32(1.001)), set()) == {}
