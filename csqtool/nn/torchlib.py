"""onnxscript's functions of PyTorch's operators, registered without reading the source of each.

Before a translation to ONNX, torch makes a registry of onnxscript's functions, some five hundred. Of each it asks for a
domain, which is the same for all, and onnxscript parses the function's source again to say it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock


@contextmanager
def sources_unread() -> Iterator[None]:
    """Within the block, onnxscript parses the source of a traced function only for more than its domain.

    The registry does not change. An onnxscript without such functions is left alone.
    """
    from onnxscript import values

    traced = getattr(values, "TracedOnnxFunction", None)
    parsed: Any = getattr(traced, "function_ir", None)
    if traced is None or not isinstance(parsed, property):
        yield
        return
    source: Any = parsed.fget

    class Unread:
        """What a function's source would say; all but the domain is read there."""

        def __init__(self, function: Any) -> None:
            self._function = function
            self.domain = function.opset.domain

        def __getattr__(self, name: str) -> Any:
            return getattr(source(self._function), name)

    with mock.patch.object(traced, "function_ir", property(Unread)):
        yield
