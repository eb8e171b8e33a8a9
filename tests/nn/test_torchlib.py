"""onnxscript's functions are registered as before, and their sources are not read for it."""

from __future__ import annotations

from typing import Any

import pytest
from onnxscript import values

from csqtool.nn.torchlib import sources_unread

# Private modules, which another version may not have.
torch_2_5: Any = pytest.importorskip("onnxscript._framework_apis.torch_2_5")
ast_utils: Any = pytest.importorskip("onnxscript._internal.ast_utils")
ops: Any = pytest.importorskip("onnxscript.function_libs.torch_lib.ops")

FUNCTION: Any = ops.core.aten_abs


def registered() -> list[tuple[Any, ...]]:
    return [(m.qualified_name, m.function, m.domain, m.name, m.is_complex) for m in torch_2_5.get_torchlib_ops()]


def test_the_functions_of_operators_are_those_of_before_and_no_source_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    original = ast_utils.get_src_and_ast
    monkeypatch.setattr(ast_utils, "get_src_and_ast", lambda function: read.append(function) or original(function))
    wanted = registered()
    assert len(read) > 100
    read.clear()
    with sources_unread():
        assert registered() == wanted
    assert not read


def test_what_a_function_says_beside_its_domain_is_read_from_its_source() -> None:
    wanted = FUNCTION.function_ir
    with sources_unread():
        found = FUNCTION.function_ir
        assert (found.domain, found.name) == (wanted.domain, wanted.name)
        with pytest.raises(AttributeError, match="no_such_attribute"):
            _ = found.no_such_attribute


def test_onnxscript_gets_its_property_back() -> None:
    parsed = values.TracedOnnxFunction.function_ir
    with sources_unread():
        assert values.TracedOnnxFunction.function_ir is not parsed
    assert values.TracedOnnxFunction.function_ir is parsed


def test_an_onnxscript_without_such_functions_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(values, "TracedOnnxFunction")
    with sources_unread():
        assert not hasattr(values, "TracedOnnxFunction")
