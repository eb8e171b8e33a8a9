"""Search: how many bits each layer needs, and the weights that go with them."""

from __future__ import annotations

from csqtool.search.config import SearchConfig
from csqtool.search.run import finetune, resume_search, search

__all__ = ["SearchConfig", "finetune", "resume_search", "search"]
