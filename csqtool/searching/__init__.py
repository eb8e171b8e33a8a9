"""Search: how many bits each layer needs, and the weights that go with them."""

from __future__ import annotations

from csqtool.searching.config import SearchConfig
from csqtool.searching.runs import finetune, resume_search, search

__all__ = ["SearchConfig", "finetune", "resume_search", "search"]
