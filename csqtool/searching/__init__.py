"""Search: how many bits each layer needs, and the weights that go with them.

Importing this package does not import torch: its records are also read by commands that train nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from csqtool.searching.config import SearchConfig
    from csqtool.searching.runs import finetune, resume_search, search

_HOMES = {"SearchConfig": "config", "finetune": "runs", "resume_search": "runs", "search": "runs"}

__all__ = ["SearchConfig", "finetune", "resume_search", "search"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
