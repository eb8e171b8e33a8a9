"""The verbs that show: `inspect`, `sensitivity`, `blame`, `report`, `methods`, `formats`, `doctor`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csqtool.api.given import PathLike, data_to_test_on, named_or_module, named_or_source, shown
from csqtool.errors import ConfigError
from csqtool.quantized_model import QuantizedModel
from csqtool.trust import trusting

if TYPE_CHECKING:
    from torch import nn

    from csqtool.blaming import BlameReport
    from csqtool.installation import Finding
    from csqtool.layer_sensitivity import SensitivityReport
    from csqtool.progress import Progress
    from csqtool.task import Task


def inspect(path: PathLike) -> dict[str, Any]:
    """Explain a file or run directory that csqtool writes, as a JSON document.

    Raises:
        InputError: the file is missing, damaged, or of a kind that csqtool does not write.
    """
    from csqtool.inspecting import inspect as explain

    return explain(Path(path))[1]


def sensitivity(
    model: nn.Module | str,
    *,
    data: Any = None,
    train: Any = None,
    test: Any = None,
    samples: int = 512,
    planes: Sequence[int] = (1, 2, 3, 4),
    probes: int = 8,
    output: PathLike | None = None,
    picture: PathLike | None = None,
    task: str | Task | None = None,
    progress: bool | Progress = False,
    **settings: Any,
) -> SensitivityReport:
    """Measure how much the rounding of each layer costs, one layer at a time, at each number of planes.

    Args:
        model: as in `csqtool.search`; trained, or with ``weights``.
        data: as in `csqtool.search`, as for the next two.
        train: as in `csqtool.search`.
        test: as in `csqtool.search`.
        samples: training samples that are read.
        planes: numbers of planes that each layer is rounded to.
        probes: random vectors for the trace of the loss's second derivative; 0 leaves it out.
        output: the ``.json`` file to write, which `report` shows; None writes none.
        picture: the ``.svg`` file to draw; None draws none.
        task: as in `csqtool.search`.
        progress: as in `csqtool.search`.
        settings: ``weights``, ``exclude``, ``device``, ``seed``, ``model_args``.

    Raises:
        InputError: the model, the data or a setting cannot be used, or a file cannot be written.
    """
    from csqtool import documents
    from csqtool.files import write_json
    from csqtool.layer_sensitivity import measure_sensitivity
    from csqtool.reporting.sensitivities import draw
    from csqtool.searching.config import SearchConfig

    for name, value, least in (("samples", samples, 2), ("probes", probes, 0)):
        if value < least:
            raise ConfigError(f"{name} must be at least {least}, got {value}")
    named_model, module = named_or_module(model)
    source, named_data = named_or_source(data, train, test, task)
    if source is None and "data" not in named_data:
        raise ConfigError("sensitivity needs data")
    with shown(progress) as told:
        config = SearchConfig.make("", **{"target_bits": 3.0, **settings}, **named_model, **named_data)
        found = measure_sensitivity(
            config, sample_count=samples, planes=planes, probes=probes, data=source, model=module, progress=told
        )
    if output is not None:
        write_json(Path(output), documents.plain(found))
    if picture is not None:
        draw(found, Path(picture))
    return found


def blame(
    source: QuantizedModel | PathLike,
    *,
    model: nn.Module | str | None = None,
    weights: PathLike | None = None,
    data: Any = None,
    task: str | Task | None = None,
    samples: int = 1000,
    output: PathLike | None = None,
    picture: PathLike | None = None,
    trust_factory: str | Sequence[str] = (),
    progress: bool | Progress = False,
) -> BlameReport:
    """Measure each part's share of what a finalized model lost against the float network.

    Args:
        source: a finalized model, its file, or the run directory of a finished search.
        model: the float network, which is copied, or a factory; None builds the recorded one.
        weights: the float network's weights; None takes those of `model`, or those that the run began with.
        data: test data: a data set, a `DataLoader`, or a source name; None takes those that are recorded.
        task: the task for these data; None takes the recorded one.
        samples: test samples that are read.
        output: the ``.json`` file to write, which `report` shows; None writes none.
        picture: the ``.svg`` file to draw; None draws none.
        trust_factory: factories that files may name although they are not the user's own code, see `csqtool.trust`.
        progress: as in `csqtool.search`.

    Raises:
        InputError: a file is missing or of another kind, or there are no float weights.
    """
    from csqtool import documents
    from csqtool.blaming import blame_model
    from csqtool.files import write_json
    from csqtool.finalized_file import read_finalized
    from csqtool.nn.reparametrized import load_and_fold
    from csqtool.nn.state_dict import read_state
    from csqtool.rebuild import rebuilt_data, rebuilt_module
    from csqtool.reporting.blames import draw
    from csqtool.searching.run_directory import RunDirectory

    if samples < 1:
        raise ConfigError(f"samples must be at least 1, got {samples}")
    near = None if isinstance(source, QuantizedModel) else Path(source)
    given = data_to_test_on(data, task)
    with shown(progress) as told, trusting(trust_factory):
        if near is not None and near.is_dir():
            from csqtool.api.make import finalize

            directory = RunDirectory(near)
            finalized = finalize(near, model=model, data=data, task=task)
            if weights is None and directory.float_weights.is_file():
                weights = directory.float_weights
            near = directory.config
        else:
            finalized = source if isinstance(source, QuantizedModel) else read_finalized(Path(source))
        if weights is None and (model is None or isinstance(model, str)):
            raise ConfigError(f"{near or 'the finalized model'} holds no float weights; give --weights FILE")
        module = rebuilt_module(finalized, factory=model, near=near)
        if weights is not None:
            load_and_fold(module, read_state(Path(weights)), str(weights))
        found = blame_model(
            finalized, module, rebuilt_data(finalized, data=given, near=near).for_model(module),
            sample_count=samples, progress=told,
        )  # fmt: skip
    if output is not None:
        write_json(Path(output), documents.plain(found))
    if picture is not None:
        draw(found, Path(picture))
    return found


def report(sources: PathLike | Iterable[PathLike], output: PathLike, *, bench: bool = False) -> Path:
    """Write a self-contained HTML page about runs and files.

    Args:
        sources: run directories, outputs of pipelines, pipeline files, finalized models, ``.csq`` and ``.onnx``
            files, folders of C, and what ``verify --json`` and ``bench --json`` wrote.
        output: the ``.html`` file to write.
        bench: also measure the latency of the ONNX files among them.

    Raises:
        InputError: a source is missing, damaged or of another kind, or `output` cannot be written.
    """
    from csqtool.reporting import report as write

    paths = [sources] if isinstance(sources, str | Path) else list(sources)
    return write([Path(path) for path in paths], Path(output), bench=bench)


def methods() -> dict[str, dict[str, Any]]:
    """Return the installed methods by name, each with four facts.

    ``kind``: an ``allocator`` finds the planes of each layer from the float model, a ``trainer`` trains the weights at
    given planes, and some methods do ``both`` at once. ``data``: what it needs, ``none``, ``unlabelled`` or
    ``labelled``. ``description``: a line. ``options``: the names of its own.
    """
    from csqtool.searching.declarations import declared
    from csqtool.searching.options import ALLOCATORS, METHODS, method_kind

    found = {}
    for name, text in sorted((ALLOCATORS.descriptions() | METHODS.descriptions()).items()):
        kind = method_kind(name)
        options = list(declared(kind.options))
        found[name] = {"kind": kind.role, "data": kind.data, "description": text, "options": options}
    return found


def formats() -> dict[str, str]:
    """Return the installed export formats by name, each with a one-line description."""
    from csqtool.exporting import EXPORTERS

    return EXPORTERS.descriptions()


def doctor() -> list[Finding]:
    """Return what is installed, and what is missing for which feature: packages, extras, compilers, devices."""
    from csqtool.installation import examine

    return examine()
