"""The verbs that make a model: `check`, `quantize`, `search`, `finetune`, `finalize`, `run`, `init`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csqtool.api.given import PathLike, model_source, named_or_module, named_or_source, shown
from csqtool.errors import ConfigError, nearest
from csqtool.quantized_model import QuantizedModel
from csqtool.trust import trusting

if TYPE_CHECKING:
    from torch import nn

    from csqtool.checking import CheckReport
    from csqtool.pipeline_runner import PipelineResult
    from csqtool.progress import Progress
    from csqtool.searching.config import SearchConfig
    from csqtool.searching.result import SearchResult
    from csqtool.task import Task


def search(
    model: nn.Module | str | None = None,
    *,
    data: Any = None,
    train: Any = None,
    test: Any = None,
    task: str | Task | None = None,
    run: PathLike | None = None,
    resume: PathLike | None = None,
    overwrite: bool = False,
    check: bool = False,
    trust_factory: str | Sequence[str] = (),
    progress: bool | Progress = False,
    **settings: Any,
) -> SearchResult:
    """Search how many bits each layer needs, and train the weights for these bit widths.

    Args:
        model: a module, which is copied and never changed, or a name such as ``net.py:build``.
        data: training and test data together: a source name such as ``digits``, or a pair (train, test).
        train: training data: a map-style data set, a `DataLoader`, or any iterable of batches (inputs, targets) that
            can be iterated again.
        test: test data, likewise.
        task: the name of a task, such as ``segmentation``, or an object with a loss and a metric (`csqtool.task.Task`);
            None takes the one that the data name, or classification.
        run: the run directory to write; it makes the search resumable. None keeps none.
        resume: a run directory: go on with the search in it. A model and data that were given as objects are given
            again; settings may be left out.
        overwrite: replace a run that is in the run directory.
        check: first export and verify the untrained network, as `csqtool.check` does, and tell `progress` the result.
        trust_factory: factories that files may name although they are not the user's own code, see `csqtool.trust`.
        progress: True shows a bar in terminals and plain lines elsewhere; or an object that is told of every step.
        settings: ``target_bits``, ``target_size`` or ``target_bops``, ``act_bits``, ``method``, ``epochs`` and so on,
            with the names of the command's options; see `csqtool.SearchConfig`.

    Returns:
        The result; its `finalize()` gives the integers.

    Raises:
        InputError: the model, the data, a setting or the folder cannot be used, or training diverged.
        SearchInterrupted: Ctrl-C; with a run directory, the state is saved.
    """
    from csqtool.searching import runs
    from csqtool.searching.config import SearchConfig

    named, module = named_or_module(model)
    given = {**settings, **named}
    source, named_data = named_or_source(data, train, test, task, settings.get("batch_size"))
    given |= named_data
    with shown(progress) as told, trusting(trust_factory):
        if resume is not None:
            if run is not None or overwrite:
                raise ConfigError("resume continues in its own run directory; leave out run and overwrite")
            return runs.resume(Path(resume), given=given, model=module, data=source, progress=told)
        if model is None or (source is None and "data" not in given):
            raise ConfigError(f"search needs {'a model' if model is None else 'data'} (or resume)")
        config = SearchConfig.make("", **given)
        look = partial(_look_ahead, config, told, model=module, data=source) if check else None
        folder = None if run is None else Path(run)
        return runs.begin(
            config, folder, model=module, data=source, overwrite=overwrite, progress=told, look_ahead=look
        )


def _look_ahead(config: SearchConfig, told: Progress, **given: Any) -> None:
    from csqtool.checking import look_ahead  # it imports the verifier

    look_ahead(config, told, **given)


def check(
    model: nn.Module | str,
    *,
    data: Any = None,
    train: Any = None,
    test: Any = None,
    task: str | Task | None = None,
    progress: bool | Progress = False,
    **settings: Any,
) -> CheckReport:
    """Look before the leap: trace, round, export and verify a network before any training.

    Args:
        model: as in `search`.
        data: as in `search`.
        train: as in `search`.
        test: as in `search`.
        task: as in `search`.
        progress: as in `search`.
        settings: of the search that may follow: ``target_bits`` (3 if nothing is given), ``act_bits``, ``exclude`` …

    Returns:
        What is quantized and what is not and why, sizes, time an epoch, and whether the exported file computes the
        same as PyTorch.

    Raises:
        InputError: the model, the data or a setting cannot be used, or the network cannot be exported.
    """
    from csqtool import checking
    from csqtool.searching.config import SearchConfig
    from csqtool.searching.targets import has_target

    if not has_target(settings):
        settings["target_bits"] = 3.0
    named_model, module = named_or_module(model)
    source, named_data = named_or_source(data, train, test, task, settings.get("batch_size"))
    with shown(progress) as told:
        config = SearchConfig.make("", **named_model, **named_data, **settings)
        return checking.check(config, model=module, data=source, progress=told)


def quantize(
    model: nn.Module | str,
    calibration: Any = None,
    *,
    allocator: str = "output-error",
    samples: int = 1024,
    steps: int = 400,
    batch_norm: bool = True,
    equalize: bool | None = None,
    reconstruct: str = "lsq",
    ranges: str = "mse",
    drop_activations: float = 0.0,
    task: str | Task | None = None,
    progress: bool | Progress = False,
    **settings: Any,
) -> QuantizedModel:
    """Quantize a trained network without training on labels, in minutes.

    Args:
        model: a trained module, which is copied and never changed, or a name such as ``net.py:build``.
        calibration: inputs alone: an array or tensor [N, …], a `DataLoader`, or a list of batches [B, …]; or data as
            `search` takes them for training, or a source name; only some allocators look at their labels.
        allocator: what allots the planes: ``output-error`` measures how much each layer's rounding changes the
            network's outputs, without labels; or an allocator of ``csqtool methods``. Most need labels.
        samples: how many of them are read.
        steps: of the reconstruction against the float network; 0 rounds to the nearest.
        batch_norm: re-estimate BatchNorm's statistics on the samples, augmented where their source does that.
        equalize: move scales of channels between layers that follow each other where that lowers the output error of
            rounded weights; the network stays the same, but the file's biases and BatchNorms are not yours. None does
            so where nothing is trained.
        reconstruct: what is trained: ``lsq``, latent weights and step sizes; ``adaround``, rounding gates; or ``csq``,
            CSQ's bit gates.
        ranges: of activations: ``mse``, of least squared error; ``percentile``, without 0.01 % of the values; or
            ``min-max``.
        drop_activations: share of activation values, 0 to 1, that a step of the reconstruction does not round (QDrop).
        task: the task that the file records, as in `search`.
        progress: as in `search`.
        settings: ``target_bits`` (planes a weight on average, without the sign), ``target_size`` or ``target_bops``,
            ``act_bits``, ``weights``, ``pin``, ``exclude``, ``min_bits``, ``max_bits``, ``batch_size``, ``seed`` …,
            and the allocator's own, such as ``hessian_steps``.

    Raises:
        InputError: the model, the data or a setting cannot be used, or the budget cannot be met.
    """
    from csqtool import quantizing
    from csqtool.nn.ranges import RANGES
    from csqtool.reconstruction import RECONSTRUCTIONS
    from csqtool.searching.config import SearchConfig, not_used
    from csqtool.searching.options import method_kinds
    from csqtool.searching.settings import quantize_settings

    allocators = {name: kind for name, kind in method_kinds().items() if kind.allocates}
    if allocator not in (quantizing.OUTPUT_ERROR, *allocators):
        names = ", ".join((quantizing.OUTPUT_ERROR, *allocators))
        raise ConfigError(f"allocator must be one of {names}, got {allocator!r}")
    if unused := sorted(set(settings) - set(quantize_settings(allocator))):
        if unused[0] in quantize_settings():
            raise not_used(unused[0], allocator)
        raise ConfigError(f"quantize has no setting {unused[0]!r}; {nearest(unused[0], quantize_settings())}")
    for name, value, least in (("samples", samples, 2), ("steps", steps, 0)):
        if value < least:
            raise ConfigError(f"{name} must be at least {least}, got {value}")
    if not 0 <= drop_activations <= 1:
        raise ConfigError(f"drop_activations must be 0 to 1, got {drop_activations:g}")
    for name, chosen, known in (("reconstruct", reconstruct, RECONSTRUCTIONS), ("ranges", ranges, RANGES)):
        if chosen not in known:
            raise ConfigError(f"{name} must be one of {', '.join(known)}, got {chosen!r}")
    if calibration is None:
        raise ConfigError("quantize needs calibration data: inputs, or a source name")
    named_model, module = named_or_module(model)
    labelled = allocator in allocators and allocators[allocator].data == "labelled"
    source = quantizing.calibration_data(
        calibration, task, settings.get("batch_size"), labels_for=allocator if labelled else None
    )
    named_data = {} if source.source is None else {"data": source.source}
    method = {"method": allocator, "epochs": 0} if allocator in allocators else {}
    with shown(progress) as told:
        config = SearchConfig.make("", **named_model, **named_data, **method, **settings)
        return quantizing.quantize(
            config,
            samples=samples,
            steps=steps,
            batch_norm=batch_norm,
            equalize=not steps if equalize is None else equalize,
            reconstruct=reconstruct,
            ranges=ranges,
            drop_activations=drop_activations,
            data=source,
            model=module,
            progress=told,
        )


def finetune(
    run: SearchResult | PathLike,
    output: PathLike | None = None,
    *,
    model: nn.Module | str | None = None,
    data: Any = None,
    train: Any = None,
    test: Any = None,
    task: str | Task | None = None,
    overwrite: bool = False,
    trust_factory: str | Sequence[str] = (),
    progress: bool | Progress = False,
    **settings: Any,
) -> SearchResult:
    """Finetune the weights of a finished search, with its scheme fixed.

    Args:
        run: a result, or a run directory.
        output: the run directory to write; None keeps none.
        model: as in `search`; None takes the search's own.
        data: as in `search`; None takes the search's own, as for the next three.
        train: as in `search`.
        test: as in `search`.
        task: as in `search`.
        overwrite: replace an earlier run in the run directory.
        trust_factory: factories that files may name although they are not the user's own code, see `csqtool.trust`.
        progress: as in `search`.
        settings: those that differ from the search's: ``epochs``, ``finetune_with``, ``learning_rate`` and so on.

    Raises:
        InputError: `run` holds no finished search, or a setting or folder cannot be used.
        SearchInterrupted: Ctrl-C; with a run directory, the state is saved.
    """
    from csqtool.searching import runs

    source, named_data = named_or_source(data, train, test, task)
    with shown(progress) as told, trusting(trust_factory):
        return runs.train_on(
            run if not isinstance(run, str | Path) else Path(run),
            None if output is None else Path(output),
            model=model_source(model),
            data=source,
            overwrite=overwrite,
            progress=told,
            **settings,
            **named_data,
        )


def finalize(
    run: SearchResult | PathLike,
    output: PathLike | None = None,
    *,
    model: nn.Module | str | None = None,
    data: Any = None,
    train: Any = None,
    test: Any = None,
    task: str | Task | None = None,
    trust_factory: str | Sequence[str] = (),
) -> QuantizedModel:
    """Turn a finished search into signed integers, scales and bit widths.

    Args:
        run: a result, or a run directory.
        output: the ``.safetensors`` file to write; None writes none.
        model: the module, if the run was given an object.
        data: as in `search`, if the run was given objects; the same for the next three.
        train: as in `search`.
        test: as in `search`.
        task: as in `search`.
        trust_factory: factories that files may name although they are not the user's own code, see `csqtool.trust`.

    Raises:
        InputError: `run` holds no finished search, or `output` cannot be written.
    """
    from csqtool.data import as_source
    from csqtool.finalized_file import write_finalized
    from csqtool.searching.runs import load_finished

    if isinstance(run, str | Path):
        source, named = named_or_source(data, train, test, task)
        if "data" in named:
            source = as_source(**named)
        with trusting(trust_factory):
            run = load_finished(Path(run), model=model_source(model), data=source)
    quantized = run.finalize()
    if output is not None:
        write_finalized(quantized, Path(output))
    return quantized


def run(
    pipeline: PathLike, *, check: bool = False, dry_run: bool = False, progress: bool | Progress = False
) -> PipelineResult:
    """Run a whole pipeline from its TOML file; stages whose inputs have not changed are skipped.

    Args:
        pipeline: the file.
        check: as in `search`, where a search begins.
        dry_run: only find out which stages would be run: the result's `stages` says so, and nothing is written. With
            `check`, its `estimate` is the time and memory of a search that would be run, from a few training steps.
        progress: as in `search`.

    Raises:
        InputError: the pipeline file, or something it names, cannot be used.
        SearchInterrupted: Ctrl-C; the next run continues.
    """
    from csqtool.pipeline_runner import run_pipeline

    with shown(progress) as told:
        return run_pipeline(Path(pipeline), check=check, dry_run=dry_run, progress=told, tell=told.line)


def init(folder: PathLike = ".") -> list[Path]:
    """Write a starter project: a model, its data, a pipeline and jobs for GitHub and GitLab.

    Raises:
        InputError: one of the files already exists, or the folder cannot be written; nothing is replaced.
    """
    from csqtool.starting import init as write

    return write(Path(folder))
