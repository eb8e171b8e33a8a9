"""``csqtool run``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from csqtool.cli.check_option import check_option
from csqtool.cli.output import print_json, report_text, tell, verdict
from csqtool.text import duration, printable, size, table

if TYPE_CHECKING:
    from csqtool.pipeline_runner import PipelineResult


@click.command()
@click.argument("pipeline", type=click.Path(path_type=Path))
@check_option
@click.option(
    "--dry-run",
    is_flag=True,
    help="Only print which stages would be run, and the time and memory of a search; nothing is written.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
@click.pass_context
def run(ctx: click.Context, pipeline: Path, check: bool, dry_run: bool, as_json: bool) -> None:
    """Run a whole PIPELINE (a TOML file); stages whose inputs have not changed are skipped."""
    import csqtool

    if dry_run:
        _print_plan(csqtool.run(pipeline, check=check, dry_run=True), as_json)
        return
    result = csqtool.run(pipeline, check=check, progress=True)
    page = csqtool.report(result.pipeline.output, result.pipeline.output / "report.html")
    if as_json:
        print_json(result.to_json())
    else:
        for report in result.reports.values():
            if not report.passed:
                tell(report_text(report) + "\n", coloured=True)
        click.echo(_summary(result, page))
    ctx.exit(0 if result.passed else 1)


def _print_plan(plan: PipelineResult, as_json: bool) -> None:
    """Print which stages would be run, how long each took last time, and what a search would take."""
    estimate = plan.estimate
    if as_json:
        figures = None if estimate is None else dataclasses.asdict(estimate) | {"seconds": estimate.seconds}
        print_json({"stages": plan.stages, "took": plan.took, "estimate": figures})
        return
    rows = [
        (name, state, duration(plan.took[name]) if name in plan.took else "–") for name, state in plan.stages.items()
    ]
    click.echo(table(("stage", "state", "took last time"), rows))
    if estimate is not None:
        click.echo(f"\na search from its beginning takes {estimate}")


def _summary(result: PipelineResult, page: Path) -> str:
    """Return a summary of the results."""
    from csqtool.finalized_file import read_finalized
    from csqtool.summaries import model_text, target_text

    model = read_finalized(result.finalized)
    metric_name = model.info.metrics.name if model.info.metrics else "metric"
    config = result.pipeline.config
    act_bits, target = config.act_bits, target_text(vars(config))
    rows: list[tuple[object, ...]] = []
    for name, path in result.exports.items():
        facts, report = result.facts[name], result.reports[name]
        metric, agreement = report.figure(None, "metric"), min(report.figures("agreement"), default=None)
        ratio = facts.float32_bytes / facts.size_bytes
        rows.append((path, size(facts.size_bytes), size(facts.float32_bytes), f"{ratio:.1f} ×",
                     "–" if metric is None else f"{metric:.4f}", "–" if agreement is None else f"{agreement:.2%}",
                     "PASS" if report.passed else "FAIL"))  # fmt: skip
    heads = ("file", "bytes", "as float32", "smaller", metric_name, "agreement", "verify")
    lines = [
        *model_text(model).split("\n"),
        f"precision  {model.average_precision:.3f} planes a weight ({target}), "
        f"bit width {model.average_bit_width:.3f}, activations {'float' if act_bits is None else f'{act_bits} bits'}",
        "",
        table(heads, rows),
        "",
        f"report     {page}",
    ]
    body = "\n".join(printable(line) for text in lines for line in text.split("\n"))
    return f"{body}\n\n{verdict(result.passed)}  " + (
        "the exported files compute what the finalized model computes" if result.passed else "see the checks above"
    )
