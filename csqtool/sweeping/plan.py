"""What a sweep runs: methods × budgets × seeds, with the settings of each run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec

from csqtool import documents
from csqtool.errors import ConfigError, FormatError, InputError
from csqtool.factories import find_source
from csqtool.files import locked, sha256, write_json
from csqtool.fingerprints import fingerprint
from csqtool.searching.config import GENERAL, SearchConfig, not_used, settings_used
from csqtool.searching.options import FINETUNE_METHODS, method_kind, method_kinds
from csqtool.searching.recipes import recipe_defaults
from csqtool.searching.targets import TARGETS
from csqtool.sweeping.result import Outcome
from csqtool.text import parse_operations, parse_size

Settings = dict[str, Any]
FILES = ("model", "data", "weights", "scheme")  # settings that name files


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``sweep.json``.

    Attributes:
        runs: the settings of each run, by the run's name.
        inputs: digests of the files that the settings name, and versions of packages; empty if it has not begun.
    """

    runs: dict[str, Settings]
    inputs: dict[str, str | None] = {}


class SweepDirectory:
    """The folder of a sweep; nothing is read or written before a method is called.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan = path / "sweep.json"
        self.table = path / "table.md"
        self.picture = path / "front.svg"

    def __str__(self) -> str:
        return str(self.path)

    @property
    def is_sweep(self) -> bool:
        """Whether a sweep was begun here."""
        return self.plan.is_file()

    def run(self, name: str) -> Path:
        """Return the run directory of a run."""
        return self.path / "runs" / name

    def model(self, name: str) -> Path:
        """Return the finalized model of a run."""
        return self.path / "files" / f"{name}.safetensors"

    def packed(self, name: str) -> Path:
        """Return the packed model of a run."""
        return self.path / "files" / f"{name}.csq"

    def result(self, name: str) -> Path:
        """Return where the figures of a run are."""
        return self.path / "results" / f"{name}.json"

    def log(self, name: str) -> Path:
        """Return what a run told."""
        return self.path / "logs" / f"{name}.log"

    def locked(self) -> AbstractContextManager[None]:
        """Lock the folder until the block ends, or the process does.

        Raises:
            InputError: the folder cannot be created, or another process sweeps in it.
        """
        return locked(self.path, f"another sweep is at work in {self}; wait for it, or name another folder")

    def read_plan(self) -> Plan:
        """Return the settings of all runs.

        Raises:
            InputError: no sweep was begun here.
            FormatError: the file is damaged.
        """
        if not self.is_sweep:
            raise InputError(f"{self} holds no sweep (no {self.plan.name})")
        found = documents.read(Plan, self.plan)
        for name, settings in found.runs.items():
            check_name(name, where=str(self.plan))
            SearchConfig.from_json(settings, where=f"{self.plan}: {name}")
            if "method" not in settings:
                raise FormatError(f"{self.plan}: {name}: method is missing")
        return found

    def begin(self, plan: Plan) -> None:
        """Add the runs of `plan` to those that are recorded.

        Raises:
            ConfigError: a run of the same name was begun with other settings, or model, data or weights have changed.
            InputError: a file that the settings name is missing.
        """
        recorded = self.read_plan() if self.is_sweep else Plan({})
        runs, inputs = recorded.runs, dict(recorded.inputs)
        # Runs of the same files have the same digests; data folders take a while to read.
        different = {tuple(settings.get(key) for key in FILES): settings for settings in plan.runs.values()}
        for settings in different.values():
            for what, found in inputs_of(settings).items():
                if inputs.setdefault(what, found) != found:
                    raise ConfigError(f"{what} has changed since the sweep in {self} was begun: name another folder")
        for name, settings in plan.runs.items():
            if name in runs and runs[name] != settings:
                before = runs[name]
                other = next(key for key in before | settings if before.get(key, ...) != settings.get(key, ...))
                raise ConfigError(
                    f"the run {name} in {self} was begun with {other} {before.get(other, 'left out')!r}, not "
                    f"{settings.get(other, 'left out')!r}: give the same settings to continue, or name another folder"
                )
        write_json(self.plan, {"runs": runs | plan.runs, "inputs": inputs})

    def outcome(self, name: str) -> Outcome | None:
        """Return how a run ended; None if it has not.

        Raises:
            FormatError: the file is damaged.
        """
        path = self.result(name)
        return documents.read(Outcome, path) if path.is_file() else None


def inputs_of(settings: Settings) -> dict[str, str | None]:
    """Return digests of the files that settings name, and versions of packages.

    Of the model's code only its own file is known; see `csqtool.fingerprints`.

    Raises:
        InputError: a file is missing.
    """
    config = SearchConfig.from_json(settings, where="sweep")
    found = fingerprint(config)
    if config.model is not None:
        where = config.model.rpartition(":")[0]
        if where.endswith(".py"):
            found[f"the file {where}"] = sha256(find_source(where))
    names = {"data": f"the data {config.data}", "weights": f"the file {config.weights}", "csqtool": "csqtool's version"}
    return {names.get(name, name): value for name, value in found.items()}


def check_name(name: str, *, where: str) -> None:
    """Check that the name of a run can be that of a file.

    Raises:
        ConfigError: it cannot.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}", name):
        raise ConfigError(f"{where}: {name!r} cannot name a run: use letters, digits, '.', '_', '+' and '-'")


