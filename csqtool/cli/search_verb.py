"""``csqtool search`` and ``csqtool finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from csqtool import documents
from csqtool.cli.check_option import check_option
from csqtool.cli.output import OUTPUT, print_json, process_index, show, tell
from csqtool.cli.settings import flags_named, given, settings_command
from csqtool.cli.trust_option import trust_option
from csqtool.errors import ConfigError
from csqtool.searching.settings import finetune_reference, reference
from csqtool.searching.targets import has_target
from csqtool.text import operations

if TYPE_CHECKING:
    from csqtool.searching.result import SearchResult

FOLDER = click.Path(path_type=Path)


@click.command(cls=settings_command(reference))
@click.argument("model", required=False)
@click.option("-o", "--output", type=OUTPUT, help="The run directory to write.")
@click.option("--resume", type=FOLDER, metavar="RUN", help="Go on with an interrupted search.")
@trust_option
@check_option
@click.option("--overwrite", is_flag=True, help="Replace a run that is in the run directory.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def search(
    model: str | None,
    output: Path | None,
    resume: Path | None,
    check: bool,
    overwrite: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Search how many bits each layer of MODEL needs, and train the weights for these bit widths.

    MODEL is path/to/file.py:factory or package.module:factory, or a network of a library, such as torchvision:resnet18.
    """
    settings = given({"model": model, **values})
    if resume is None:
        needed = {"MODEL": "model" in settings, "--data": "data" in settings, "-o": output is not None,
                  "--target-bits, --target-size or --target-bops": has_target(settings)}  # fmt: skip
        if missing := [name for name, there in needed.items() if not there]:
            raise ConfigError(f"search needs {', '.join(missing)} (or --resume RUN)")
    elif output is not None:
        raise ConfigError("--resume continues in its own run directory; it takes no -o")
    import csqtool

    with flags_named():
        found = csqtool.search(run=output, resume=resume, overwrite=overwrite, check=check, progress=True, **settings)
    _print_summary(found, as_json)


@click.command(cls=settings_command(finetune_reference))
@click.argument("run", type=FOLDER)
@click.option("-o", "--output", type=OUTPUT, required=True, help="The run directory to write.")
@trust_option
@click.option("--overwrite", is_flag=True, help="Replace an earlier run in the run directory.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def finetune(run: Path, output: Path, overwrite: bool, as_json: bool, **values: Any) -> None:
    """Finetune the weights of the finished search in RUN, with its scheme fixed.

    Settings that are not given are those of the search; --epochs is its number of finetuning epochs.
    """
    import csqtool

    with flags_named():
        found = csqtool.finetune(run, output, overwrite=overwrite, progress=True, **given(values))
    _print_summary(found, as_json)


def _print_summary(found: SearchResult, as_json: bool) -> None:
    if process_index() > 0:
        return
    summary = found.summary
    if as_json:
        print_json(documents.plain(summary))
        return
    before = "" if summary.metric_float is None else f"float {summary.metric_float:.4f} → "
    unit = {"bytes": "bytes packed", "layers": "planes a layer", "elements": "planes a weight",
            "bops": "bit operations"}[summary.budget_unit]  # fmt: skip
    show(f"{summary.metric_name}  {before}{summary.metric:.4f}")
    show(f"budget     {summary.cost:,.6g} {unit} of {summary.budget:,.6g}")
    show(f"precision  {summary.average_precision:.3f} planes a weight")
    show(f"bit width  {summary.average_bit_width:.3f} bits a weight in two's complement")
    if summary.bops:
        show(f"operations {operations(summary.bops)} bit operations a sample in the quantized layers")
    tell(f"next: csqtool finalize {found.run} -o model.safetensors")
