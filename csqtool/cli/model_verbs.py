"""``csqtool finalize``, ``pack``, ``unpack``, ``export``, ``inspect``, ``methods`` and ``formats``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from csqtool.cli.format_options import FormatCommand, given
from csqtool.cli.output import OUTPUT, print_json, show, tell
from csqtool.cli.trust_option import trust_option
from csqtool.text import size, table

if TYPE_CHECKING:
    from csqtool.exporting import Exported

FILE = click.Path(path_type=Path)
output_option = click.option("-o", "--output", type=OUTPUT, required=True, help="The file to write.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
factory_option = click.option(
    "--model", "factory", metavar="FACTORY", help="Build the module with this factory instead of the recorded one."
)
data_option = click.option(
    "--data", help="Measure --float16 on the test set of these data instead of the recorded ones."
)


@click.command()
@click.argument("run", type=FILE)
@click.option("--model", "factory", metavar="FACTORY", help="Factory of the module, if the search was given an object.")
@click.option("--data", help="The data, if the search was given objects.")
@trust_option
@output_option
@json_option
def finalize(run: Path, factory: str | None, data: str | None, output: Path, as_json: bool) -> None:
    """Turn the finished search in RUN into one file of integers, scales and bit widths."""
    import csqtool
    from csqtool.summaries import model_text

    model = csqtool.finalize(run, output, model=factory, data=data)
    if as_json:
        print_json(csqtool.inspect(output))
    else:
        show(model_text(model))
        tell(f"next: csqtool export {output} --format onnx -o model.onnx")


@click.command(cls=FormatCommand, formats=("csq",))
@click.argument("model", type=FILE)
@data_option
@factory_option
@trust_option
@output_option
@json_option
def pack(model: Path, data: str | None, factory: str | None, output: Path, as_json: bool, **options: Any) -> None:
    """Write the finalized MODEL as one bit-packed .csq file."""
    import csqtool

    _print_exported(csqtool.pack(model, output, model=factory, data=data, **given(options)), as_json)


@click.command(cls=FormatCommand)
@click.argument("model", type=FILE)
@click.option("--format", "format_name", help="See csqtool formats. [default: that of the suffix, else onnx]")
@data_option
@factory_option
@trust_option
@output_option
@json_option
def export(
    model: Path,
    format_name: str | None,
    data: str | None,
    factory: str | None,
    output: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Write the finalized MODEL in a deployable format."""
    import csqtool

    if format_name is None and not output.suffix:
        format_name = "onnx"
    done = csqtool.export(model, output, format=format_name, model=factory, data=data, **given(options))
    _print_exported(done, as_json)


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
    show(f"{done.path}  {size(done.size_bytes)}; {float32}")
    if report.kernels:
        show("kernels: " + ", ".join(f"{count} {name}" for name, count in report.kernels.items()))
    if report.float_nodes:
        rows = [(node.name, node.operator, node.reason) for node in report.float_nodes]
        show("\n" + table(("runs in float", "operator", "because"), rows))
    for note in done.notes:
        show(f"note: {note}")


@click.command()
@click.argument("file", type=FILE)
@output_option
@json_option
def unpack(file: Path, output: Path, as_json: bool) -> None:
    """Turn a .csq FILE back into the finalized model, or (-o model.onnx) into its ONNX file, bit for bit.

    An inference file gives a model with its folded values, not the original.
    """
    import csqtool

    model = csqtool.unpack(file, output)
    facts = {"file": str(output), "size_bytes": output.stat().st_size, "layers": len(model.layers)}
    if as_json:
        print_json(facts)
    else:
        show(f"{output}  {size(facts['size_bytes'])}, {facts['layers']} quantized layers")  # type: ignore[arg-type]


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
        show(text)


@click.command()
@json_option
def methods(as_json: bool) -> None:
    """List the installed methods: allocators find a scheme, trainers train at one; and the options of each."""
    import csqtool

    found = csqtool.methods()
    if as_json:
        print_json(found)
        return
    rows = [(name, one["kind"], one["data"], one["description"]) for name, one in found.items()]
    show(table(("method", "kind", "data needed", "description"), rows))
    for name, method in found.items():
        if method["options"]:
            flags = ", ".join(f"--{option.replace('_', '-')}" for option in method["options"])
            show(f"\noptions of {name}: {flags}")


@click.command()
@json_option
def formats(as_json: bool) -> None:
    """List the installed export formats."""
    import csqtool

    _print_listing("format", csqtool.formats(), as_json)


def _print_listing(what: str, entries: dict[str, str], as_json: bool) -> None:
    if as_json:
        print_json(entries)
    else:
        show(table((what, "description"), list(entries.items())))