def compose(
    settings: Mapping[str, Any],
    *,
    methods: Sequence[str],
    target_bits: Sequence[float] = (),
    target_sizes: Sequence[str] = (),
    target_bops: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
) -> Plan:
    """Return a plan: every method at every budget with every seed.

    Methods of fixed bits train for as many epochs as the others search and finetune together.

    Args:
        settings: of all runs; an option goes to the methods that have it.
        methods: names; ``csq+entropy`` is csq whose result is finetuned with entropy.
        target_bits: budgets in planes a weight.
        target_sizes: budgets in bytes of the packed file, such as ``60KB``.
        target_bops: budgets in bit operations a sample, such as ``1.5G``.
        seeds: whole numbers.

    Raises:
        ConfigError: a list is empty, names something twice, or a setting is wrong or used by none of the methods.
    """
    budgets: list[tuple[str, Settings]] = [(f"{bits:g}bits", {"target_bits": float(bits)}) for bits in target_bits]
    budgets += [(re.sub(r"\s", "", size), {"target_size": size}) for size in target_sizes if parse_size(size)]
    budgets += [(f"{count.strip()}bops", {"target_bops": count}) for count in target_bops if parse_operations(count)]
    choices = "budget (--target-size, --target-bits or --target-bops)"
    for what, given in (("method", methods), (choices, budgets), ("seed", seeds)):
        if not given:
            raise ConfigError(f"a sweep needs at least one {what}")
    for what in ("method", "seed", *TARGETS, "finetune_with"):
        if what in settings:
            raise ConfigError(f"{what} is one of the lists of a sweep, not a setting of all runs")
    unused = set(settings)
    runs: dict[str, Settings] = {}
    for method in methods:
        for label, budget in budgets:
            values, left = _of_method(method, {**settings, **budget})
            unused &= left
            for seed in seeds:
                name = f"{method}-{label}-seed{seed}"
                check_name(name, where="sweep")
                if name in runs:
                    raise ConfigError(f"{name} is asked for twice")
                runs[name] = SearchConfig.make(name, **values, seed=seed).to_json()
    if unused:
        raise not_used(min(unused), methods[0])
    return Plan(runs)


def _of_method(method: str, settings: Settings) -> tuple[Settings, set[str]]:
    """Return a method's settings, and the names of those that it does not use."""
    name, plus, finetune_with = method.partition("+")
    chosen: Settings = {"method": name}
    kind = method_kind(name)
    if plus:
        if kind.role == "trainer" or finetune_with not in FINETUNE_METHODS:
            searching = [one for one, other in method_kinds().items() if other.role != "trainer"]
            raise ConfigError(
                f"{method!r} is no method of a sweep; write METHOD, or METHOD+FINETUNING with one of "
                f"{', '.join(searching)} and one of {', '.join(FINETUNE_METHODS)}"
            )
        chosen["finetune_with"] = finetune_with
    values = {**settings, **chosen}
    if not kind.searches:
        defaults = recipe_defaults(values)
        epochs, finetune_epochs = (
            values.get(key, defaults.get(key, GENERAL[key].default)) for key in ("epochs", "finetune_epochs")
        )
        values["epochs"] = epochs + finetune_epochs
        values.pop("finetune_epochs", None)
    used = settings_used({**recipe_defaults(values), **values})
    left = {key for key in settings if key not in used}
    if not kind.searches:
        left -= {"finetune_epochs"}
    return {key: value for key, value in values.items() if key in used}, left
