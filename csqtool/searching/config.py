"""Everything that decides a search, frozen and complete; it stands in the run directory as ``config.json``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from csqtool.errors import ConfigError, nearest
from csqtool.text import parse_size

RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    # CSQ, section IV-A for ResNet-20, and what the authors' code does where the paper is silent. VGG19-BN takes 300
    # epochs; ImageNet 200 and 100 of finetuning, a warm-up of 5 and a weight decay of 1e-4.
    "paper": {
        "epochs": 600,
        "finetune_epochs": 0,
        "finetune_with": "csq",
        "batch_size": 128,
        "learning_rate": 0.1,
        "gate_learning_rate": 0.1,
        "mask_learning_rate": 0.1,
        "mask_momentum": 0.9,
        "weight_decay": 5e-4,
        "gate_weight_decay": 5e-4,
        "decay_all": True,
        "amp": "no",
        "channels_last": False,
        "init": "paper",
        "budget_weighting": "elements",
        "element_pressure": False,
        "keep_norms": False,
        "max_bits": 8,
        "contiguous": False,
        "repair": False,
    },
}
# Adam's steps do not grow with the gradient, so its rates are of another kind.
ADAMW_RATES = {"learning_rate": 1e-3, "gate_learning_rate": 0.1, "mask_learning_rate": 0.01}
CHOICES = {
    "budget_weighting": ("elements", "layers"),
    "optimizer": ("sgd", "adamw"),
    "beta_schedule": ("epoch", "step"),
    "finetune_with": ("lsq", "csq"),
    "init": ("csq", "paper"),
    "amp": ("auto", "no", "bf16"),
    "compile": ("auto", "yes", "no"),
}


@dataclass(frozen=True)
class SearchConfig:
    """Settings of a search; `make` fills in a recipe's.

    Attributes:
        model: factory of the model, ``file.py:name`` or ``module:name``.
        data: data source, see `csqtool.data.load_data`.
        target_bits: average precision to reach, in planes a weight; 1 … 8. Never exceeded.
        target_size: size of the packed file instead, such as ``60KB``.
        model_args: keyword arguments of the factory.
        task: built-in task for data that name none.
        weights: file to start from; None starts from the factory's own initialisation.
        scheme: a ``scheme.json`` whose planes a method of fixed bits shall train, instead of uniform ones.
        recipe: where the defaults come from: ``default`` or ``paper``.
        method: search method, see ``csqtool methods``.
        budget_weighting: the average is over weight ``elements``, or over ``layers`` as the paper's rates count.
        min_bits, max_bits: planes that each layer keeps at least and at most; eight planes would give integers of
            nine bits, for which runtimes have no integer kernels.
        pin: pattern of parameter names to the planes that matching layers keep.
        exclude: patterns of parameter names that stay in float.
        contiguous: close the holes of masks, so that precision k deploys as k + 1 bits.
        repair: keep or drop planes by measured loss until the budget is met.
        repair_samples: training samples that the loss is measured on.
        act_bits: bits of the activations that feed weights; None keeps activations in float.
        act_quantizer: ``learned``, ``pact``, ``dorefa`` or ``dynamic``, see `csqtool.nn.activation`.
        pretrain_epochs: epochs of float training before the search.
        epochs: epochs of the search; with a method of fixed bits, of training. All three may be broken: with many
            samples a search of half an epoch does.
        finetune_epochs: epochs behind the search, with the scheme fixed.
        finetune_with: ``lsq`` trains latent weights and step sizes, ``csq`` the bit gates with β rewound to 1.
        distill: share of the loss that the float model teaches, 0 … 1.
        batch_size: samples a step, over all processes.
        seed: seeds initialisation, order and augmentation.
        optimizer: ``sgd`` or ``adamw``.
        learning_rate: of weights, biases, BatchNorm and scales; cosine-annealed to zero.
        gate_learning_rate: of the bit gates m_p, m_n.
        mask_learning_rate: of the mask gates m_B.
        warmup_epochs: the learning rates of each phase rise over this many epochs.
        momentum: of SGD.
        mask_momentum: of the mask gates; with none they follow the budget without overshooting.
        weight_decay: on float weights alone.
        gate_weight_decay: on gates, masks and their scales.
        decay_all: BatchNorm, biases and activation scales decay as float weights do.
        strength: base regularization strength λ (CSQ, eq. 7).
        element_pressure: the budget presses on a plane in proportion to the weights it costs; else on all alike.
        beta_max: gate temperature at the end.
        beta_schedule: the temperature rises once an ``epoch`` or every ``step``.
        keep_norms: a layer's scale makes up for what a rise of the temperature does to its weight's norm.
        planes: bit planes a layer, n.
        init: gates whose planes are searched start from the weights (``csq``) or as the authors' do (``paper``).
        gate_init: bit gates start at ±this.
        mask_init: the mask gate of plane b starts at (b + 1) times this.
        amp: ``bf16`` autocasts everything but the gate arithmetic, ``no`` nothing; ``auto`` does where that pays.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        channels_last: keep images in channels-last memory; None does where that pays.
        compile: fused kernels for gates and activation quantizers: ``auto`` where it pays, ``yes``, ``no``.
        checkpoint_minutes: also save within an epoch, this often.
        tensorboard: also write the log as TensorBoard events.
    """

    model: str
    data: str
    target_bits: float | None = None
    target_size: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    task: str | None = None
    weights: str | None = None
    scheme: str | None = None
    recipe: str = "default"
    method: str = "csq"
    budget_weighting: str = "elements"
    min_bits: int = 1
    max_bits: int = 7
    pin: Mapping[str, int] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    contiguous: bool = True
    repair: bool = True
    repair_samples: int = 512
    act_bits: int | None = None
    act_quantizer: str = "learned"
    pretrain_epochs: float = 0
    epochs: float = 20
    finetune_epochs: float = 20
    finetune_with: str = "lsq"
    distill: float = 0.0
    batch_size: int = 64
    seed: int = 0
    optimizer: str = "sgd"
    learning_rate: float = 0.05
    gate_learning_rate: float = 3.0
    mask_learning_rate: float = 0.1
    warmup_epochs: float = 0.0
    momentum: float = 0.9
    mask_momentum: float = 0.0
    weight_decay: float = 5e-4
    gate_weight_decay: float = 0.0
    decay_all: bool = False
    strength: float = 0.01
    element_pressure: bool = True
    beta_max: float = 200.0
    beta_schedule: str = "epoch"
    keep_norms: bool = True
    planes: int = 8
    init: str = "csq"
    gate_init: float = 1.0
    mask_init: float = 0.05
    amp: str = "auto"
    device: str = "auto"
    channels_last: bool | None = None
    compile: str = "auto"
    checkpoint_minutes: float = 10.0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "exclude", tuple(self.exclude))
        checks = [
            (1 <= self.planes <= 8, f"planes must be 1 to 8, got {self.planes}"),
            (
                (self.target_bits is None) != (self.target_size is None),
                "give either target bits or a target size, and not both",
            ),
            (
                self.target_bits is None or 1 <= self.target_bits <= self.planes,
                f"target bits must be 1 to {self.planes} (the planes of a search), got {self.target_bits}",
            ),
            (self.target_size is None or parse_size(self.target_size) > 0, "target size must be above 0"),
            (
                self.target_size is None or self.budget_weighting == "elements",
                "a target size counts bytes: leave out the budget weighting, or give target bits",
            ),
            (
                1 <= self.min_bits <= self.max_bits <= 8,
                f"min bits and max bits must be 1 to 8 and in order, got {self.min_bits} and {self.max_bits}",
            ),
            (
                all(1 <= bits <= self.planes for bits in self.pin.values()),
                f"pinned bits must be 1 to {self.planes}, got {dict(self.pin)}",
            ),
            (
                self.act_bits is None or 2 <= self.act_bits <= 8,
                f"activation bits must be 2 to 8 or float, got {self.act_bits}",
            ),
            (
                self.act_bits is not None or self.act_quantizer == "learned",
                f"the activation quantizer {self.act_quantizer} has nothing to quantize: give act bits, 2 to 8",
            ),
            (0 <= self.distill <= 1, f"distill is a share of 0 to 1, got {self.distill:g}"),
            (self.beta_max >= 1, f"beta max must be at least 1, got {self.beta_max:g}"),
            (self.gate_init > 0, f"gate init must be above 0, got {self.gate_init:g}"),
            (self.epochs > 0, f"epochs must be above 0, got {self.epochs:g}"),
            (self.checkpoint_minutes > 0, f"checkpoint minutes must be above 0, got {self.checkpoint_minutes:g}"),
        ]
        checks += [
            (getattr(self, name) >= 1, f"{name.replace('_', ' ')} must be at least 1, got {getattr(self, name)}")
            for name in ("batch_size", "repair_samples")
        ]
        checks += [
            (getattr(self, name) >= 0, f"{name.replace('_', ' ')} must not be negative, got {getattr(self, name):g}")
            for name in ("pretrain_epochs", "finetune_epochs", "learning_rate", "gate_learning_rate", "strength",
                         "mask_learning_rate", "momentum", "mask_momentum", "weight_decay", "gate_weight_decay",
                         "mask_init", "warmup_epochs")
        ]  # fmt: skip
        for holds, message in checks:
            if not holds:
                raise ConfigError(message)
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"{name.replace('_', ' ')}: {nearest(getattr(self, name), known)}")

    @classmethod
    def make(cls, *, where: str = "settings", **given: Any) -> SearchConfig:
        """Return the settings that are given, and the recipe's for the others.

        Raises:
            ConfigError: a setting is unknown, missing, or has a wrong value.
        """
        recipe = given.get("recipe", "default")
        if not isinstance(recipe, str) or recipe not in RECIPES:
            raise ConfigError(f"unknown recipe {recipe!r}; {nearest(str(recipe), RECIPES)}")
        rates = ADAMW_RATES if given.get("optimizer") == "adamw" else {}
        return cls.from_json({**RECIPES[recipe], **rates, **given}, where=where)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as a JSON document."""
        return {
            **dataclasses.asdict(self),
            "exclude": list(self.exclude),
            "model_args": dict(self.model_args),
            "pin": dict(self.pin),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any], *, where: str) -> SearchConfig:
        """Return the settings in a JSON or TOML document, none of them from a recipe.

        Raises:
            ConfigError: a key is unknown, missing, or its value has the wrong type.
        """
        if not isinstance(document, Mapping):
            raise ConfigError(f"{where}: expected an object with the settings, got {type(document).__name__}")
        fields = {f.name: f for f in dataclasses.fields(cls)}
        for key, value in document.items():
            if key not in fields:
                raise ConfigError(f"{where}: unknown key {key!r}; {nearest(key, fields)}")
            if not _fits(value, str(fields[key].type)):
                raise ConfigError(f"{where}: {key} must be {fields[key].type}, got {value!r}")
        if missing := [n for n in ("model", "data") if n not in document]:
            raise ConfigError(f"{where}: {', '.join(missing)} missing")
        try:
            return cls(**document)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error


def _fits(value: Any, annotation: str) -> bool:
    """Tell whether a JSON value fits a field's annotation."""
    kinds: dict[str, tuple[type, ...]] = {
        "str": (str,), "int": (int,), "float": (int, float), "None": (type(None),),
        "tuple[str, ...]": (list, tuple), "Mapping[str, Any]": (dict,), "Mapping[str, int]": (dict,), "bool": (bool,),
    }  # fmt: skip
    allowed = [kind for part in annotation.split(" | ") for kind in kinds[part]]
    if isinstance(value, list | tuple):
        return isinstance(value, tuple(allowed)) and all(isinstance(item, str) for item in value)
    if isinstance(value, bool):
        return bool in allowed
    if isinstance(value, int | float) and not abs(value) < 1e300:  # NaN is not, either
        return False
    if annotation == "Mapping[str, int]" and isinstance(value, dict):
        return all(_fits(item, "int") for item in value.values())
    return isinstance(value, tuple(allowed))
