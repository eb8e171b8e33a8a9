"""``csqtool sweep`` and ``csqtool best``."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from csqtool import documents
from csqtool.cli.output import OUTPUT, print_json, show, tell
from csqtool.cli.settings import flags_named, given, settings_command
from csqtool.cli.trust_option import trust_option
from csqtool.errors import ConfigError
from csqtool.searching.settings import Row, reference
from csqtool.searching.targets import TARGETS

FOLDER = click.Path(path_type=Path)
# A sweep has lists of these, or makes them.
LISTED = ("method", *TARGETS, "seed", "finetune_with")


def _rows() -> list[Row]:
    return [row for row in reference() if row.name not in LISTED]


class Listed(click.ParamType[Any]):
    """Values of one type, with commas between them."""

    name = "list"

    def __init__(self, kind: Callable[[str], Any], words: str) -> None:
        self._kind = kind
        self._words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the values."""
        if not isinstance(value, str):
            return value
        try:
            return [self._kind(part.strip()) for part in value.split(",") if part.strip()]
        except ValueError:
            self.fail(f"{value!r} is not a list of {self._words}, such as 1,2,3", param, ctx)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of commands that make several runs."""
    for add in (
        click.option("--json", "as_json", is_flag=True, help="Print all runs as JSON."),
        trust_option,
        click.option("--cluster", metavar="ADDRESS",
                     help="Carry the runs out on a Ray cluster, such as auto (extra ray)."),
        click.option("--jobs", type=int, default=None, help="Runs at a time. [default: the machine's cores]"),
        click.option("--seeds", type=Listed(int, "whole numbers"), default="0", show_default=True, metavar="SEED,…",
                     help="A run for each."),
    ):  # fmt: skip
        command = add(command)
    return command


@click.command(cls=settings_command(_rows))
@click.argument("model")
@click.option("-o", "--output", type=OUTPUT, required=True, help="The folder of the sweep; it goes on with one there.")
@click.option("--methods", type=Listed(str, "names"), default="csq", show_default=True, metavar="NAME,…",
              help="Methods; csq+entropy is csq, finetuned with entropy.")  # fmt: skip
@click.option("--target-size", "target_sizes", type=Listed(str, "sizes"), default="", metavar="SIZE,…",
              help="Budgets: sizes of the packed file, such as 40KB,60KB.")  # fmt: skip
@click.option("--target-bits", type=Listed(float, "numbers"), default="", metavar="PLANES,…",
              help="Budgets: planes a weight on average, such as 2,3.")  # fmt: skip
@click.option("--target-bops", type=Listed(str, "numbers"), default="", metavar="COUNT,…",
              help="Budgets: bit operations a sample, such as 1.5G,2G.")  # fmt: skip
@run_options
def sweep(model: str, output: Path, as_json: bool, **values: Any) -> None:
    """Search MODEL at several budgets, with several methods and seeds, and show accuracy against bytes.

    Each run is a search, finalized and packed. The same command goes on with a sweep that was stopped, and does what
    is missing. Methods of fixed bits train for as many epochs as the others search and finetune together.
    """
    lists = ("methods", "target_sizes", "target_bits", "target_bops", "seeds")
    own = {name: values.pop(name) for name in (*lists, "jobs", "cluster")}
    settings = given(values)
    if "data" not in settings:
        raise ConfigError("sweep needs --data")
    import csqtool

    with flags_named():
        found = csqtool.sweep(model, output, progress=True, **own, **settings)
    if as_json:
        print_json({row.name: None if row.outcome is None else documents.plain(row.outcome) for row in found.rows})
        return
    show(found.table().rstrip())
    tell(f"picture: {output / 'front.svg'}; next: csqtool best {output} --max-drop 0.5")


@click.command()
@click.argument("sweep", type=FOLDER)
@click.option("--max-drop", type=float, default=0.5, show_default=True,
              help="How far the metric may be below the float model's, in percentage points.")  # fmt: skip
@click.option("-o", "--output", type=OUTPUT, help="Also copy its finalized model to this .safetensors file.")
def best(sweep: Path, max_drop: float, output: Path | None) -> None:
    """Pick the smallest file of SWEEP whose accuracy is near enough to the float model's."""
    import csqtool
    from csqtool.files import replacing

    row = csqtool.best(sweep, max_drop=max_drop)
    assert row.outcome is not None
    show(f"{row.name}  {row.outcome.metric:.4f}  {row.outcome.bytes:,} B  {row.packed}")
    if output is not None:
        with replacing(output) as temporary:
            shutil.copyfile(row.model, temporary)
