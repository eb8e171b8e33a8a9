"""What notebooks show of a result: tables in HTML, every text escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def page(title: str, lines: Iterable[str], heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a title, lines of text and a table as HTML; the notebook's own style applies.

    Args:
        title: of the whole.
        lines: a paragraph.
        heads: of the columns.
        rows: a cell a column.
    """
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    text = "<br>".join(escape(line) for line in lines)
    return (
        f"<div><strong>{escape(title)}</strong><p>{text}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
