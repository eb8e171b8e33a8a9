"""``csqtool search`` and ``csqtool finetune``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from csqtool import documents
from csqtool.cli.output import print_json, process_index, tell
from csqtool.errors import ConfigError

if TYPE_CHECKING:
    from csqtool.searching.result import SearchResult

F = TypeVar("F", bound=Callable[..., Any])
FOLDER = click.Path(path_type=Path)


class ActBits(click.ParamType[Any]):
    """2 … 8, or ``float``."""

    name = "2…8|float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number of bits, or the word ``float``."""
        if value in (None, "float"):
            return value
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number of bits, 2 to 8, nor float", param, ctx)


def _setting(name: str, kind: Any, text: str, **more: Any) -> Callable[[F], F]:
    """Return an option whose default is the library's own, so that the two cannot differ."""
    flag = f"--{name.replace('_', '-')}"
    flag += f"/--no-{name.replace('_', '-')}" if kind is bool else ""
    return click.option(flag, name, type=kind, default=None, help=text, **more)


def _settings(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_training = _settings(
    _setting("epochs", float, "Epochs of the search, or of training with fixed bits. [default: 20]"),
    _setting("finetune_with", click.Choice(["lsq", "csq"]), "Learned step sizes, or bit gates again. [default: lsq]"),
    _setting("distill", float, "Share of the loss that the float model teaches, 0 to 1. [default: 0]"),
    _setting("batch_size", int, "Samples a step, over all processes. [default: 64]"),
    _setting("optimizer", click.Choice(["sgd", "adamw"]), "[default: sgd]"),
    _setting("learning_rate", float, "Of weights, BatchNorm and scales. [default: 0.05; adamw 0.001]"),
    _setting("gate_learning_rate", float, "Of the bit gates. [default: 3; adamw 0.1]"),
    _setting("warmup_epochs", float, "Learning rates rise over this many epochs of each phase. [default: 0]"),
    _setting("momentum", float, "Of SGD. [default: 0.9]"),
    _setting("weight_decay", float, "Of float weights. [default: 0.0005]"),
    _setting("gate_weight_decay", float, "Of gates, masks and their scales. [default: 0]"),
    _setting("decay_all", bool, "Let BatchNorm, biases and activation scales decay, too. [default: no]"),
    _setting("init", click.Choice(["csq", "paper"]), "A search's gates start from the weights, or as the authors' do."),
    _setting("gate_init", float, "Bit gates start at ± this. [default: 1]"),
    _setting("beta_max", float, "Gate temperature at the end. [default: 200]"),
    _setting("beta_schedule", click.Choice(["epoch", "step"]), "How often the temperature rises. [default: epoch]"),
    _setting("keep_norms", bool, "A layer's scale makes up for what a rise of β does to its norm. [default: yes]"),
    _setting("amp", click.Choice(["auto", "no", "bf16"]), "Autocast; gates stay in float32. [default: auto]"),
    _setting("device", click.Choice(["auto", "cpu", "cuda", "mps"]), "[default: auto]"),
    _setting("channels_last", bool, "Keep images in channels-last memory. [default: where it pays]"),
    _setting("compile", click.Choice(["auto", "yes", "no"]), "Fused gate and activation kernels. [default: auto]"),
    _setting("checkpoint_minutes", float, "Also save within an epoch, this often. [default: 10]"),
    _setting("tensorboard", bool, "Also write TensorBoard events into the run directory. [default: no]"),
)  # fmt: skip


@click.command()
@click.argument("model", required=False)
@_setting("data", str, "digits, cifar10:DIR, cifar100:DIR, imagefolder:DIR, npz:FILE or file.py:factory.")
@_setting("target_bits", float, "Budget: planes a weight on average, 1 to 8.")
@_setting("target_size", str, "Budget: size of the packed file, such as 60KB.")
@click.option("-o", "--output", type=FOLDER, help="The run directory to write.")
@_setting("weights", str, "Start from these weights: safetensors or a torch checkpoint.")
@_setting("act_bits", ActBits(), "Bits of the activations that feed weights. [default: float]")
@_setting("act_quantizer", str, "learned, pact, dorefa or dynamic. [default: learned]")
@_setting("method", str, "See csqtool methods. [default: csq]")
@_setting("recipe", click.Choice(["default", "paper"]), "Where the other defaults come from.")
@_setting("scheme", str, "With a method of fixed bits: train the planes of this scheme.json.")
@_setting("pretrain_epochs", float, "Epochs of float training before the search. [default: 0]")
@_setting("finetune_epochs", float, "Epochs behind it, with the scheme fixed. [default: 20]")
@_setting("budget_weighting", click.Choice(["elements", "layers"]), "What the average is over. [default: elements]")
@_setting("min_bits", int, "Planes that each layer keeps at least. [default: 1]")
@_setting("max_bits", int, "Planes that each layer keeps at most. [default: 7]")
@click.option("--pin", "pins", multiple=True, metavar="PATTERN=BITS", help="Planes of matching layers. Repeatable.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Keep matching parameters in float. Repeatable.")
@_setting("contiguous", bool, "Close the holes of masks. [default: yes]")
@_setting("repair", bool, "Meet the budget exactly, by measured loss. [default: yes]")
@_setting("repair_samples", int, "Training samples that this loss is measured on. [default: 512]")
@_setting("seed", int, "Seed of everything random. [default: 0]")
@_setting("task", str, "classification or regression, where the data name no task.")
@_setting("mask_learning_rate", float, "Learning rate of the mask gates. [default: 0.1; adamw 0.01]")
@_setting("mask_momentum", float, "Momentum of the mask gates. [default: 0]")
@_setting("mask_init", float, "Mask gates of plane b start at (b + 1) times this. [default: 0.05]")
@_setting("strength", float, "Strength λ of the budget's regularization. [default: 0.01]")
@_setting("element_pressure", bool, "λ presses on a plane in proportion to its weights. [default: yes]")
@_setting("planes", int, "Bit planes a layer. [default: 8]")
@_training
@click.option(
    "--model-arg", "model_args", multiple=True, metavar="NAME=VALUE", help="Argument of the factory. Repeatable."
)
@click.option("--resume", type=FOLDER, metavar="RUN", help="Go on with an interrupted search.")
@click.option("--overwrite", is_flag=True, help="Replace a run that is in the run directory.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def search(
    model: str | None,
    output: Path | None,
    resume: Path | None,
    overwrite: bool,
    as_json: bool,
    model_args: tuple[str, ...],
    pins: tuple[str, ...],
    exclude: tuple[str, ...],
    **settings: Any,
) -> None:
    """Search how many bits each layer of MODEL needs, and train the weights that go with them.

    MODEL is path/to/file.py:factory or package.module:factory.
    """
    from csqtool.factories import parse_arguments

    given = _given(settings)
    for key, value in (("model", model), ("model_args", parse_arguments(model_args)), ("pin", _pins(pins)),
                       ("exclude", exclude)):  # fmt: skip
        if value:
            given[key] = value
    if resume is None:
        needed = {"MODEL": "model" in given, "--data": "data" in given, "-o": output is not None,
                  "--target-bits or --target-size": bool({"target_bits", "target_size"} & set(given))}  # fmt: skip
        if missing := [name for name, there in needed.items() if not there]:
            raise ConfigError(f"search needs {', '.join(missing)} (or --resume RUN)")
    elif output is not None:
        raise ConfigError("--resume goes on in its own run directory; it takes no -o")
    import csqtool

    found = csqtool.search(run=output, resume=resume, overwrite=overwrite, progress=True, **given)
    _print_summary(found, as_json)


@click.command()
@click.argument("run", type=FOLDER)
@click.option("-o", "--output", type=FOLDER, required=True, help="The run directory to write.")
@_training
@click.option("--overwrite", is_flag=True, help="Replace a run that is in the run directory.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def finetune(run: Path, output: Path, overwrite: bool, as_json: bool, **settings: Any) -> None:
    """Train the weights of the finished search in RUN on, with its scheme fixed."""
    import csqtool

    found = csqtool.finetune(run, output, overwrite=overwrite, progress=True, **_given(settings))
    _print_summary(found, as_json)


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    given = {key: value for key, value in settings.items() if value is not None}
    if given.get("act_bits") == "float":
        given["act_bits"] = None
    return given


def _pins(pins: tuple[str, ...]) -> dict[str, int]:
    found = {}
    for pin in pins:
        pattern, equals, bits = pin.rpartition("=")
        if not equals or not bits.isdigit():
            raise ConfigError(f"--pin {pin!r}: write PATTERN=BITS, such as classifier.weight=8")
        found[pattern] = int(bits)
    return found


def _print_summary(found: SearchResult, as_json: bool) -> None:
    if process_index() > 0:
        return
    summary = found.summary
    if as_json:
        print_json(documents.plain(summary))
        return
    before = "" if summary.metric_float is None else f"float {summary.metric_float:.4f} → "
    unit = {"bytes": "bytes packed", "layers": "planes a layer", "elements": "planes a weight"}[summary.budget_unit]
    click.echo(f"{summary.metric_name}  {before}{summary.metric:.4f}")
    click.echo(f"budget     {summary.cost:,.6g} {unit} of {summary.budget:,.6g}")
    click.echo(f"precision  {summary.average_precision:.3f} planes a weight")
    click.echo(f"bit width  {summary.average_bit_width:.3f} bits a weight in two's complement")
    tell(f"next: csqtool finalize {found.run} -o model.safetensors")
