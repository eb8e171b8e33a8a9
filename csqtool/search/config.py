"""Everything that decides a search, frozen and complete; it stands in the run directory as ``config.json``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from csqtool.errors import ConfigError, nearest


@dataclass(frozen=True)
class SearchConfig:
    """Settings of a search.

    Attributes:
        model: factory of the model, ``file.py:name`` or ``module:name``.
        data: data source, see `csqtool.data.load_data`.
        target_bits: average precision to reach, in planes a weight, weighted by elements; 1 … 8.
        model_args: keyword arguments of the factory.
        task: built-in task for data that name none.
        weights: file to start from; None starts from the factory's own initialisation.
        method: search method, see ``csqtool methods``.
        act_bits: bits of the activations that feed weights; None keeps activations in float.
        pretrain_epochs: epochs of float training before the search.
        epochs: epochs of the search.
        batch_size: samples a step.
        seed: seeds initialisation, order and augmentation.
        learning_rate: of weights, biases, BatchNorm and scales; cosine-annealed to zero.
        gate_learning_rate: of the bit gates m_p, m_n.
        mask_learning_rate: of the mask gates m_B.
        momentum: of SGD.
        mask_momentum: of the mask gates; with none they follow the budget without overshooting.
        weight_decay: on float weights alone; gates, masks, scales, clips and BatchNorm have none.
        strength: base regularization strength λ (CSQ, eq. 7).
        beta_max: gate temperature in the last epoch.
        finetune_epochs: epochs of finetuning behind the search, with the scheme fixed and β rewound to 1.
        planes: bit planes a layer, n.
        gate_init: bit gates start at ±this.
        mask_init: the mask gate of plane b starts at (b + 1) times this.
        exclude: patterns of parameter names that stay in float.
        amp: ``no`` or ``bf16``: autocast of everything but the gate arithmetic.
    """

    model: str
    data: str
    target_bits: float
    model_args: Mapping[str, Any] = field(default_factory=dict)
    task: str | None = None
    weights: str | None = None
    method: str = "csq"
    act_bits: int | None = None
    pretrain_epochs: int = 0
    epochs: int = 20
    finetune_epochs: int = 20
    batch_size: int = 64
    seed: int = 0
    learning_rate: float = 0.05
    gate_learning_rate: float = 3.0
    mask_learning_rate: float = 0.1
    momentum: float = 0.9
    mask_momentum: float = 0.0
    weight_decay: float = 5e-4
    strength: float = 0.01
    beta_max: float = 200.0
    planes: int = 8
    gate_init: float = 1.0
    mask_init: float = 0.05
    exclude: tuple[str, ...] = ()
    amp: str = "no"

    def __post_init__(self) -> None:
        object.__setattr__(self, "exclude", tuple(self.exclude))
        checks = [
            (1 <= self.planes <= 8, f"planes must be 1 to 8, got {self.planes}"),
            (
                1 <= self.target_bits <= self.planes,
                f"target bits must be 1 to {self.planes} (the planes of a search), got {self.target_bits:g}",
            ),
            (
                self.act_bits is None or 2 <= self.act_bits <= 8,
                f"activation bits must be 2 to 8 or float, got {self.act_bits}",
            ),
            (self.epochs >= 1, f"epochs must be at least 1, got {self.epochs}"),
            (self.pretrain_epochs >= 0, f"pretrain epochs must not be negative, got {self.pretrain_epochs}"),
            (self.batch_size >= 1, f"batch size must be at least 1, got {self.batch_size}"),
            (self.finetune_epochs >= 0, f"finetune epochs must not be negative, got {self.finetune_epochs}"),
            (self.beta_max >= 1, f"beta max must be at least 1, got {self.beta_max:g}"),
            (self.gate_init > 0, f"gate init must be above 0, got {self.gate_init:g}"),
            (self.amp in ("no", "bf16"), f"amp must be no or bf16, got {self.amp!r}"),
        ]
        checks += [
            (getattr(self, name) >= 0, f"{name.replace('_', ' ')} must not be negative, got {getattr(self, name):g}")
            for name in ("learning_rate", "gate_learning_rate", "mask_learning_rate", "momentum", "weight_decay",
                         "strength", "mask_init")
        ]  # fmt: skip
        for holds, message in checks:
            if not holds:
                raise ConfigError(message)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as a JSON document."""
        return {**dataclasses.asdict(self), "exclude": list(self.exclude), "model_args": dict(self.model_args)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any], *, where: str) -> SearchConfig:
        """Return the settings in a JSON or TOML document.

        Raises:
            ConfigError: a key is unknown, missing, or its value has the wrong type.
        """
        fields = {f.name: f for f in dataclasses.fields(cls)}
        for key, value in document.items():
            if key not in fields:
                raise ConfigError(f"{where}: unknown key {key!r}; {nearest(key, fields)}")
            if not _fits(value, str(fields[key].type)):
                raise ConfigError(f"{where}: {key} must be {fields[key].type}, got {value!r}")
        if missing := [n for n in ("model", "data", "target_bits") if n not in document]:
            raise ConfigError(f"{where}: {', '.join(missing)} missing")
        try:
            return cls(**document)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error


def _fits(value: Any, annotation: str) -> bool:
    """Tell whether a JSON value fits a field's annotation."""
    kinds: dict[str, tuple[type, ...]] = {
        "str": (str,), "int": (int,), "float": (int, float), "None": (type(None),),
        "tuple[str, ...]": (list, tuple), "Mapping[str, Any]": (dict,),
    }  # fmt: skip
    allowed = [kind for part in annotation.split(" | ") for kind in kinds[part]]
    if isinstance(value, list | tuple):
        return isinstance(value, tuple(allowed)) and all(isinstance(item, str) for item in value)
    return isinstance(value, tuple(allowed)) and not isinstance(value, bool)
