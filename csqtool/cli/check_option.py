"""The option ``--check`` of the verbs that begin a search."""

from __future__ import annotations

import click

check_option = click.option(
    "--check/--no-check",
    default=True,
    show_default=True,
    envvar="CSQTOOL_CHECK",
    show_envvar=True,
    help="Before a search trains, export and verify the network; csqtool check prints all of it.",
)
