"""Thresholds on differences; the defaults are derived from the arithmetic (`docs/verify.md`)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from csqtool import documents
from csqtool.errors import ConfigError, nearest

Tolerance = Annotated[float, msgspec.Meta(ge=0, le=sys.float_info.max)]


class Tolerances(msgspec.Struct, frozen=True):
    """The thresholds up to which differences are accepted as rounding.

    Attributes:
        layer_steps: steps that an integer layer's values may be off.
        layer_share: share of its values that may be off at all.
        layer_rounding: a float layer's largest error, in units of ε·√K of its largest value, for K products a sum.
        outputs_float: largest difference over the outputs' spread where activations are float; labels must then be
            equal, unless both score as much as that.
        outputs_mean: mean difference over the outputs' spread, where activations are quantized.
        outputs_agreement_off: least share of equal labels, optimizations off, where activations are quantized.
        outputs_agreement: the same at every other level and in other backends.
        metric: difference of the task's metric.
    """

    layer_steps: Tolerance = 1
    layer_share: Tolerance = 1e-3
    layer_rounding: Tolerance = 32
    outputs_float: Tolerance = 1e-4
    outputs_mean: Tolerance = 0.05
    outputs_agreement_off: Tolerance = 0.995
    outputs_agreement: Tolerance = 0.99
    metric: Tolerance = 0.01

    @classmethod
    def from_mapping(cls, document: Mapping[str, Any], *, where: str) -> Tolerances:
        """Return the tolerances in a configuration table.

        Raises:
            ConfigError: a key is unknown, or a value is no finite number of at least 0.
        """
        for key in document:  # not checked by the record: reports may hold tolerances of later versions
            if key not in cls.__struct_fields__:
                raise ConfigError(f"{where}: unknown tolerance {key!r}; {nearest(key, cls.__struct_fields__)}")
        return documents.convert(cls, document, where=where, error=ConfigError)

    @classmethod
    def parse(cls, settings: tuple[str, ...]) -> Tolerances:
        """Return the tolerances in ``NAME=VALUE`` texts.

        Raises:
            ConfigError: as `from_mapping`, or a text is not of this form.
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
        """Return the tolerances that differ from the default."""
        plain = documents.plain(Tolerances())
        return {name: value for name, value in documents.plain(self).items() if value != plain[name]}
