"""``csqtool report``."""

from __future__ import annotations

from pathlib import Path

import click

from csqtool.cli.output import OUTPUT

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("sources", type=PATH, nargs=-1, required=True, metavar="RUN|FILE…")
@click.option("-o", "--output", type=OUTPUT, default=Path("report.html"), show_default=True, help="The file to write.")
@click.option("--bench", is_flag=True, help="Measure the latency of the ONNX files, side by side.")
def report(sources: tuple[Path, ...], output: Path, bench: bool) -> None:
    """Write a self-contained HTML page about RUNs and FILEs.

    They may be run directories, outputs of pipelines, pipeline files, finalized models, .csq and .onnx files, folders
    of C, and the output of verify --json and bench --json. Everything that belongs to one model is shown together.
    """
    import csqtool

    click.echo(csqtool.report(sources, output, bench=bench))
