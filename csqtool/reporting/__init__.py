"""Report: one self-contained HTML file about searches, their models, and the models' verifications."""

from __future__ import annotations

from csqtool.reporting.page import report

__all__ = ["report"]
