from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from csqtool.benchmarking import bench, input_shapes
from csqtool.errors import ConfigError, FormatError, InputError
from csqtool.onnx_session import session
from csqtool.onnx_worker import random_values


def write(path: Path, shape: list[int | str | None], *, operator: str = "Relu", kind: int = TensorProto.FLOAT) -> Path:
    places = [helper.make_tensor_value_info(name, kind, shape) for name in "xy"]
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"])], "g", places[:1], places[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def test_files_are_measured_side_by_side_against_the_first(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.onnx", ["N", 4]), write(tmp_path / "b.onnx", [2, 4], operator="Neg")]
    first, second = bench(files, batch=2, rounds=2, loads=1)
    assert (first.file, first.size_bytes, first.ratio) == (str(files[0]), files[0].stat().st_size, 1.0)
    assert second.ratio == second.median_ms / first.median_ms
    assert (first.kernels, second.kernels) == ({"Relu": 1}, {"Neg": 1})
    assert min(first.load_ms, second.load_ms) > 0


@pytest.mark.parametrize("what", ["threads", "batch", "rounds", "loads"])
def test_numbers_below_one_are_refused(what: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{what} must be at least 1, got 0"):
        bench([write(tmp_path / "a.onnx", [1])], **{what: 0})


@pytest.mark.parametrize(
    ("shape", "sizes", "message"),
    [
        (["N", "W"], {}, "the axis W .axis 1 of x. is dynamic: give its size, such as --size W=224"),
        (["N", None], {}, "the axis 1 of x is dynamic"),
        (["N", 4], {"W": 3}, "size of axis W: no file has such a dynamic axis; those are 0, N"),
        ([1, 4], {"W": 3}, "there is none"),
        (["N", "W"], {"W": 0}, "the size of axis W must be at least 1, got 0"),
    ],
)
def test_dynamic_axes_need_a_size_and_sizes_an_axis(
    shape: list[int | str | None], sizes: dict[str, int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        bench([write(tmp_path / "a.onnx", shape)], sizes=sizes, rounds=1, loads=1)


def test_what_cannot_be_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        bench([tmp_path / "none.onnx"])
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(FormatError, match=r"text\.onnx is not an ONNX file"):
        bench([tmp_path / "text.onnx"])
    unknown = write(tmp_path / "unknown.onnx", [1], operator="NoSuchOperator")
    with pytest.raises(FormatError, match=r"unknown\.onnx: onnxruntime does not run it"):
        bench([unknown])


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(TensorProto.FLOAT, np.float32), (TensorProto.DOUBLE, np.float64), (TensorProto.INT64, np.int64),
     (TensorProto.FLOAT16, np.float16)],
)  # fmt: skip
def test_inputs_have_the_type_and_shape_that_the_file_says(kind: int, dtype: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "a.onnx", ["N", "W", 3], kind=kind, operator="Identity")
    loaded = session(file)
    assert input_shapes(loaded, 2, {"1": 5}) == {"x": [2, 5, 3]}
    one, other = (random_values(loaded.get_inputs()[0].type, [2, 5, 3]) for _ in range(2))
    assert (one.shape, one.dtype) == ((2, 5, 3), dtype)
    assert np.array_equal(one, other)
    assert bench([file], batch=2, sizes={"1": 5}, rounds=1, loads=1)[0].kernels == {"Identity": 1}
