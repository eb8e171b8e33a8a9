"""``csqtool search``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from csqtool.cli.output import print_json, tell
from csqtool.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])


class ActBits(click.ParamType[Any]):
    """2 … 8, or ``float``."""

    name = "2…8|float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Return the number of bits, None for float."""
        if value in (None, "float"):
            return None
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number of bits, 2 to 8, nor float", param, ctx)


def _setting(name: str, kind: Any, text: str) -> Callable[[F], F]:
    """Return an option whose default is the library's own, so that the two cannot differ."""
    return click.option(f"--{name.replace('_', '-')}", name, type=kind, default=None, help=text)


@click.command()
@click.argument("model", required=False)
@_setting("data", str, "digits, cifar10:DIR, npz:FILE or file.py:factory.")
@_setting("target_bits", float, "Average precision to reach: planes a weight, 1 to 8.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The run directory to write.")
@_setting("act_bits", ActBits(), "Bits of the activations that feed weights. [default: float]")
@_setting("method", str, "Search method, see csqtool methods. [default: csq]")
@_setting("weights", str, "Start from these weights: safetensors or a torch checkpoint.")
@_setting("pretrain_epochs", int, "Epochs of float training before the search. [default: 0]")
@_setting("epochs", int, "Epochs of the search. [default: 20]")
@_setting("finetune_epochs", int, "Epochs behind it, with the scheme fixed. [default: 20]")
@_setting("batch_size", int, "Samples a step. [default: 64]")
@_setting("seed", int, "Seed of everything random. [default: 0]")
@_setting("task", str, "classification or regression, where the data name no task.")
@_setting("learning_rate", float, "Learning rate of float weights and scales. [default: 0.05]")
@_setting("gate_learning_rate", float, "Learning rate of the bit gates. [default: 3]")
@_setting("mask_learning_rate", float, "Learning rate of the mask gates. [default: 0.1]")
@_setting("weight_decay", float, "Decay of float weights; gates have none. [default: 0.0005]")
@_setting("strength", float, "Strength λ of the budget's regularization. [default: 0.01]")
@_setting("beta_max", float, "Gate temperature in the last epoch. [default: 200]")
@_setting("planes", int, "Bit planes a layer. [default: 8]")
@_setting("amp", click.Choice(["no", "bf16"]), "Autocast; gates stay in float32. [default: no]")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Keep matching parameters in float. Repeatable.")
@click.option(
    "--model-arg", "model_args", multiple=True, metavar="NAME=VALUE", help="Argument of the factory. Repeatable."
)
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Go on with an interrupted search.")
@click.option("--overwrite", is_flag=True, help="Replace a run that is in the run directory.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def search(
    model: str | None,
    output: Path | None,
    resume: Path | None,
    overwrite: bool,
    as_json: bool,
    model_args: tuple[str, ...],
    exclude: tuple[str, ...],
    **settings: Any,
) -> None:
    """Search how many bits each layer of MODEL needs, and train the weights that go with them.

    MODEL is path/to/file.py:factory or package.module:factory.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    if resume is not None:
        if model is not None or given or output is not None:
            raise ConfigError("--resume goes on with the recorded settings; it takes no model, output or other setting")
    else:
        needed = {"MODEL": model, "--data": settings["data"], "--target-bits": settings["target_bits"], "-o": output}
        if missing := [name for name, value in needed.items() if value is None]:
            raise ConfigError(f"search needs {', '.join(missing)} (or --resume RUN)")
    from csqtool.factories import parse_arguments
    from csqtool.search import SearchConfig, resume_search
    from csqtool.search import search as run_search
    from csqtool.search.progress import stderr_progress

    with stderr_progress() as progress:
        if resume is not None:
            summary = resume_search(resume, progress=progress)
        else:
            assert model is not None
            assert output is not None
            config = SearchConfig(model=model, model_args=parse_arguments(model_args), exclude=exclude, **given)
            summary = run_search(config, output, overwrite=overwrite, progress=progress)
    if as_json:
        print_json(summary)
        return
    run = resume or output
    before = "" if summary["metric_float"] is None else f"float {summary['metric_float']:.4f} → "
    click.echo(f"{summary['metric_name']}  {before}{summary['metric']:.4f}")
    click.echo(f"precision  {summary['average_precision']:.3f} planes a weight, target {summary['target_bits']:g}")
    click.echo(f"bit width  {summary['average_bit_width']:.3f} bits a weight in two's complement")
    tell(f"next: csqtool finalize {run} -o model.safetensors")
