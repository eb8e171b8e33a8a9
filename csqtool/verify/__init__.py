"""Verify: does an exported file compute the same as the finalized PyTorch model?"""

from __future__ import annotations

from csqtool.verify.gates import Gates
from csqtool.verify.report import Check, VerifyReport
from csqtool.verify.run import verify
from csqtool.verify.tolerances import Tolerances

__all__ = ["Check", "Gates", "Tolerances", "VerifyReport", "verify"]
