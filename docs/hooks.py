"""Hooks of mkdocs: the generated reference, and Markdown outside of ``docs/``, become pages of the site."""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# Files outside of docs/ that the site has, at the same place below its root.
OUTSIDE = {"CHANGELOG.md", "SECURITY.md"} | {
    f"benchmarks/results/{path.name}" for path in (ROOT / "benchmarks" / "results").iterdir() if path.suffix != ".json"
}
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not below ``docs/``."""
    from mkdocs.structure.files import File

    sys.path.insert(0, str(ROOT))
    from docs.reference import pages

    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    for name in sorted(OUTSIDE):
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Point the links of a page at places in the site."""
    place = page.file.src_uri
    return relinked(markdown, place if place in OUTSIDE else f"docs/{place}")


def relinked(markdown: str, name: str) -> str:
    """Return the Markdown of a file of the repository with links that hold in the site.

    A link to a file that the site does not have becomes its text.

    Args:
        markdown: the text.
        name: the file, from the repository's root.
    """
    own = posixpath.dirname(_place(name) or name)

    def link(match: re.Match[str]) -> str:
        text, address, anchor = match[1], match[2], match[3] or ""
        if ":" in address:
            return match[0]
        place = _place(posixpath.normpath(posixpath.join(posixpath.dirname(name), address)))
        return f"{text}" if place is None else f"[{text}]({posixpath.relpath(place, own or '.')}{anchor})"

    return LINK.sub(link, markdown)


def _place(path: str) -> str | None:
    """Return the place in the site of a file of the repository; None if it has none."""
    if path in OUTSIDE:
        return path
    return path.removeprefix("docs/") if path.startswith("docs/") else None
