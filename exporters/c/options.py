"""The options of the C exporter."""

from __future__ import annotations

from dataclasses import dataclass, field

from csqtool.errors import ConfigError, nearest
from exporters.csq import EncodingOptions

CONTENTS = ("auto", "inference", "weights")
WEIGHTS = ("auto", "packed", "int8")
REQUANTIZE = ("auto", "fixed", "float")


@dataclass(frozen=True)
class COptions(EncodingOptions):
    """Options of the C exporter; the encoding is that of packed weights.

    Attributes:
        content: ``inference`` computes the network, in float32 where activations are float; ``weights`` is the packed
            model as an array, and its reader; ``auto`` is inference where activations are quantized.
        weights: ``packed`` keeps each layer at the fewest bits that its integers need, decoded filter by filter;
            ``int8`` takes a byte a weight and no decoding; ``auto`` is ``packed``.
        requantize: how results are moved to the grid of the next quantizer: ``fixed`` by integers of 32 bits, ``float``
            in float32, for devices that compute floats in hardware; ``auto`` is ``fixed``.
        single_file: write the code into one header instead of two source files.
    """

    content: str = field(
        default="auto",
        metadata={
            "help": "inference, weights (an array and its reader), or auto: by activations",
            "metavar": "CONTENT",
        },
    )
    weights: str = field(default="auto", metadata={"help": "packed or int8", "metavar": "STORAGE"})
    requantize: str = field(
        default="auto",
        metadata={"help": "fixed, or float: sums to grids in float32, for devices with an FPU", "metavar": "HOW"},
    )
    single_file: bool = field(
        default=False, metadata={"help": "Write the inference in C as one header, code and weights included"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("content", CONTENTS), ("weights", WEIGHTS), ("requantize", REQUANTIZE)):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"the format c: unknown {name} {value!r}; {nearest(str(value), known)}")
        if not isinstance(self.single_file, bool):
            raise ConfigError(f"single-file is true or false, got {self.single_file!r}")
        if self.content == "weights" and self.single_file:
            raise ConfigError("--single-file is for an inference; packed weights have a header and an array")
        if self.content == "weights" and self.weights != "auto":
            raise ConfigError(
                "--weights is for an inference; with --content weights the model is packed as a .csq file"
            )
        if self.content == "weights" and self.requantize != "auto":
            raise ConfigError("--requantize is for an inference; packed weights compute nothing")
