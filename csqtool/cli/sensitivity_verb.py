"""``csqtool sensitivity``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from csqtool import documents
from csqtool.cli.output import OUTPUT, print_json, show
from csqtool.cli.settings import flags_named, given, settings_command
from csqtool.errors import ConfigError
from csqtool.searching.settings import Row, reference
from csqtool.text import table

if TYPE_CHECKING:
    from csqtool.layer_sensitivity import SensitivityReport

SETTINGS = ("data", "weights", "exclude", "task", "seed", "device", "model_args")


def _rows() -> list[Row]:
    return [row for row in reference() if row.name in SETTINGS]


@click.command(cls=settings_command(_rows))
@click.argument("model")
@click.option("--samples", type=int, default=None, help="Training samples that are read. [default: 512]")
@click.option("--planes", type=int, multiple=True, metavar="PLANES",
              help="Round each layer to so many planes. Repeatable. [default: 1 2 3 4]")  # fmt: skip
@click.option("--probes", type=int, default=None,
              help="Random vectors for the trace of the second derivative; 0 leaves it out. [default: 8]")  # fmt: skip
@click.option("-o", "--output", type=OUTPUT, help="Also write the JSON to this file, for report.")
@click.option("--picture", type=OUTPUT, help="Also draw the loss of each layer, as SVG.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def sensitivity(model: str, output: Path | None, picture: Path | None, as_json: bool, **values: Any) -> None:
    """Show how much the rounding of each layer of MODEL costs, at each number of planes.

    MODEL is as for search, with --weights or trained. One layer at a time is rounded; all others stay in float.
    """
    planes = values.pop("planes")
    settings = given({"model": model, **values}) | ({"planes": planes} if planes else {})
    if "data" not in settings:
        raise ConfigError("sensitivity needs --data")
    import csqtool

    with flags_named():
        found = csqtool.sensitivity(settings.pop("model"), output=output, picture=picture, progress=True, **settings)
    if as_json:
        print_json(documents.plain(found))
    else:
        show(_text(found))


def _text(found: SensitivityReport) -> str:
    rows = []
    for layer in found.layers:
        trace = [] if layer.trace is None else [f"{layer.trace:.3g} ± {layer.trace_error:.1g}"]
        rows.append([layer.name, layer.elements, *trace, *(f"{one.loss_change:+.4f}" for one in layer.errors)])
    planes = [f"{one.planes} planes" for one in found.layers[0].errors]
    traces = [] if found.layers[0].trace is None else ["trace"]
    head = f"loss {found.loss:.4f} on {found.samples} samples; its change with one layer rounded to"
    return f"{head}\n\n{table(('layer', 'weights', *traces, *planes), rows)}"
