"""Report: one self-contained HTML file about searches, the models they gave, and what verified them."""

from __future__ import annotations

from csqtool.reporting.page import report

__all__ = ["report"]
