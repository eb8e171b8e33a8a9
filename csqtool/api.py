"""The functions of the Python interface: what the command line does, with objects.

Models are `torch.nn.Module` objects or names; data are data sets, loaders, pairs of them, or names; finalized models
are `QuantizedModel` objects or files. Nothing is written unless a path is given, and nothing is printed unless
``progress=True``. Each function imports what it needs when it is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csqtool.errors import ConfigError
from csqtool.quantized_model import QuantizedModel

if TYPE_CHECKING:
    from torch import nn

    from csqtool.benchmarking import BenchResult
    from csqtool.data import DataSource
    from csqtool.diffing import Change
    from csqtool.exporting import Exported
    from csqtool.model_source import ModelSource
    from csqtool.pipeline import PipelineResult
    from csqtool.progress import Progress
    from csqtool.searching.result import SearchResult
    from csqtool.task import Task
    from csqtool.verifying import Gates, Tolerances, VerifyReport

PathLike = str | Path


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
    progress: bool | Progress = False,
    **settings: Any,
) -> SearchResult:
    """Search how many bits each layer needs, and train the weights that go with them.

    Args:
        model: a module, which is copied and never changed, or a name such as ``net.py:build``.
        data: training and test data together: a source name such as ``digits``, or a pair (train, test).
        train: training data: a map-style data set, a `DataLoader`, or any iterable of batches (inputs, targets) that
            can be iterated again.
        test: test data, likewise.
        task: ``classification``, ``regression``, or an object with a loss and a metric (`csqtool.task.Task`);
            None takes the one that the data name, or classification.
        run: the run directory to write; it makes the search resumable. None keeps none.
        resume: a run directory: go on with the search in it. A model and data that were given as objects are given
            again; settings may be left out.
        overwrite: replace a run that is in the run directory.
        progress: True shows a bar in terminals and plain lines elsewhere; or an object that is told of every step.
        settings: ``target_bits`` or ``target_size``, ``act_bits``, ``method``, ``epochs`` and so on, with the names
            of the command's options; see `csqtool.SearchConfig`.

    Returns:
        The result; its `finalize()` gives the integers.

    Raises:
        InputError: the model, the data, a setting or the folder cannot be used, or training diverged.
        SearchInterrupted: Ctrl-C; with a run directory, the state is saved.
    """
    from csqtool.searching import runs
    from csqtool.searching.config import SearchConfig

    named, module = _model(model)
    given = {**settings, **named}
    source, named_data = _data(data, train, test, task, settings.get("batch_size"))
    given |= named_data
    with _progress(progress) as told:
        if resume is not None:
            if run is not None or overwrite:
                raise ConfigError("resume goes on in its own run directory; leave out run and overwrite")
            return runs.resume(Path(resume), given=given, model=module, data=source, progress=told)
        if model is None or (source is None and "data" not in given):
            raise ConfigError(f"search needs {'a model' if model is None else 'data'} (or resume)")
        config = SearchConfig.make(where="", **given)
        folder = None if run is None else Path(run)
        return runs.begin(config, folder, model=module, data=source, overwrite=overwrite, progress=told)


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
    progress: bool | Progress = False,
    **settings: Any,
) -> SearchResult:
    """Train the weights of a finished search on, with its scheme fixed.

    Args:
        run: a result, or a run directory.
        output: the run directory to write; None keeps none.
        model: as in `search`; None takes the search's own.
        data: as in `search`; None takes the search's own, as for the next three.
        train: as in `search`.
        test: as in `search`.
        task: as in `search`.
        overwrite: replace a run that is in the run directory.
        progress: as in `search`.
        settings: those that differ from the search's: ``epochs``, ``finetune_with``, ``learning_rate`` and so on.

    Raises:
        InputError: `run` holds no finished search, or a setting or folder cannot be used.
        SearchInterrupted: Ctrl-C; with a run directory, the state is saved.
    """
    from csqtool.searching import runs

    source, named_data = _data(data, train, test, task)
    with _progress(progress) as told:
        return runs.train_on(
            run if not isinstance(run, str | Path) else Path(run),
            None if output is None else Path(output),
            model=_model_source(model),
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
) -> QuantizedModel:
    """Turn a finished search into signed integers, scales and bit widths.

    Args:
        run: a result, or a run directory.
        output: the ``.safetensors`` file to write; None writes none.
        model: the module of a run that was given one as an object.
        data: as in `search`, for a run that was given objects, as the next three.
        train: as in `search`.
        test: as in `search`.
        task: as in `search`.

    Raises:
        InputError: `run` holds no finished search, or `output` cannot be written.
    """
    from csqtool.data import as_source
    from csqtool.finalized_file import write_finalized
    from csqtool.searching.runs import load_finished

    if isinstance(run, str | Path):
        source, named = _data(data, train, test, task)
        if "data" in named:
            source = as_source(**named)
        run = load_finished(Path(run), model=_model_source(model), data=source)
    quantized = run.finalize()
    if output is not None:
        write_finalized(quantized, Path(output))
    return quantized


def save(quantized: QuantizedModel, path: PathLike) -> None:
    """Write a finalized model as a safetensors file, atomically.

    Raises:
        InputError: the file cannot be written.
    """
    from csqtool.finalized_file import write_finalized

    write_finalized(quantized, Path(path))


def load(path: PathLike) -> QuantizedModel:
    """Read a finalized model: a ``.safetensors`` file of `finalize`, or a packed ``.csq`` file.

    Raises:
        InputError: the file is missing.
        FormatError: it is damaged, or of another kind.
    """
    from csqtool import csq
    from csqtool.files import read_bytes
    from csqtool.finalized_file import read_finalized

    path = Path(path)
    if path.suffix == ".csq":
        return csq.read_csq(read_bytes(path), where=str(path))
    return read_finalized(path)


def to_torch(quantized: QuantizedModel | PathLike, model: nn.Module | str | None = None) -> nn.Module:
    """Return the finalized network in PyTorch, in evaluation mode: the reference of every comparison.

    Its weights are exactly ``float32(q) * scale``, and its activations are rounded where the model says so.

    Args:
        quantized: a finalized model, or its file.
        model: a module, which is copied, or a name; None builds the factory that the model records.

    Raises:
        InputError: the module does not match, or none is given and none is recorded.
    """
    from csqtool.rebuild import rebuilt_net

    finalized, near = _finalized(quantized)
    net: nn.Module = rebuilt_net(finalized, factory=model, near=near)
    return net


def export(
    quantized: QuantizedModel | PathLike,
    output: PathLike,
    *,
    format: str | None = None,  # noqa: A002 - the verb's word
    model: nn.Module | str | None = None,
    data: Any = None,
    **options: Any,
) -> Exported:
    """Write a finalized model in a deployable format.

    Args:
        quantized: a finalized model, or its file.
        output: the file to write.
        format: the format's name, see `formats`; None takes it from the suffix of `output`.
        model: a module, which is copied, or a name; None builds the factory that the model records. Formats that
            carry a graph need it.
        data: test data that the export measures on, where an option makes it measure; None takes those that the model
            records.
        options: options of the format, such as ``weights="int8"`` for ``onnx``.

    Raises:
        InputError: the format or an option is unknown, the model cannot be carried, or the output cannot be written.
        CheckFailed: the file would not hold a condition that an option sets; nothing is written.
    """
    from csqtool.exporting import export as write
    from csqtool.exporting import format_of

    output = Path(output)
    finalized = Path(quantized) if isinstance(quantized, str | Path) else quantized
    return write(finalized, output, format=format or format_of(output), model=model, data=_test(data), options=options)


def pack(
    quantized: QuantizedModel | PathLike,
    output: PathLike,
    *,
    model: nn.Module | str | None = None,
    data: Any = None,
    **options: Any,
) -> Exported:
    """Write a finalized model as one bit-packed ``.csq`` file.

    Args:
        quantized: a finalized model, or its file.
        output: the file to write.
        model: as in `export`; needed for ``with_graph`` and ``float16``.
        data: test data that decide about ``float16``; None takes those that the model records.
        options: ``encoding``, ``with_graph``, ``float16``, ``max_metric_change``; see `csqtool.packing.pack`.

    Raises:
        InputError: the output cannot be written, or float16 is refused.
    """
    from csqtool.packing import pack as write

    finalized = Path(quantized) if isinstance(quantized, str | Path) else quantized
    return write(finalized, Path(output), model=model, data=_test(data), **options)


def unpack(file: PathLike, output: PathLike | None = None) -> QuantizedModel:
    """Turn a ``.csq`` file back into the finalized model that was packed.

    Args:
        file: the ``.csq`` file.
        output: the file to write: the finalized model, bit for bit, or with the suffix ``.onnx`` the ONNX file that
            was packed with it. None writes none.

    Raises:
        InputError: `file` is missing, damaged or no ``.csq`` file, or `output` cannot be written.
    """
    from csqtool.packing import unpack as read

    return read(Path(file), None if output is None else Path(output))


def verify(
    file: PathLike,
    against: QuantizedModel | PathLike,
    *,
    model: nn.Module | str | None = None,
    data: Any = None,
    task: str | Task | None = None,
    gates: Gates | None = None,
    samples: int | None = None,
    backends: Sequence[str] = ("onnxruntime",),
    tolerances: Tolerances | Mapping[str, float] | None = None,
    threads: int = 0,
    progress: bool | Progress = False,
    **limits: Any,
) -> VerifyReport:
    """Compare an exported file with the finalized model that it was made from.

    Args:
        file: an ``.onnx`` or ``.csq`` file.
        against: the finalized model, or its file.
        model: a module, which is copied, or a name; None builds the factory that the model records.
        data: test data: a data set, a `DataLoader`, or a source name; None takes those that the model records.
        task: what they are judged by; None takes the task that the model records.
        gates: limits on what is measured; or give them one by one in `limits`.
        samples: compare this many test samples, None all.
        backends: what runs ONNX files: ``onnxruntime``, ``onnxruntime:PROVIDER``, ``openvino``, ``reference``.
        tolerances: what is still rounding.
        threads: threads of one operator in the backends, 0 their own choice.
        progress: as in `search`.
        limits: gates by name, such as ``max_metric_drop=0.01`` or ``max_size="60KB"``.

    Returns:
        The report; `passed` says whether every check holds.

    Raises:
        InputError: a file is missing or of another kind, or the model or data cannot be used.
    """
    from csqtool.verifying import Gates, Tolerances
    from csqtool.verifying.verification import verify_file

    if limits:
        if gates is not None:
            raise ConfigError(f"give either gates or {', '.join(limits)}, not both")
        gates = Gates.from_mapping(limits, where="verify")
    if tolerances is not None and not isinstance(tolerances, Tolerances):
        tolerances = Tolerances.from_mapping(tolerances, where="verify: tolerances")
    with _progress(progress) as told:
        return verify_file(
            Path(file),
            Path(against) if isinstance(against, str | Path) else against,
            model=model,
            data=_test(data, task),
            gates=gates,
            samples=samples,
            backends=backends,
            tolerances=tolerances,
            threads=threads,
            tell=told.line,
        )


def inspect(path: PathLike) -> dict[str, Any]:
    """Explain a file or run directory that csqtool writes, as a JSON document.

    Raises:
        InputError: the file is missing, damaged, or of a kind that csqtool does not write.
    """
    from csqtool.inspecting import inspect as explain

    return explain(Path(path))[1]


def bench(
    files: PathLike | Iterable[PathLike],
    *,
    threads: int = 1,
    batch: int = 1,
    sizes: Mapping[str, int] | None = None,
    rounds: int = 50,
) -> list[BenchResult]:
    """Measure ONNX files in onnxruntime, side by side: latency, load time, memory, bytes, kernels.

    Args:
        files: one file or several; ratios are to the first.
        threads: threads of one operator.
        batch: samples a run.
        sizes: sizes of other dynamic axes, by name or number.
        rounds: runs of each file, interleaved.

    Raises:
        InputError: a file is missing or cannot be run, or a number is wrong.
    """
    from csqtool.benchmarking import bench as measure

    paths = [files] if isinstance(files, str | Path) else list(files)
    return measure([Path(file) for file in paths], threads=threads, batch=batch, sizes=sizes, rounds=rounds)


def diff(a: PathLike, b: PathLike) -> list[Change]:
    """Return what changed from `a` to `b`: two finalized models, or two reports of ``verify --json``.

    Raises:
        InputError: a file is missing or of neither kind, or they are of different kinds.
    """
    from csqtool.diffing import diff as compare

    return compare(Path(a), Path(b))


def report(sources: PathLike | Iterable[PathLike], output: PathLike, *, bench: bool = False) -> Path:
    """Write one HTML page about runs and files, to look at and to pass on.

    Args:
        sources: run directories, outputs of pipelines, pipeline files, finalized models, ``.csq`` and ``.onnx``
            files, and what ``verify --json`` and ``bench --json`` wrote.
        output: the ``.html`` file to write.
        bench: measure the latency of the ONNX files among them, now.

    Raises:
        InputError: a source is missing, damaged or of another kind, or `output` cannot be written.
    """
    from csqtool.reporting import report as write

    paths = [sources] if isinstance(sources, str | Path) else list(sources)
    return write([Path(path) for path in paths], Path(output), bench=bench)


def run(pipeline: PathLike, *, progress: bool | Progress = False) -> PipelineResult:
    """Run a whole pipeline from its TOML file; stages whose inputs have not changed are skipped.

    Raises:
        InputError: the pipeline file, or something it names, cannot be used.
        SearchInterrupted: Ctrl-C; the next run goes on.
    """
    from csqtool.pipeline import run_pipeline

    with _progress(progress) as told:
        return run_pipeline(Path(pipeline), progress=told, tell=told.line)


def init(folder: PathLike = ".") -> list[Path]:
    """Write a starter project: a model, its data, a pipeline and jobs for GitHub and GitLab.

    Raises:
        InputError: one of the files is there already, or the folder cannot be written; nothing is replaced.
    """
    from csqtool.starting import init as write

    return write(Path(folder))


def methods() -> dict[str, dict[str, Any]]:
    """Return the installed search methods by name: a ``description``, and the ``options`` that each has of its own."""
    from csqtool.searching.declarations import declared
    from csqtool.searching.options import METHODS, method_kind

    return {
        name: {"description": text, "options": list(declared(method_kind(name).options))}
        for name, text in METHODS.descriptions().items()
    }


def formats() -> dict[str, str]:
    """Return the installed export formats, and a line about each."""
    from csqtool.exporting import EXPORTERS

    return EXPORTERS.descriptions()


def _model(model: nn.Module | str | None) -> tuple[dict[str, Any], ModelSource | None]:
    """Return a model as a setting, where it is a name, and as a source, where it is a module."""
    if model is None:
        return {}, None
    if isinstance(model, str):
        return {"model": model}, None
    return {}, _model_source(model)


def _model_source(model: nn.Module | str | None) -> ModelSource | None:
    from csqtool.model_source import ModelSource

    return None if model is None else ModelSource.of(model)


def _data(
    data: Any, train: Any, test: Any, task: str | Task | None, batch_size: int | None = None
) -> tuple[DataSource | None, dict[str, Any]]:
    """Return data as a source, where they are objects, and as settings, where they are names."""
    objects = train is not None or test is not None or not (data is None or isinstance(data, str))
    if not objects and (task is None or isinstance(task, str)):
        return None, {name: value for name, value in (("data", data), ("task", task)) if value is not None}
    from csqtool.data import as_source

    return as_source(data, train=train, test=test, task=task, batch_size=batch_size), {}


def _test(data: Any, task: str | Task | None = None) -> DataSource | str | None:
    """Return test data: a name without a task stays one, so that the recorded task goes with it."""
    if data is None or (isinstance(data, str) and task is None):
        return data
    from csqtool.data import as_source

    return as_source(data, task=task, needs=("test",))


def _finalized(quantized: QuantizedModel | PathLike) -> tuple[QuantizedModel, Path | None]:
    """Return a finalized model, and its file if it comes from one."""
    if isinstance(quantized, str | Path):
        return load(quantized), Path(quantized)
    return quantized, None


@contextmanager
def _progress(progress: bool | Progress) -> Iterator[Progress]:
    from csqtool.progress import Silent, stderr_progress

    if progress is True:
        with stderr_progress() as shown:
            yield shown
    else:
        yield progress or Silent()
