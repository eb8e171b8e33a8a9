"""Verify: does an exported file compute the same as the finalized PyTorch model?

Importing this package imports neither torch nor onnx: reports are also read by commands that verify nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from csqtool.verifying.findings import Check, VerifyReport
    from csqtool.verifying.gates import Gates
    from csqtool.verifying.tolerances import Tolerances
    from csqtool.verifying.verification import verify

_HOMES = {
    "Check": "findings",
    "Gates": "gates",
    "Tolerances": "tolerances",
    "VerifyReport": "findings",
    "verify": "verification",
}

__all__ = ["Check", "Gates", "Tolerances", "VerifyReport", "verify"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
