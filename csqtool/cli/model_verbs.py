"""``csqtool finalize``, ``pack``, ``unpack``, ``export``, ``inspect``, ``methods`` and ``formats``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from csqtool.cli.output import print_json, tell
from csqtool.text import size, table

if TYPE_CHECKING:
    from csqtool.exporting import Exported

FILE = click.Path(path_type=Path)
output_option = click.option("-o", "--output", type=FILE, required=True, help="The file to write.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.command()
@click.argument("run", type=FILE)
@output_option
@json_option
def finalize(run: Path, output: Path, as_json: bool) -> None:
    """Turn the finished search in RUN into integers, scales and bit widths, one file."""
    from csqtool.finalizing import finalize as finalize_run
    from csqtool.inspecting import inspect as inspect_file
    from csqtool.summaries import model_text

    model = finalize_run(run, output)
    if as_json:
        print_json(inspect_file(output)[1])
    else:
        click.echo(model_text(model, output))
        tell(f"next: csqtool export {output} --format onnx -o model.onnx")


@click.command()
@click.argument("model", type=FILE)
@click.option(
    "--encoding",
    type=click.Choice(["smallest", "dense"]),
    default="smallest",
    show_default=True,
    help="The smallest of all encodings a tensor, or two's complement: random access, fastest to decode.",
)
@click.option("--with-graph", is_flag=True, help="Carry the ONNX graph along: unpack -o model.onnx then works, too.")
@click.option("--float16", is_flag=True, help="Round what is left in float32 to float16, if the metric stays.")
@click.option(
    "--max-metric-change", type=float, metavar="X", help="How far float16 may move the metric. [default: 0.001]"
)
@click.option("--data", help="Measure float16 on this data's test set, not on the recorded one's.")
@click.option("--model", "factory", metavar="FACTORY", help="Build the module with this factory, not the recorded one.")
@output_option
@json_option
def pack(
    model: Path,
    encoding: str,
    with_graph: bool,
    float16: bool,
    max_metric_change: float | None,
    data: str | None,
    factory: str | None,
    output: Path,
    as_json: bool,
) -> None:
    """Write the finalized MODEL as one bit-packed .csq file."""
    from csqtool.packing import pack as pack_model

    done = pack_model(
        model, output, encoding=encoding, with_graph=with_graph, float16=float16,
        max_metric_change=max_metric_change, model=factory, data=data,
    )  # fmt: skip
    _print_exported(done, as_json)


@click.command()
@click.argument("model", type=FILE)
@click.option("--format", "format_name", default="onnx", show_default=True, help="See csqtool formats.")
@click.option("--model", "factory", metavar="FACTORY", help="Build the module with this factory, not the recorded one.")
@click.option("--weights", metavar="STORAGE", help="auto, packed, int8, int4 or int2 (onnx). [default: auto]")
@click.option("--runtime", help="onnxruntime, openvino, tensorrt or generic (onnx). [default: onnxruntime]")
@click.option("--weight-form", help="Weights beside float activations: foldable or qdq (onnx). [default: auto]")
@click.option("--dynamic", type=int, multiple=True, metavar="AXIS", help="An axis that stays dynamic (onnx).")
@click.option("--strict-integer", is_flag=True, default=None, help="Fail if a compute node runs in float (onnx).")
@output_option
@json_option
def export(model: Path, format_name: str, factory: str | None, output: Path, as_json: bool, **options: Any) -> None:
    """Write the finalized MODEL in a deployable format."""
    from csqtool.exporting import export as export_model

    given = {name: value for name, value in options.items() if value not in (None, ())}
    _print_exported(export_model(model, output, format=format_name, model=factory, options=given), as_json)


def _print_exported(done: Exported, as_json: bool) -> None:
    report = done.report
    facts = {
        "file": str(done.path),
        "size_bytes": done.size_bytes,
        "float32_bytes": done.float32_bytes,
        "notes": done.notes,
        "storage": dict(report.storage),
        "kernels": dict(report.kernels),
        "float_nodes": [dataclasses.asdict(node) for node in report.float_nodes],
    }
    if as_json:
        print_json(facts)
        return
    ratio = done.float32_bytes / done.size_bytes
    float32 = f"the float32 model the same way {size(done.float32_bytes)} ({ratio:.1f} ×)"
    click.echo(f"{done.path}  {size(done.size_bytes)}; {float32}")
    if report.kernels:
        click.echo("kernels: " + ", ".join(f"{count} {name}" for name, count in report.kernels.items()))
    if report.float_nodes:
        rows = [(node.name, node.operator, node.reason) for node in report.float_nodes]
        click.echo("\n" + table(("runs in float", "operator", "because"), rows))
    for note in done.notes:
        click.echo(f"note: {note}")


@click.command()
@click.argument("file", type=FILE)
@output_option
@json_option
def unpack(file: Path, output: Path, as_json: bool) -> None:
    """Turn a .csq FILE back into the finalized model, or (-o model.onnx) into its ONNX file, bit for bit."""
    from csqtool.packing import unpack as unpack_file

    model = unpack_file(file, output)
    facts = {"file": str(output), "size_bytes": output.stat().st_size, "layers": len(model.layers)}
    if as_json:
        print_json(facts)
    else:
        click.echo(f"{output}  {size(facts['size_bytes'])}, {facts['layers']} quantized layers")  # type: ignore[arg-type]


@click.command()
@click.argument("file", type=FILE)
@json_option
def inspect(file: Path, as_json: bool) -> None:
    """Explain any FILE or run directory that csqtool writes."""
    from csqtool.inspecting import inspect as inspect_file

    text, document = inspect_file(file)
    if as_json:
        print_json(document)
    else:
        click.echo(text)


@click.command()
@json_option
def methods(as_json: bool) -> None:
    """List the installed search methods, and the options that each has of its own."""
    from csqtool.searching.declarations import declared
    from csqtool.searching.options import METHODS, method_kind

    descriptions = METHODS.descriptions()
    options = {name: declared(method_kind(name).options) for name in descriptions}
    if as_json:
        print_json({name: {"description": text, "options": list(options[name])} for name, text in descriptions.items()})
        return
    _print_listing("method", descriptions, as_json)
    for name, own in options.items():
        if own:
            click.echo(f"\noptions of {name}: {', '.join(one.flag for one in own.values())}")


@click.command()
@json_option
def formats(as_json: bool) -> None:
    """List the installed export formats."""
    from csqtool.exporting import EXPORTERS

    _print_listing("format", EXPORTERS.descriptions(), as_json)


def _print_listing(what: str, entries: dict[str, str], as_json: bool) -> None:
    if as_json:
        print_json(entries)
    else:
        click.echo(table((what, "description"), list(entries.items())))
