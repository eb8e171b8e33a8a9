"""Verify: does an exported file compute the same as the finalized PyTorch model?"""

from __future__ import annotations

from csqtool.verifying.findings import Check, VerifyReport
from csqtool.verifying.gates import Gates
from csqtool.verifying.tolerances import Tolerances

__all__ = ["Check", "Gates", "Tolerances", "VerifyReport"]
