"""``csqtool plot``."""

from __future__ import annotations

from pathlib import Path

import click

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("runs", type=PATH, nargs=-1, required=True)
@click.option("-o", "--output", type=PATH, help="The .svg or .png file to compare several runs in.")
def plot(runs: tuple[Path, ...], output: Path | None) -> None:
    """Draw the finished searches in RUNS: each in its own folder, or with -o all against each other."""
    from csqtool.plots import plot_run, plot_runs

    files = [plot_runs(runs, output)] if output is not None else [file for run in runs for file in plot_run(run)]
    for file in files:
        click.echo(file)
