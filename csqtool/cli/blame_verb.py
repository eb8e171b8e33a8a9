"""``csqtool blame``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from csqtool import documents
from csqtool.cli.output import print_json, show
from csqtool.cli.trust_option import trust_option
from csqtool.text import table

if TYPE_CHECKING:
    from csqtool.blaming import BlameReport

APART = 0.5  # of the shares' sum from 1, from which on single shares mislead
FILE = click.Path(path_type=Path)


@click.command()
@click.argument("source", metavar="RUN|MODEL", type=FILE)
@click.option("--weights", type=FILE, help="The float network's weights. [default: those that RUN began with]")
@click.option("--data", help="Measure on the test set of these data instead of the recorded ones.")
@click.option("--model", "factory", metavar="FACTORY",
              help="Build the module with this factory instead of the recorded one.")  # fmt: skip
@trust_option
@click.option("--samples", type=int, default=1000, show_default=True, help="Test samples that are read.")
@click.option("-o", "--output", type=FILE, help="Also write the JSON to this file, for report.")
@click.option("--picture", type=FILE, help="Also draw the shares, as SVG.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def blame(
    source: Path,
    weights: Path | None,
    data: str | None,
    factory: str | None,
    samples: int,
    output: Path | None,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Show which parts of a finalized model made its accuracy fall below the float network's.

    RUN is a finished search; MODEL a finalized model, with --weights. Each quantized layer, each activation quantizer,
    BatchNorm's statistics and the other tensors are put into the float network alone, and taken out of the finalized
    model alone.
    """
    import csqtool

    found = csqtool.blame(
        source, weights=weights, data=data, model=factory, samples=samples, output=output, picture=picture,
        progress=True,
    )  # fmt: skip
    if as_json:
        print_json(documents.plain(found))
    else:
        show(_text(found))


def _text(found: BlameReport) -> str:
    rows = [
        (one.name, one.kind, _percent(one.metric_share), _percent(one.error_share), f"{one.drop_alone:+.4f}",
         f"{one.drop_restored:+.4f}", f"{one.error_alone:.4f}", f"{one.error_restored:+.4f}",
         "" if one.change is None else f"{one.change:.3g}")
        for one in (*found.groups, *found.parts)
    ]  # fmt: skip
    head = (
        f"{found.metric_name} {found.metric_float:.4f} in float, {found.metric:.4f} finalized: "
        f"{found.metric_float - found.metric:+.4f} lost; output error {found.output_error:.4f}; {found.samples} samples"
    )
    explained = sum(one.error_share or 0.0 for one in found.parts)
    columns = ("part", "kind", "of the drop", "of the error", "drop alone", "restored", "error alone", "restored",
               "change")  # fmt: skip
    end = f"the parts' shares of the error together: {explained:.0%}"
    if found.parts[0].error_share is not None and abs(explained - 1) > APART:
        end += "; far from 100%: these parts were trained together and do not fit the float network one by one"
    return f"{head}\n\n{table(columns, rows)}\n\n{end}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{round(share, 2) + 0.0:.0%}"  # + 0.0 makes 0 of −0
