"""The verbs that prove what a file does: `verify`, `bench`, `diff`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csqtool.api.given import PathLike, data_to_test_on, model_or_path, shown
from csqtool.errors import ConfigError
from csqtool.quantized_model import QuantizedModel
from csqtool.trust import trusting

if TYPE_CHECKING:
    from torch import nn

    from csqtool.benchmarking import BenchResult
    from csqtool.diffing import Change
    from csqtool.progress import Progress
    from csqtool.task import Task
    from csqtool.verifying import Gates, Tolerances, VerifyReport


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
    allow_unaccounted: Sequence[str] = (),
    save_inputs: PathLike | None = None,
    cc: str | None = None,
    target: str | None = None,
    bisect: bool = False,
    trust_factory: str | Sequence[str] = (),
    progress: bool | Progress = False,
    **limits: Any,
) -> VerifyReport:
    """Compare an exported file with the finalized model that it was made from.

    Args:
        file: an ``.onnx`` or ``.csq`` file, or a folder that ``--format c`` wrote, whose code is compiled and run.
        against: the finalized model, or its file.
        model: a module, which is copied, or a name; None builds the factory that the model records.
        data: test data: a data set, a `DataLoader`, or a source name; None takes those that the model records.
        task: the task for these data; None takes the task that the model records.
        gates: limits on what is measured; or give them one by one in `limits`.
        samples: compare this many test samples; None for all.
        backends: what runs ONNX files: ``onnxruntime``, ``onnxruntime:PROVIDER``, ``openvino``, ``qonnx``,
            ``reference``.
        tolerances: the thresholds up to which differences are accepted as rounding.
        threads: threads of one operator in the backends; 0 is their own choice.
        allow_unaccounted: parts of an ONNX graph, by name, that need not be explained by PyTorch's graph; the report
            names them.
        save_inputs: folder that inputs are written to on which the two sides disagree.
        cc: the compiler for a folder of C; None takes the first of ``cc``, ``gcc`` and ``clang`` that is installed.
        target: a device that a folder of C runs on as well, in a simulator: ``cortex-m4`` (QEMU).
        bisect: of an ONNX file, also name the smallest set of nodes whose removal or replacement by PyTorch's values
            makes it agree; the report has it as ``bisection``.
        trust_factory: factories that files may name although they are not the user's own code, see `csqtool.trust`.
        progress: as in `search`.
        limits: gates by name, such as ``max_metric_drop=0.01`` or ``max_size="60KB"``.

    Returns:
        The report; `passed` says whether every check holds.

    Raises:
        InputError: a file is missing or of another kind, or the model or data cannot be used.
    """
    from csqtool import sandbox

    sandbox.warm_up()  # while this process imports PyTorch
    from csqtool.verifying import Gates, Tolerances
    from csqtool.verifying.verification import verify_file

    if limits:
        if gates is not None:
            raise ConfigError(f"give either gates or {', '.join(limits)}, not both")
        gates = Gates.from_mapping(limits, where="verify")
    if tolerances is not None and not isinstance(tolerances, Tolerances):
        tolerances = Tolerances.from_mapping(tolerances, where="verify: tolerances")
    with shown(progress) as told, trusting(trust_factory):
        return verify_file(
            Path(file),
            model_or_path(against),
            model=model,
            data=data_to_test_on(data, task),
            gates=gates,
            samples=samples,
            backends=backends,
            tolerances=tolerances,
            threads=threads,
            allow_unaccounted=allow_unaccounted,
            save_inputs=None if save_inputs is None else Path(save_inputs),
            cc=cc,
            target=target,
            bisect=bisect,
            tell=told.line,
        )


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
