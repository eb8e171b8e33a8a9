"""``csqtool verify``."""

from __future__ import annotations

from pathlib import Path

import click

from csqtool.cli.output import print_json, report_text

FILE = click.Path(path_type=Path)


@click.command()
@click.argument("file", type=FILE)
@click.option("--against", type=FILE, required=True, help="The finalized model.")
@click.option("--data", help="Compare on this data's test set, not on the recorded one's.")
@click.option("--model", "factory", metavar="FACTORY", help="Build the module with this factory, not the recorded one.")
@click.option("--samples", type=int, help="Compare this many test samples. [default: all]")
@click.option("--max-abs-diff", type=float, help="Largest difference of any output, optimizations off.")
@click.option("--min-agreement", type=float, help="Least share of equal labels, 0 to 1.")
@click.option("--min-metric", type=float, help="Least metric of the file.")
@click.option("--max-metric-drop", type=float, help="How far the metric may lie below the float model's.")
@click.option("--max-size", metavar="SIZE", help="Largest file size: bytes, or such as 60KB.")
@click.option("--json", "json_path", type=FILE, is_flag=False, flag_value=Path("-"), metavar="[FILE]",
              help="Write the report as JSON; without a file, print it.")  # fmt: skip
@click.pass_context
def verify(
    ctx: click.Context,
    file: Path,
    against: Path,
    data: str | None,
    factory: str | None,
    samples: int | None,
    max_abs_diff: float | None,
    min_agreement: float | None,
    min_metric: float | None,
    max_metric_drop: float | None,
    max_size: str | None,
    json_path: Path | None,
) -> None:
    """Compare FILE (.onnx or .csq) with the finalized model; exit 1 if a check or gate fails."""
    from csqtool.files import write_json
    from csqtool.text import parse_size
    from csqtool.verify import Gates
    from csqtool.verify import verify as verify_file

    size_limit = None if max_size is None else parse_size(max_size)
    gates = Gates(max_abs_diff, min_agreement, min_metric, max_metric_drop, size_limit)
    report = verify_file(file, against, data=data, model=factory, gates=gates, samples=samples).to_json()
    if json_path is not None and str(json_path) != "-":
        write_json(json_path, report)
    if json_path is not None and str(json_path) == "-":
        print_json(report)
    else:
        click.echo(report_text(report))
    ctx.exit(0 if report["passed"] else 1)
