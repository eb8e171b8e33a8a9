"""``csqtool init``."""

from __future__ import annotations

from pathlib import Path

import click

from csqtool.cli.output import tell


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path())
def init(folder: Path) -> None:
    """Write a starter project into FOLDER: model, data, pipeline, CI jobs. It runs without changes."""
    import csqtool

    for path in csqtool.init(folder):
        click.echo(path)
    tell(f"next: csqtool run {folder / 'pipeline.toml'}")
