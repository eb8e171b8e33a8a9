"""The plan of the arena as a JSON document, which `csqtool report` draws."""

from __future__ import annotations

import json

from exporters.c.memory import Plan
from exporters.c.program import Program


def document(program: Program, plan: Plan, finalized_sha256: str) -> bytes:
    """Return `arena.json`: the steps by name, and each block's place and the first and last step that use it."""
    blocks = [
        {"name": block.label, "offset": offset, "bytes": block.size, "first": block.first, "last": block.last}
        for block, offset in plan.blocks
    ]
    content = {
        "finalized_sha256": finalized_sha256, "arena_bytes": plan.size, "least_bytes": plan.least,
        "steps": [step.label for step in program.steps], "blocks": blocks,
    }  # fmt: skip
    return (json.dumps(content, indent=1) + "\n").encode()
