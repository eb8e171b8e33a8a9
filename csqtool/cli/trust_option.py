"""The option ``--trust-factory`` of every verb that builds what a file names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from csqtool.trust import trusting


def _trust(ctx: click.Context, _: click.Parameter, names: tuple[str, ...]) -> None:
    ctx.with_resource(trusting(names))


def trust_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option; what it names is trusted until the verb has ended."""
    return click.option(
        "--trust-factory",
        multiple=True,
        metavar="NAME",
        callback=_trust,
        expose_value=False,
        help="Run this factory where a file names it, although it is not this project's own code. Repeatable.",
    )(command)
