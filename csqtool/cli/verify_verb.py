"""``csqtool verify``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from csqtool.cli.output import OUTPUT, layers_text, print_json, report_text, tell
from csqtool.cli.trust_option import trust_option
from csqtool.progress import Told

if TYPE_CHECKING:
    from csqtool.verifying import VerifyReport

FILE = click.Path(path_type=Path)


def _gates(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each gate, named as in `csqtool.verifying.Gates`."""
    share = click.FloatRange(0, 1)
    for option in reversed([
        click.option("--max-abs-diff", type=float, help="Largest difference of any output, optimizations off."),
        click.option("--max-rel-diff", type=float, help="The same, divided by the largest output."),
        click.option("--min-agreement", type=float, help="Smallest share of equal labels, 0 to 1."),
        click.option("--min-metric", type=float, help="Smallest metric of the file."),
        click.option("--max-metric-drop", type=float, help="How far the metric may be below the float model's."),
        click.option("--max-size", metavar="SIZE", help="Largest file size: bytes, or such as 60KB."),
        click.option("--max-bit-width", type=float, help="Largest average bit width of the weights."),
        click.option("--min-integer-share", type=share, help="Smallest share of nodes on integer kernels."),
        click.option("--max-latency-ratio", type=float, help="Largest latency, divided by that of --latency-against."),
        click.option("--latency-against", metavar="FILE", help="An ONNX file to compare latencies with."),
        click.option("--max-flash", metavar="SIZE", help="Largest code and constants on --target, such as 64KB."),
        click.option("--max-ram", metavar="SIZE", help="Largest arena, input, output and stack on --target."),
        click.option("--max-instructions", type=int, help="Most instructions of an inference on --target."),
        click.option("--baseline", metavar="REPORT", help="A report (--json) of an earlier verification."),
        click.option("--max-regression", type=float,
                     help="How much worse than the baseline: metric points; share of size and bit width."),
    ]):  # fmt: skip
        command = option(command)
    return command


@click.command()
@click.argument("file", type=FILE)
@click.option("--against", type=FILE, required=True, help="The finalized model.")
@click.option("--data", help="Compare on the test set of these data instead of the recorded ones.")
@click.option("--model", "factory", metavar="FACTORY",
              help="Build the module with this factory instead of the recorded one.")  # fmt: skip
@trust_option
@click.option("--samples", type=int, help="Compare this many test samples. [default: all]")
@click.option(
    "--backend",
    "backends",
    multiple=True,
    default=["onnxruntime"],
    show_default=True,
    help="What runs an ONNX file: onnxruntime, or onnxruntime:PROVIDER such as onnxruntime:cuda, openvino or "
    "qonnx (extras), reference (onnx's evaluator, 32 samples). Repeatable; the first runs the task's metric.",
)
@click.option("--threads", type=int, default=0, help="Threads of one operator in the backends. [default: their choice]")
@click.option("--layers", is_flag=True, help="Also print every layer's difference.")
@click.option("--tolerance", "tolerances", multiple=True, metavar="NAME=VALUE",
              help="Set a threshold for rounding, such as layer_share=0.01 (docs/verify.md). Repeatable.")  # fmt: skip
@click.option(
    "--allow-unaccounted",
    multiple=True,
    metavar="NAME",
    help="Let this part of an ONNX graph pass, though PyTorch's graph does not explain it. Repeatable.",
)
@click.option("--save-inputs", type=OUTPUT, metavar="DIR",
              help="Write inputs to DIR on which the two sides disagree.")  # fmt: skip
@click.option("--cc", metavar="COMPILER", help="Compile a folder of C with this. [default: cc, gcc or clang]")
@click.option("--target", metavar="DEVICE",
              help="Run a folder of C on this device as well, simulated by QEMU: cortex-m4.")  # fmt: skip
@click.option("--bisect", is_flag=True,
              help="Of an ONNX file that differs, name the smallest set of nodes that make it differ.")  # fmt: skip
@_gates
@click.option("--json", "json_path", type=OUTPUT, is_flag=False, flag_value=Path("-"), metavar="[FILE]",
              help="Write the report as JSON; without a file, print it.")  # fmt: skip
@click.option("--junit", type=OUTPUT, help="Write the report as JUnit XML.")
@click.option("--markdown", type=OUTPUT, help="Write the report as Markdown.")
def verify(
    file: Path,
    against: Path,
    data: str | None,
    factory: str | None,
    samples: int | None,
    backends: tuple[str, ...],
    threads: int,
    layers: bool,
    tolerances: tuple[str, ...],
    allow_unaccounted: tuple[str, ...],
    save_inputs: Path | None,
    cc: str | None,
    target: str | None,
    bisect: bool,
    json_path: Path | None,
    junit: Path | None,
    markdown: Path | None,
    max_size: str | None,
    max_flash: str | None,
    max_ram: str | None,
    **limits: Any,
) -> None:
    """Compare FILE (.onnx, .csq, or a folder of C) with the finalized model; exit 1 if a check or gate fails.

    In GitHub Actions, failures are also written as annotations and the report into the job's summary.
    """
    import csqtool
    from csqtool.files import write_bytes, write_json
    from csqtool.text import parse_size
    from csqtool.verifying import documents

    sizes = {"max_size": max_size, "max_flash": max_flash, "max_ram": max_ram}
    limits |= {name: None if given is None else parse_size(given) for name, given in sizes.items()}
    report = csqtool.verify(
        file,
        against,
        data=data,
        model=factory,
        gates=csqtool.Gates(**limits),
        samples=samples,
        backends=backends,
        tolerances=csqtool.Tolerances.parse(tolerances),
        threads=threads,
        allow_unaccounted=allow_unaccounted,
        save_inputs=save_inputs,
        cc=cc,
        target=target,
        bisect=bisect,
        progress=Told(tell),
    )
    if junit is not None:
        write_bytes(junit, documents.junit(report))
    if markdown is not None:
        write_bytes(markdown, documents.markdown(report).encode())
    if json_path is not None and str(json_path) != "-":
        write_json(json_path, report.to_json())
    if json_path is not None and str(json_path) == "-":
        print_json(report.to_json())
    else:
        click.echo(report_text(report))
        if layers:
            click.echo("\n" + layers_text(report))
    _tell_github(report)
    click.get_current_context().exit(0 if report.passed else 1)


def _tell_github(report: VerifyReport) -> None:
    """Write annotations and the step summary, if this runs in GitHub Actions."""
    from csqtool.verifying import documents

    if os.environ.get("GITHUB_ACTIONS") != "true":
        return
    for line in documents.github_commands(report):
        click.echo(line, err=True)  # commands on purpose; what comes from the file is escaped in them
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with open(summary, "a", encoding="utf-8") as file:
            file.write(documents.markdown(report) + "\n")
