"""``csqtool compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from csqtool import documents
from csqtool.cli.output import print_json, show, tell
from csqtool.cli.settings import flags_named, given, settings_command
from csqtool.cli.sweep_verb import FOLDER, Listed, run_options
from csqtool.errors import ConfigError
from csqtool.searching.settings import Row, reference

LISTED = ("method", "seed", "finetune_with")


def _rows() -> list[Row]:
    return [row for row in reference() if row.name not in LISTED]


@click.command(cls=settings_command(_rows))
@click.argument("model")
@click.option("-o", "--output", type=FOLDER, required=True, help="The folder to write; it goes on with one there.")
@click.option("--methods", type=Listed(str, "names"), default="csq,measured,hawq-v3", show_default=True,
              metavar="NAME,…", help="Methods; hawq-v3+csq is hawq-v3, its scheme trained with csq.")  # fmt: skip
@run_options
def compare(model: str, output: Path, as_json: bool, **values: Any) -> None:
    """Compare methods on MODEL at one budget, each down to verified ONNX and .csq files.

    A sweep with one budget: the same command goes on with a comparison that was stopped. Allocators and methods of
    fixed bits train for as many epochs as the others search and finetune together.
    """
    own = {name: values.pop(name) for name in ("methods", "seeds", "jobs", "cluster")}
    settings = given(values)
    if "data" not in settings:
        raise ConfigError("compare needs --data")
    import csqtool
    from csqtool.comparing import check_passed

    with flags_named():
        found = csqtool.compare(model, output, progress=True, **own, **settings)
    if as_json:
        print_json({
            row.name: {"outcome": documents.plain(row.outcome) if row.outcome else None,
                       "files": documents.plain(found.shipped[row.name]) if row.name in found.shipped else None}
            for row in found.sweep.rows
        })  # fmt: skip
    else:
        show(found.table().rstrip())
        tell(f"table: {output / 'comparison.md'}, picture: {output / 'front.svg'}")
    check_passed(found)
