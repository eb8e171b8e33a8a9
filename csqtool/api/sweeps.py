"""The verbs about many searches: `sweep`, `best`, `compare`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csqtool.api.given import PathLike, named_or_module, named_or_source, shown
from csqtool.errors import ConfigError
from csqtool.trust import trusting

if TYPE_CHECKING:
    from torch import nn

    from csqtool.comparing import Comparison
    from csqtool.progress import Progress
    from csqtool.sweeping.result import SweepResult, SweepRow
    from csqtool.task import Task


def sweep(
    model: nn.Module | str,
    run: PathLike,
    *,
    methods: str | Iterable[str] = ("csq",),
    target_sizes: str | Iterable[str] = (),
    target_bits: float | Iterable[float] = (),
    target_bops: str | Iterable[str] = (),
    seeds: int | Iterable[int] = (0,),
    jobs: int | None = None,
    cluster: str | None = None,
    data: Any = None,
    train: Any = None,
    test: Any = None,
    task: str | Task | None = None,
    trust_factory: str | Iterable[str] = (),
    progress: bool | Progress = False,
    **settings: Any,
) -> SweepResult:
    """Search at several budgets, with several methods and seeds, and compare the files.

    Every run is a search of its own, finalized and packed. A finished run is not repeated, and an interrupted one goes
    on, so the same call continues a sweep. Methods of fixed bits train for as many epochs as the others search and
    finetune together. With ``pretrain_epochs`` the float model is trained once, by the first run.

    Args:
        model: as in `search`. A name lets runs be processes of their own; a module stays in this one.
        run: the folder of the sweep, see `csqtool.sweeping`.
        methods: names, see `methods`; ``csq+entropy`` is csq whose result is finetuned with entropy.
        target_sizes: budgets in bytes of the packed file, such as ``60KB``.
        target_bits: budgets in planes a weight on average.
        target_bops: budgets in bit operations a sample, such as ``1.5G``.
        seeds: whole numbers; a run for each.
        jobs: runs at a time; None takes the machine's cores, and 1 if model or data are objects.
        cluster: the address of a Ray cluster that carries the runs out, such as ``auto`` (extra ``ray``); all its
            machines see the folder, the data and the model's file under the same paths. None takes this machine.
        data: as in `search`.
        train: as in `search`.
        test: as in `search`.
        task: as in `search`.
        trust_factory: as in `search`.
        progress: as in `search`; it is told of every run that ends.
        settings: of all runs, with the names that `search` has; an option goes to the methods that have it.

    Returns:
        The runs; `best` picks the smallest file within a limit.

    Raises:
        InputError: an argument cannot be used, or none of the runs could be done.
        CheckFailed: a run ended in an unexpected way; the same call tries it again.
        SearchInterrupted: Ctrl-C; the state is saved.
    """
    from csqtool.reporting.sweeps import draw
    from csqtool.sweeping.plan import SweepDirectory, compose
    from csqtool.sweeping.runner import read_sweep, run_plan

    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs must be at least 1, got {jobs}")
    named_model, module = named_or_module(model)
    source, named_data = named_or_source(data, train, test, task, settings.get("batch_size"))
    if source is None and "data" not in named_data:
        raise ConfigError("a sweep needs data")
    plan = compose(
        {**settings, **named_model, **named_data},
        methods=_several(methods, str),
        target_sizes=_several(target_sizes, str),
        target_bits=_several(target_bits, (int, float)),
        target_bops=_several(target_bops, str),
        seeds=_several(seeds, int),
    )
    folder = Path(run)
    with shown(progress) as told, trusting(trust_factory):
        try:
            return run_plan(plan, folder, jobs=jobs, cluster=cluster, progress=told, model=module, data=source)
        finally:
            directory = SweepDirectory(folder)
            if directory.is_sweep:
                draw(read_sweep(folder), directory.picture)


def compare(
    model: nn.Module | str,
    run: PathLike,
    *,
    methods: str | Iterable[str] = ("csq", "measured", "hawq-v3"),
    target_bits: float | None = None,
    target_size: str | None = None,
    target_bops: str | None = None,
    seeds: int | Iterable[int] = (0,),
    jobs: int | None = None,
    cluster: str | None = None,
    data: Any = None,
    train: Any = None,
    test: Any = None,
    task: str | Task | None = None,
    trust_factory: str | Iterable[str] = (),
    progress: bool | Progress = False,
    **settings: Any,
) -> Comparison:
    """Compare several methods at one budget, each down to verified ONNX and ``.csq`` files.

    It is a `sweep` with one budget, which goes on in the same way; its results are exported and verified.

    Args:
        model: as in `search`.
        run: the folder, see `csqtool.comparing`.
        methods: names, see `methods`; ``hawq-v3+csq`` is hawq-v3 whose scheme is trained with csq.
        target_bits: the budget in planes a weight on average; give this or one of the next two.
        target_size: the budget in bytes of the packed file, such as ``60KB``.
        target_bops: the budget in bit operations a sample, such as ``1.5G``.
        seeds: as in `sweep`.
        jobs: as in `sweep`.
        cluster: as in `sweep`.
        data: as in `search`.
        train: as in `search`.
        test: as in `search`.
        task: as in `search`.
        trust_factory: as in `search`.
        progress: as in `sweep`.
        settings: of all runs, as in `sweep`.

    Returns:
        The runs and their files; `passed` tells whether all files compute the same as PyTorch.

    Raises:
        InputError: an argument cannot be used, none of the runs could be done, or a network cannot be exported.
        CheckFailed: a run ended in an unexpected way; the same call tries it again.
        SearchInterrupted: Ctrl-C; the state is saved.
    """
    from csqtool.comparing import ship

    budgets = {"target_bits": target_bits, "target_sizes": target_size, "target_bops": target_bops}
    budget: dict[str, Any] = {name: value for name, value in budgets.items() if value is not None}
    if len(budget) != 1:
        raise ConfigError("compare needs one budget: give either target bits, a target size or target bops")
    source, _ = named_or_source(data, train, test, task, settings.get("batch_size"))
    trusted = [trust_factory] if isinstance(trust_factory, str) else list(trust_factory)
    trusted += [name for name in (model, data) if isinstance(name, str) and ":" in name]  # the runs' files name them
    with shown(progress) as told, trusting(trusted):
        found = sweep(
            model, run, methods=methods, seeds=seeds, jobs=jobs, cluster=cluster, data=data, train=train, test=test,
            task=task, progress=told, **budget, **settings,
        )  # fmt: skip
        return ship(found, model=None if isinstance(model, str) else model, data=source, progress=told)


def best(run: PathLike, *, max_drop: float = 0.5) -> SweepRow:
    """Return the run of a sweep with the smallest file whose metric is near enough to the float model's.

    Args:
        run: the folder of the sweep.
        max_drop: in percent of the metric's unit: 0.5 of an accuracy is half a percentage point.

    Raises:
        InputError: there is no sweep, no run is finished, or no file is within the limit.
    """
    from csqtool.sweeping.runner import read_sweep

    return read_sweep(Path(run)).best(max_drop=max_drop)


def _several(given: Any, kind: Any) -> list[Any]:
    return [given] if isinstance(given, kind) else list(given)
