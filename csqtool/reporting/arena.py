"""The arena of an inference in C: what lies where while it runs, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from markupsafe import Markup

from csqtool import documents
from csqtool.documents import Count
from csqtool.files import read_bytes
from csqtool.reporting.charts import Box, rectangles
from csqtool.text import size

NAME = "arena.json"
MOST = 100_000  # steps and blocks that are drawn


class ArenaBlock(msgspec.Struct, frozen=True):
    """Bytes that are in use from one step to another."""

    name: str
    offset: Count
    bytes: Count
    first: Count
    last: Count


class ArenaPlan(msgspec.Struct, frozen=True):
    """``arena.json`` of a folder that ``export --format c`` wrote.

    Attributes:
        finalized_sha256: of the finalized model.
        arena_bytes: of the whole.
        least_bytes: the largest sum of bytes in use at one step.
        steps: what each step computes.
        blocks: what lies where.
    """

    finalized_sha256: str
    arena_bytes: Count
    least_bytes: Count
    steps: Annotated[list[str], msgspec.Meta(min_length=1, max_length=MOST)]
    blocks: Annotated[list[ArenaBlock], msgspec.Meta(max_length=MOST)]


def read_plan(folder: Path) -> ArenaPlan:
    """Read the plan in a folder.

    Raises:
        InputError: it cannot be read.
        FormatError: it is no plan.
    """
    path = folder / NAME
    document = documents.decode(dict, read_bytes(path), where=str(path))
    return documents.convert(ArenaPlan, document, where=str(path), what="the plan of an arena")


def picture(plan: ArenaPlan) -> Markup:
    """Return a rectangle for each block: steps from left to right, bytes from bottom to top; nothing without blocks."""
    if not plan.blocks:
        return Markup()
    names = [f"{number}, {name}" for number, name in enumerate(plan.steps)]

    def label(block: ArenaBlock) -> str:
        steps = " to ".join(names[min(s, len(names) - 1)] for s in dict.fromkeys((block.first, block.last)))
        place = f"bytes {block.offset:,} to {block.offset + block.bytes - 1:,}"
        return f"{block.name or 'a copy'}: {size(block.bytes)}, {place}, in use in steps {steps}"

    boxes = [
        Box(label(block), block.first, block.last + 1, block.offset, block.offset + block.bytes)
        for block in plan.blocks
    ]
    return rectangles(f"Arena of {size(plan.arena_bytes)} over {len(plan.steps)} steps", boxes, x="step", y="bytes")
