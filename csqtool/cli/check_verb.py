"""``csqtool check``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from csqtool.cli.output import print_json, show, tell, verdict
from csqtool.cli.settings import flags_named, given, settings_command
from csqtool.errors import ConfigError
from csqtool.searching.settings import Row, reference
from csqtool.text import duration, operations, size, table

if TYPE_CHECKING:
    from csqtool.checking import CheckReport

SETTINGS = ("data", "target_bits", "target_size", "act_bits", "method", "pretrain_epochs", "epochs", "finetune_epochs",
            "weights", "exclude", "keep_output", "task", "batch_size", "device", "model_args")  # fmt: skip
SHOWN = 10


def _rows() -> list[Row]:
    return [row for row in reference() if row.name in SETTINGS]


@click.command(cls=settings_command(_rows))
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def check(model: str, as_json: bool, **values: Any) -> None:
    """Look before the leap: trace, round, export and verify MODEL before any training; exit 1 if verify fails.

    MODEL is as for search. The weights are rounded to --target-bits planes each [default: 3].
    """
    settings = given({"model": model, **values})
    if "data" not in settings:
        raise ConfigError("check needs --data")
    import csqtool

    with flags_named():
        report = csqtool.check(progress=True, **settings)
    if as_json:
        document = dataclasses.asdict(report) | {"verification": report.verification.to_json()}
        document["estimate"]["seconds"] = report.estimate.seconds
        print_json(document | {"coverage": report.coverage, "passed": report.passed, "warnings": report.warnings})
    else:
        show(_text(report))
        click.echo(f"{verdict(report.passed)}  the exported file against PyTorch, on a few samples")
    for warning in report.warnings:
        tell(f"warning: {warning}")
    click.get_current_context().exit(0 if report.passed else 1)


def _text(report: CheckReport) -> str:
    lines = [
        f"inputs       {'; '.join(report.inputs)}",
        f"outputs      {', '.join(report.outputs)}",
        f"quantized    {report.quantized:,} of {report.parameters:,} parameters ({report.coverage:.1%}), "
        f"in {report.layers} layers; {report.activations} activations",
        f"integers     {report.integer_share:.0%} of onnxruntime's compute nodes",
        f"sizes        .csq {size(report.csq_bytes)}, ONNX {size(report.onnx_bytes)}, "
        f"float32 {size(report.float32_bytes)}",
        f"operations   {operations(report.multiplications)} multiplications a sample, "
        f"{operations(report.bit_operations)} bit operations",
        f"a search     {report.estimate}; {duration(report.estimate.seconds_an_epoch)} an epoch",
    ]
    for title, rows in (
        ("stays in float", [(one.name, f"{one.elements:,}", one.reason) for one in report.left]),
        ("runs in float", [(node.name, node.operator, node.reason) for node in report.float_nodes]),
    ):
        if rows:
            more = f"… and {len(rows) - SHOWN} more, all of them in --json" if len(rows) > SHOWN else ""
            lines += ["", table((title, "", "why"), rows[:SHOWN]), *([more] if more else [])]
    failures = [f"{c.level}  {c.name}: {c.detail}" for c in report.verification.failures]
    return "\n".join([*lines, *([""] if failures else []), *failures[:SHOWN]])
