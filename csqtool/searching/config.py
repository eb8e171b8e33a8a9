"""All settings of a search, frozen and complete; the run directory records them as ``config.json``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from csqtool.errors import ConfigError, nearest
from csqtool.searching.declarations import Declared, Setting, SettingError, Users, check, declared
from csqtool.searching.options import (
    BUILT_IN,
    FINETUNE_METHODS,
    MethodKind,
    Options,
    as_options,
    method_kind,
    method_kinds,
    option_owners,
)
from csqtool.searching.recipes import recipe_defaults
from csqtool.searching.targets import check_target


@dataclass(frozen=True)
class SearchConfig:
    """Settings of a search. `make` takes general settings and a method's options, and adds the recipe's defaults.

    Each setting is described in its declaration; `csqtool.searching.settings.reference` lists them all.

    Attributes:
        options: the options of the method, and of the one that finetunes, by name. A method is given its own as a
            record, see `options_of`.
    """

    model: Annotated[str | None, Setting("Factory of the model: file.py:name or module:name.")] = None
    data: Annotated[
        str | None,
        Setting(
            "digits, npz:FILE, imagefolder:DIR, webdataset:DIR, hf-datasets:DIR, cifar10:DIR, none:3x32x32, … or "
            "file.py:factory."
        ),
    ] = None
    target_bits: Annotated[
        float | None, Setting("Budget: planes a weight on average, 1 to 8; it is never exceeded.")
    ] = None
    target_size: Annotated[str | None, Setting("Budget: size of the packed file, such as 60KB.")] = None
    target_bops: Annotated[
        str | None, Setting("Budget: bit operations a sample, such as 1.5G; multiplications × weight × input bits.")
    ] = None
    size_profile: Annotated[
        Literal["archival", "inference"],
        Setting("What a target size counts: the file that pack writes (archival), or that of pack --inference."),
    ] = "archival"
    weights: Annotated[str | None, Setting("Start from these weights: safetensors or a torch checkpoint.")] = None
    act_bits: Annotated[
        int | None, Setting("Bits of the activations that feed weights, 2 to 8.", minimum=2, maximum=8, none="float")
    ] = None
    act_quantizer: Annotated[str, Setting("learned, pact, dorefa or dynamic.")] = "learned"
    method: Annotated[str, Setting("A method that searches or trains, or an allocator; see csqtool methods.")] = "csq"
    recipe: Annotated[Literal["default", "paper"], Setting("Where the other defaults come from.")] = "default"
    scheme: Annotated[
        str | None, Setting("Train the planes of this scheme.json instead of uniform ones.", users=Users.FIXED)
    ] = None
    pretrain_epochs: Annotated[float, Setting("Epochs of float training before the search.", minimum=0)] = 0
    epochs: Annotated[
        float, Setting("Epochs of the search, or of training with fixed bits; 0.5 is half an epoch. With an allocator "
                       "0 only rounds the weights.", minimum=0, finetune=True)
    ] = 20  # fmt: skip
    finetune_epochs: Annotated[
        float, Setting("Epochs after the search, with the scheme fixed.", minimum=0, users=Users.SEARCHING, unused=0)
    ] = 20
    finetune_with: Annotated[
        Literal["lsq", "csq", "entropy", "lq-nets", "zaq"],
        Setting("Finetune with learned step sizes (lsq), bit gates (csq), for the packed file's bytes (entropy), on a "
                "learned basis (lq-nets) or without data (zaq).", users=Users.FINETUNING, finetune=True),
    ] = "lsq"  # fmt: skip
    distill: Annotated[
        float, Setting("Share of the loss that the float model teaches, 0 to 1.", minimum=0, maximum=1, finetune=True)
    ] = 0.0
    budget_weighting: Annotated[
        Literal["elements", "layers"], Setting("The average is over weights, or over layers as in the CSQ paper.")
    ] = "elements"
    min_bits: Annotated[int, Setting("Planes that each layer keeps at least.", minimum=1, maximum=8)] = 1
    # Eight planes would give integers of nine bits, for which runtimes have no integer kernels.
    max_bits: Annotated[int, Setting("Planes that each layer keeps at most.", minimum=1, maximum=8)] = 7
    pin: Annotated[Mapping[str, int], Setting("Planes of matching layers. Repeatable.", metavar="PATTERN=BITS")] = (
        field(default_factory=dict)
    )
    exclude: Annotated[
        tuple[str, ...], Setting("Keep matching parameters in float. Repeatable.", metavar="PATTERN")
    ] = ()
    keep_output: Annotated[
        tuple[str, ...],
        Setting("Of a model of several outputs, keep this one in its files, not all. Repeatable.", metavar="NAME"),
    ] = ()
    contiguous: Annotated[
        bool, Setting("Close the holes of masks, so that precision k deploys as k + 1 bits.", users=Users.SEARCHING,
                      unused=False)
    ] = True  # fmt: skip
    repair: Annotated[
        bool,
        Setting("Keep or drop planes by measured loss until the budget is met.", users=Users.SHRINKING, unused=False),
    ] = True
    repair_samples: Annotated[
        int, Setting("Training samples that this loss is measured on.", minimum=1, users=Users.SHRINKING)
    ] = 512
    seed: Annotated[int, Setting("Seed of initialisation, order and augmentation.")] = 0
    task: Annotated[
        str | None,
        Setting(
            "The task, where the data name none: classification, regression, segmentation, multi-label, "
            "token-classification, language-modelling or super-resolution."
        ),
    ] = None
    planes: Annotated[int, Setting("Bit planes a layer, n.", minimum=1, maximum=8)] = 8
    batch_size: Annotated[int, Setting("Samples a step, over all processes.", minimum=1, finetune=True)] = 64
    optimizer: Annotated[Literal["sgd", "adamw"], Setting("The optimizer.", finetune=True)] = "sgd"
    learning_rate: Annotated[
        float, Setting("Learning rate of weights, BatchNorm and scales; it falls to zero along a cosine.", minimum=0,
                       finetune=True)
    ] = 0.05  # fmt: skip
    warmup_epochs: Annotated[
        float, Setting("Learning rates rise over this many epochs of each stage.", minimum=0, finetune=True)
    ] = 0.0
    momentum: Annotated[float, Setting("Momentum of SGD.", minimum=0, finetune=True)] = 0.9
    weight_decay: Annotated[float, Setting("Weight decay of float weights.", minimum=0, finetune=True)] = 5e-4
    decay_all: Annotated[
        bool, Setting("BatchNorm, biases and activation scales decay as float weights do.", finetune=True)
    ] = False
    amp: Annotated[
        Literal["auto", "no", "bf16"], Setting("Autocast of all but the gates; auto does it where it pays.",
                                               finetune=True)
    ] = "auto"  # fmt: skip
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Setting("Where to compute.", finetune=True)] = "auto"
    channels_last: Annotated[
        bool | None, Setting("Keep images in channels-last memory.", finetune=True, none="where it pays")
    ] = None
    compile: Annotated[
        Literal["auto", "yes", "no"], Setting("Fused gate and activation kernels; auto uses them where they pay.",
                                              finetune=True)
    ] = "auto"  # fmt: skip
    checkpoint_minutes: Annotated[float, Setting("Also save within an epoch, this often.", above=0, finetune=True)] = (
        10.0
    )
    tensorboard: Annotated[bool, Setting("Also write TensorBoard events into the run directory.", finetune=True)] = (
        False
    )
    profile: Annotated[
        bool, Setting("Also profile a few steps of each stage: tables and traces in the run directory.", finetune=True)
    ] = False
    model_args: Annotated[
        Mapping[str, Any],
        Setting("Argument of the factory. Repeatable.", metavar="NAME=VALUE", flag="--model-arg"),
    ] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self)
        object.__setattr__(self, "exclude", tuple(self.exclude))
        object.__setattr__(self, "keep_output", tuple(self.keep_output))
        used = settings_used(vars(self))
        for name, one in GENERAL.items():
            if name in used:
                continue
            unused = one.default if one.setting.unused is None else one.setting.unused
            if getattr(self, name) not in (one.default, unused):
                raise not_used(name, self.method)
            object.__setattr__(self, name, unused)
        for name in self.options:
            if name not in used:
                raise not_used(name, self.method)
        given = {name: self.options.get(name, one.default) for name, one in used.items() if name not in GENERAL}
        for name, one in used.items():
            if name in given:
                one.check(given[name])
        object.__setattr__(self, "options", given)
        self._check_together()

    def _check_together(self) -> None:
        """Check settings that depend on each other."""
        check_target(vars(self))
        if not self.epochs and not method_kind(self.method).allocates:
            raise SettingError("epochs", "must be above 0, got 0")
        if self.counts_bytes:
            self._check_counting_bytes()
        if self.min_bits > self.max_bits:
            raise ConfigError(f"min bits and max bits must be in order, got {self.min_bits} and {self.max_bits}")
        if not all(1 <= bits <= self.planes for bits in self.pin.values()):
            raise SettingError("pin", f"takes 1 to {self.planes} bits, got {dict(self.pin)}")
        if self.act_bits is None and self.act_quantizer != "learned":
            problem = f"{self.act_quantizer} has nothing to quantize: give act bits, 2 to 8"
            raise SettingError("act_quantizer", problem)
        if self.options.get("power_of_two_scales") and self.act_quantizer != "learned":
            raise SettingError("act_quantizer", "must be learned where scales are powers of two")

    @property
    def counts_bytes(self) -> bool:
        """Whether the last method trains for a size of the packed file."""
        return method_kind(self._last_method).counts_bytes

    @property
    def _last_method(self) -> str:
        if epochs_at_scheme(vars(self)):
            return FINETUNE_METHODS[self.finetune_with]
        return "lsq" if method_kind(self.method).allocates else self.method

    def _check_counting_bytes(self) -> None:
        if self.target_size is None:
            raise ConfigError(f"{self._last_method} trains for the packed file's bytes: give a target size")
        if self.min_bits > 1:
            raise SettingError("min_bits", f"does not go together with {self._last_method}, which needs no planes")

    def options_of(self, method: str) -> Options:
        """Return the options of the search's method, or of the one that finetunes, as the method's own record."""
        return as_options(method_kind(method).options, self.options)

    @classmethod
    def make(cls, where: str = "settings", /, **given: Any) -> SearchConfig:
        """Return the given settings and options, with the recipe's defaults for the others.

        Args:
            where: the beginning of messages; may be empty.
            given: general settings and options of the method, by name.

        Raises:
            SettingError: a setting has a wrong value, or the method does not use it.
            ConfigError: a setting is unknown, missing, or does not go together with another.
        """
        given = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in given.items()}
        with _placed(where):
            for name in given.keys() & GENERAL.keys():
                GENERAL[name].check(given[name])
            values = {**recipe_defaults(given), **given}
            used = settings_used(values)
            for name in given:
                if name not in used:
                    raise not_used(name, values.get("method", GENERAL["method"].default))
            return cls._from_flat({name: value for name, value in values.items() if name in used})

    @classmethod
    def from_json(cls, document: Mapping[str, Any], *, where: str) -> SearchConfig:
        """Return the settings that a run directory records; no defaults of a recipe are added.

        Settings that the method does not use are ignored: earlier versions recorded all.

        Raises:
            ConfigError: a key is unknown, missing, or its value is wrong.
        """
        if not isinstance(document, Mapping):
            raise ConfigError(f"{where}: expected an object with the settings, got {type(document).__name__}")
        with _placed(where):
            known = GENERAL.keys() | document.keys()
            if not document.keys() <= GENERAL.keys():
                known = GENERAL.keys() | option_owners().keys()
            for name in document:
                if name not in known:
                    raise ConfigError(f"unknown key {name!r}; {nearest(name, known)}")
                if name in GENERAL:
                    GENERAL[name].check(document[name])
            values = dict(document)
            if not method_kind(values.get("method", "csq")).searches:
                # Earlier versions trained methods of fixed bits for the sum of both.
                values["epochs"] = values.get("epochs", GENERAL["epochs"].default) + values.pop("finetune_epochs", 0)
            used = settings_used(values)
            return cls._from_flat({name: value for name, value in values.items() if name in used})

    @classmethod
    def _from_flat(cls, values: Mapping[str, Any]) -> SearchConfig:
        general = {name: value for name, value in values.items() if name in GENERAL}
        return cls(**general, options={name: value for name, value in values.items() if name not in GENERAL})

    def check_used(self, names: Iterable[str]) -> None:
        """Check that the search uses the settings of these names.

        Raises:
            SettingError: its method does not use one of them.
            ConfigError: one of them is unknown.
        """
        used = settings_used(vars(self))
        for name in names:
            if name not in used:
                raise not_used(name, self.method)

    def for_finetuning(self, changes: Mapping[str, Any]) -> SearchConfig:
        """Return the settings for finetuning the result of this search.

        Args:
            changes: settings that differ from the search's; ``finetune_with`` chooses the method.

        Raises:
            ConfigError: a setting is unknown, has a wrong value, or does not belong to that method.
        """
        changes = dict(changes)
        recipes = recipe_defaults({"recipe": self.recipe})
        fixed = method_kind(self.method).role == "trainer"
        usual = recipes.get("finetune_with", "lsq") if fixed else self.finetune_with
        finetune_with = changes.pop("finetune_with", usual)
        with _placed("finetune"):
            GENERAL["finetune_with"].check(finetune_with)
        given = {
            "epochs": self.finetune_epochs or self.epochs or GENERAL["epochs"].default,
            **changes,
            "method": FINETUNE_METHODS[finetune_with],
            "weights": None,
            "scheme": None,
            "pretrain_epochs": 0,
        }
        used = settings_used({**vars(self), **given})
        kept = {name: value for name, value in self.to_json().items() if name in used}
        return SearchConfig.make("finetune", **{**kept, **given})

    def to_json(self) -> dict[str, Any]:
        """Return the settings that the method uses as a flat JSON document."""
        used = settings_used(vars(self))
        document = {name: getattr(self, name) for name in GENERAL if name in used}
        plain = {name: dict(document[name]) for name in ("pin", "model_args")} | {
            "exclude": list(self.exclude),
            "keep_output": list(self.keep_output),
        }
        return {**document, **plain, **self.options}


GENERAL = declared(SearchConfig)  # the settings that belong to no method


@contextmanager
def _placed(where: str) -> Iterator[None]:
    """Put `where` before the messages of configuration errors."""
    try:
        yield
    except SettingError as error:
        raise SettingError(error.key, error.problem, where=where) from error
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from error


def settings_used(values: Mapping[str, Any]) -> dict[str, Declared]:
    """Return the settings and options that a search uses.

    Args:
        values: settings by name; the method, what finetunes, and the kind of budget are used.

    Raises:
        ConfigError: no such method is installed, or one of its options has the name of a general setting.
    """
    values = {name: values.get(name, one.default) for name, one in GENERAL.items()}
    method = values["method"]
    kind, sized = method_kind(method), values["target_size"] is not None
    found = {name: one for name, one in GENERAL.items() if is_used(one.setting.users, kind, sized=sized)}
    own = declared(kind.options)
    for name in own.keys() & GENERAL.keys():
        raise name_taken(name, method)
    if epochs_at_scheme(values):
        found |= declared(BUILT_IN[FINETUNE_METHODS[values["finetune_with"]]].options)
    return found | own


def epochs_at_scheme(values: Mapping[str, Any]) -> float:
    """Return for how many epochs weights are trained at a scheme that was found before; 0 for methods of fixed bits."""
    kind = method_kind(values["method"])
    return float(values["finetune_epochs"] if kind.searches else values["epochs"] if kind.allocates else 0)


def is_used(users: Users, kind: MethodKind, *, sized: bool) -> bool:
    """Return whether a method is among the users of a setting; `sized` if the budget is a size."""
    return {
        Users.ALL: True,
        Users.SEARCHING: kind.searches,
        Users.FIXED: kind.role == "trainer",
        Users.SHRINKING: kind.searches or sized,
        Users.FINETUNING: kind.role != "trainer",
    }[users]


def name_taken(name: str, method: str) -> ConfigError:
    """Return the error for an option that has the name of a general setting."""
    return ConfigError(f"the method {method} has an option {name}, which is the name of a general setting")


def not_used(name: str, method: str) -> ConfigError:
    """Return the error for a setting that a method does not use, or that is unknown."""
    if name in GENERAL:
        users = GENERAL[name].setting.users
        if users is Users.SHRINKING:
            return SettingError(name, f"is not an option of {method} without a target size")
        owners = [other for other, kind in method_kinds().items()
                  if is_used(users, kind, sized=False)]  # fmt: skip
        return SettingError(name, f"is not an option of {method}; it belongs to {', '.join(owners)}")
    found = option_owners()
    if name not in found:
        return ConfigError(f"unknown key {name!r}; {nearest(name, GENERAL.keys() | found.keys())}")
    finetuning = [with_ for with_, other in FINETUNE_METHODS.items()
                  if name in declared(BUILT_IN[other].options) and method_kind(method).role != "trainer"]  # fmt: skip
    more = f", and to finetuning with {finetuning[0]}" if finetuning else ""
    return SettingError(name, f"is not an option of {method}; it belongs to {', '.join(found[name])}{more}")
