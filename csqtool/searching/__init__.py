"""Search: how many bits each layer needs, and the weights that go with them.

Importing this package does not import torch, so that settings can be read without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from csqtool.searching.config import SearchConfig

if TYPE_CHECKING:
    from csqtool.searching.runs import finetune, resume_search, search

__all__ = ["SearchConfig", "finetune", "resume_search", "search"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from csqtool.searching import runs

    return getattr(runs, name)
