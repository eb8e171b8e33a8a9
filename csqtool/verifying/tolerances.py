"""How far the two sides of a verification may lie apart; the defaults follow the arithmetic (`docs/verify.md`)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from csqtool.errors import ConfigError, nearest


@dataclass(frozen=True)
class Tolerances:
    """What is still rounding.

    Attributes:
        layer_steps: steps that an integer layer's values may be off.
        layer_share: share of its values that may be off at all.
        layer_rounding: a float layer's largest error, in units of ε·√K of its largest value, for K products a sum.
        outputs_float: largest difference of an output where activations are float; labels must then be equal.
        outputs_mean: mean difference over the outputs' standard deviation, where activations are quantized.
        outputs_agreement_off: least share of equal labels, optimizations off, where activations are quantized.
        outputs_agreement: the same at every other level and in other backends.
        metric: difference of the task's metric.
    """

    layer_steps: float = 1
    layer_share: float = 1e-3
    layer_rounding: float = 32
    outputs_float: float = 1e-4
    outputs_mean: float = 0.05
    outputs_agreement_off: float = 0.995
    outputs_agreement: float = 0.99
    metric: float = 0.01

    @classmethod
    def from_mapping(cls, document: Mapping[str, Any], *, where: str) -> Tolerances:
        """Return the tolerances in a configuration table.

        Raises:
            ConfigError: a key is unknown, or a value is no finite number of at least 0.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        for key, value in document.items():
            if key not in known:
                raise ConfigError(f"{where}: unknown tolerance {key!r}; {nearest(key, known)}")
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 <= value < math.inf:
                raise ConfigError(f"{where}: {key} must be a number of at least 0, got {value!r}")
        return cls(**document)

    @classmethod
    def parse(cls, settings: tuple[str, ...]) -> Tolerances:
        """Return the tolerances in ``NAME=VALUE`` texts.

        Raises:
            ConfigError: as `from_mapping`, or a text has another form.
        """
        document: dict[str, Any] = {}
        for text in settings:
            name, _, value = text.partition("=")
            try:
                document[name.strip().replace("-", "_")] = float(value)
            except ValueError as error:
                raise ConfigError(f"--tolerance {text!r}: write NAME=NUMBER, such as layer_share=0.01") from error
        return cls.from_mapping(document, where="--tolerance")

    def changed(self) -> dict[str, float]:
        """Return those that are not the default."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}
