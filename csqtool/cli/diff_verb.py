"""``csqtool diff``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from csqtool.cli.output import print_json, show
from csqtool.text import table

FILE = click.Path(path_type=Path)


@click.command()
@click.argument("a", type=FILE)
@click.argument("b", type=FILE)
@click.option("--fail-on-change", is_flag=True, help="Exit 1 if anything differs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def diff(a: Path, b: Path, fail_on_change: bool, as_json: bool) -> None:
    """Show what changed from A to B: two finalized models, or two reports of verify --json."""
    import csqtool

    changes = csqtool.diff(a, b)
    if as_json:
        print_json({"a": str(a), "b": str(b), "changes": [change.to_json() for change in changes]})
    elif changes:
        rows = [(c.where, c.what, _shown(c.before), _shown(c.after)) for c in changes]
        show(table(("where", "what", "before", "after"), rows))
        show(f"\n{len(changes)} changes")
    else:
        show("no changes")
    click.get_current_context().exit(1 if changes and fail_on_change else 0)


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
