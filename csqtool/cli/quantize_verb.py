"""``csqtool quantize``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from csqtool.cli.output import OUTPUT, show
from csqtool.cli.settings import flags_named, given, settings_command
from csqtool.errors import ConfigError
from csqtool.searching.settings import Row, quantize_settings, reference
from csqtool.searching.targets import has_target


def _rows() -> list[Row]:
    names = quantize_settings()
    return [row for row in reference() if row.name in names]


@click.command(cls=settings_command(_rows))
@click.argument("model")
@click.option("-o", "--output", type=OUTPUT, required=True, help="The .safetensors file to write.")
@click.option(
    "--allocator",
    default=None,
    help="What allots the planes: output-error (measured, without labels), or an allocator of csqtool methods. "
    "[default: output-error]",
)
@click.option("--samples", type=int, default=None, help="Training samples that are read. [default: 1024]")
@click.option("--steps", type=int, default=None, help="Steps of the reconstruction; 0 rounds only. [default: 400]")
@click.option("--batch-norm/--no-batch-norm", default=None, help="Re-estimate BatchNorm's statistics. [default: yes]")
@click.option(
    "--equalize/--no-equalize",
    default=None,
    help="Move scales between layers where that lowers the output error. [default: with --steps 0]",
)
@click.option(
    "--reconstruct",
    type=click.Choice(["lsq", "adaround", "csq"]),
    default=None,
    help="What is trained: weights and step sizes, rounding gates, or CSQ's bit gates. [default: lsq]",
)
@click.option(
    "--ranges",
    type=click.Choice(["mse", "percentile", "min-max"]),
    default=None,
    help="How activation ranges follow from histograms. [default: mse]",
)
@click.option(
    "--drop-activations",
    type=float,
    default=None,
    help="Share of activation values that a step does not round, 0 to 1. [default: 0]",
)
def quantize(model: str, output: Path, **values: Any) -> None:
    """Quantize a trained MODEL to follow its own float outputs: a few hundred inputs, no labels, minutes.

    Labels are needed only by most of the allocators that --allocator may name; zeroq needs none.

    MODEL is as for search. --target-bits counts planes, without the sign: 3 planes deploy as 4 bits.
    """
    settings = given({"model": model, **values})
    needed = {"--data": "data" in settings,
              "--target-bits, --target-size or --target-bops": has_target(settings)}  # fmt: skip
    if missing := [name for name, there in needed.items() if not there]:
        raise ConfigError(f"quantize needs {', '.join(missing)}")
    import csqtool

    with flags_named():
        quantized = csqtool.quantize(settings.pop("model"), settings.pop("data"), progress=True, **settings)
    csqtool.save(quantized, output)
    elements = sum(layer.elements for layer in quantized.layers)
    planes = sum(layer.elements * layer.precision for layer in quantized.layers) / elements
    bits = sum(layer.elements * layer.bit_width for layer in quantized.layers) / elements
    show(f"{output}  {len(quantized.layers)} layers  {planes:.3f} planes  {bits:.3f} bits a weight")
