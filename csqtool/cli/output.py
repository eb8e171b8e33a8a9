"""Printing: results to stdout, everything else to stderr, colour only where it is wanted."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from csqtool.files import check_writable
from csqtool.text import printable, table

if TYPE_CHECKING:
    from csqtool.verifying import VerifyReport
    from csqtool.verifying.findings import Bisection


class OutputPath(click.Path):
    """A file or folder to write; whether that is possible is known before the work begins, not after it."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path, after a look at its folder."""
        path = Path(str(super().convert(value, param, ctx)))
        if str(path) != "-":
            check_writable(path)
        return path


OUTPUT = OutputPath()
SHOWN_FAILURES = 5  # of a level
SHOWN_VALUES = 4  # that a node is computed from


def print_json(document: Any) -> None:
    """Print one JSON document to stdout."""
    click.echo(json.dumps(document, indent=2, allow_nan=False, default=str))


def show(text: str) -> None:
    """Print lines to stdout; control characters in them are shown as escapes, for names come from files."""
    click.echo("\n".join(map(printable, text.split("\n"))))


def tell(text: str, *, coloured: bool = False) -> None:
    """Print text to stderr.

    Args:
        text: lines; control characters in them are shown as escapes, because names come from files.
        coloured: the text is already printable, and may contain colours.
    """
    click.echo(text if coloured else "\n".join(map(printable, text.split("\n"))), err=True)


def process_index() -> int:
    """Return the number of this process, set by the launcher (torchrun); 0 for a single process."""
    return int(os.environ.get("RANK", "0") or 0)


def styled(text: str, colour: str) -> str:
    """Return `text` in a colour, unless NO_COLOR is set; click drops colours if the output is no terminal."""
    return text if os.environ.get("NO_COLOR") else click.style(text, fg=colour, bold=True)


def verdict(passed: bool) -> str:
    """Return the word PASS or FAIL."""
    return styled("PASS", "green") if passed else styled("FAIL", "red")


def layers_text(report: VerifyReport) -> str:
    """Return a table of the comparison of each layer."""
    if not report.layers:
        return "no layers were compared: they are in ONNX files with test data"
    rows = [(item.name, item.optimizations, "ok" if item.passed else "FAIL", item.detail) for item in report.layers]
    return table(("layer, teacher-forced", "optimizations", "", "difference"), rows)


def report_text(report: VerifyReport) -> str:
    """Return a verification as text: a table, failures with their layer, the verdict."""
    rows: list[tuple[str, str, str, str]] = []
    wrong: Counter[str] = Counter()
    for check in report.checks:
        wrong[check.level] += not check.passed
        if check.passed or wrong[check.level] <= SHOWN_FAILURES:
            detail = f"{check.layer}: {check.detail}" if check.layer else check.detail
            rows.append((check.level, check.name, "ok" if check.passed else "FAIL", detail))
    for level, number in wrong.items():  # if everything is wrong, the first few failures fit on one screen
        if number > SHOWN_FAILURES:
            place = max(i for i, row in enumerate(rows) if row[0] == level) + 1
            rows.insert(place, (level, "…", "FAIL", f"{number - SHOWN_FAILURES} more, all of them in --json"))
    failed, checks = len(report.failures), len(report.checks)
    count = f"{failed} of {checks} checks failed" if failed else f"{checks} checks hold"
    first = next((check.layer for check in report.failures if check.layer), None)
    blamed = f", first at {printable(first)}" if first else ""
    head = f"{printable(report.file)} against {printable(report.against)}, {report.samples} samples"
    if other := report.tolerances.changed():
        head += f"\ntolerances set: {', '.join(f'{name} = {value:g}' for name, value in other.items())}"
    shown = f"{head}\n\n{table(('level', 'check', '', 'detail'), rows)}\n\n"
    if report.bisection is not None:
        shown += f"{bisection_text(report.bisection)}\n\n"
    return f"{shown}{verdict(report.passed)}  {count}{blamed}"


def bisection_text(found: Bisection) -> str:
    """Return what ``--bisect`` found: a line, and a table of the nodes."""
    rows = []
    for node in found.nodes:
        more = f" and {len(node.behind) - SHOWN_VALUES} more" if len(node.behind) > SHOWN_VALUES else ""
        behind = ", ".join(node.behind[:SHOWN_VALUES]) + more
        rows.append((node.action, node.name, node.operator, node.place, behind))
    head = f"bisection: {printable(found.detail)}"
    columns = ("", "node", "operator", "differs at", "also not PyTorch's")
    return f"{head}\n\n{table(columns, rows)}" if rows else head
