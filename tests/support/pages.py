"""Blocks of code in Markdown pages, and running them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.commands import ROOT, invoke

BLOCK = re.compile(
    r"(?:^<!-- (?P<note>[^>]*?) -->\n)?^```(?P<language>[a-z]*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$",
    flags=re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        language: the word after the fence.
        title: the file that it is; None for a block that is run.
        note: the comment on the line above.
        text: what is in it.
    """

    language: str
    title: str | None
    note: str
    text: str

    @property
    def reason_not_to_run(self) -> str | None:
        return self.note.removeprefix("not run: ") if self.note.startswith("not run: ") else None

    @property
    def exit_code(self) -> int:
        return int(self.note.removeprefix("exits with ")) if self.note.startswith("exits with ") else 0


def pages() -> list[Path]:
    """Return the Markdown that users read: README and everything below docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text: str) -> list[Block]:
    return [Block(m["language"], m["title"], m["note"] or "", m["text"]) for m in BLOCK.finditer(text)]


def run_page(found: list[Block]) -> None:
    """Run a page's blocks, files first, in the working folder."""
    for block in found:
        if block.title is not None:
            Path(block.title).write_text(block.text, encoding="utf-8")
    names: dict[str, Any] = {}
    for block in found:
        if block.title is not None or block.reason_not_to_run is not None:
            continue
        if block.language == "python":
            exec(compile(block.text, "page", "exec"), names)
        elif block.language == "console":
            for line in block.text.splitlines():
                program, *arguments = shlex.split(line.removeprefix("$ "))
                assert program == "csqtool", f"{line}: only csqtool can be run"
                result = invoke(*arguments)
                assert result.exit_code == block.exit_code, f"{line}\n{result.output}"
