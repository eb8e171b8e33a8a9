"""``csqtool doctor``."""

from __future__ import annotations

import dataclasses

import click

from csqtool.cli.model_verbs import json_option
from csqtool.cli.output import print_json, show, tell, verdict
from csqtool.text import table


@click.command()
@json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Show what is installed, and what is missing for which feature; exit 1 if csqtool cannot work."""
    import csqtool

    found = csqtool.doctor()
    broken = [one for one in found if one.needed and one.problem]
    if as_json:
        print_json([dataclasses.asdict(one) for one in found])
        ctx.exit(1 if broken else 0)
    show(table(("kind", "name", "found"), [(one.kind, one.name, one.found or "–") for one in found]))
    for one in found:
        if one.problem:
            tell(f"{'error' if one.needed else 'missing'}: {one.name}: {one.problem}")
    click.echo(f"{verdict(not broken)}  {'what csqtool needs is there' if not broken else 'csqtool cannot work so'}")
    ctx.exit(1 if broken else 0)
