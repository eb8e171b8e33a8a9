"""The options of the ONNX exporter, and what each runtime is known to support."""

from __future__ import annotations

from dataclasses import dataclass, field

from csqtool.errors import ConfigError, ExportError, nearest
from csqtool.quantized_model import QuantizedModel

WEIGHTS = ("auto", "packed", "coded", "int8", "int4", "int2")
RUNTIMES = ("onnxruntime", "openvino", "tensorrt", "generic")
WEIGHT_FORMS = ("auto", "foldable", "qdq")

# Runtimes that unpack weights when they load a model. Others do it in every run, or cannot read the file.
UNPACKING_RUNTIMES = ("onnxruntime",)
# Runtimes that turn Cast and Mul of a constant into a float weight when they load a model.
FOLDING_RUNTIMES = ("onnxruntime", "openvino")

NATIVE_BITS = {"int8": 8, "int4": 4, "int2": 2}

# Storages that a runtime does not read, and why (docs/onnx.md).
REFUSED = {
    ("openvino", "packed"): "OpenVINO does not read model-local functions",
    ("openvino", "coded"): "OpenVINO does not read model-local functions",
    ("openvino", "int2"): "OpenVINO does not read int2 tensors",
    ("tensorrt", "int2"): "TensorRT has no int2 type",
}


@dataclass(frozen=True)
class OnnxOptions:
    """Options of the ONNX exporter.

    Attributes:
        weights: how integer weights are stored; ``auto`` is ``packed`` or ``coded``, layer by layer whichever takes
            fewer bytes, where the runtime unpacks at load.
        runtime: the runtime the file is made for.
        weight_form: how the weights of a model with float activations become float: ``foldable`` is Cast and Mul,
            which runtimes fold at load; ``qdq`` is DequantizeLinear, which other consumers match on; ``auto`` is
            ``foldable`` where the runtime folds.
        strict_integer: refuse a file in which a compute node runs in float.
        dynamic: axes after the batch that stay dynamic, such as ``(2, 3)``.
    """

    weights: str = field(
        default="auto", metadata={"help": "auto, packed, coded, int8, int4 or int2", "metavar": "STORAGE"}
    )
    runtime: str = field(
        default="onnxruntime", metadata={"help": "onnxruntime, openvino, tensorrt or generic", "metavar": "NAME"}
    )
    weight_form: str = field(
        default="auto", metadata={"help": "Weights beside float activations: foldable or qdq", "metavar": "FORM"}
    )
    strict_integer: bool = field(default=False, metadata={"help": "Fail if a compute node runs in float"})
    dynamic: tuple[int, ...] = field(
        default=(), metadata={"help": "An axis that stays dynamic; repeatable", "metavar": "AXIS"}
    )

    def __post_init__(self) -> None:
        for name, known in (("weights", WEIGHTS), ("runtime", RUNTIMES), ("weight_form", WEIGHT_FORMS)):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"unknown {name.replace('_', '-')} {value!r}; {nearest(str(value), known)}")
        if not isinstance(self.strict_integer, bool):
            raise ConfigError(f"strict-integer is true or false, got {self.strict_integer!r}")
        object.__setattr__(self, "dynamic", tuple(self.dynamic))
        if not all(isinstance(axis, int) and not isinstance(axis, bool) and axis > 0 for axis in self.dynamic):
            raise ConfigError(f"dynamic takes axes above 0 (the batch always is dynamic), got {list(self.dynamic)}")
        if reason := REFUSED.get((self.runtime, self.weights)):
            raise ConfigError(f"weights {self.weights} for {self.runtime}: {reason}; use auto")

    def check(self, model: QuantizedModel) -> None:
        """Refuse what the chosen runtime cannot run, or runs in float where it would run another storage on integers.

        Raises:
            ExportError: names the runtime and the reason.
        """
        if self.runtime == "tensorrt" and model.activations:
            raise ExportError(
                "tensorrt: activations here are unsigned 8-bit integers, and TensorRT quantizes to signed ones with "
                "zero point 0 only; export for another runtime, or search with --act-bits float"
            )
        if self.runtime == "openvino" and self.weights == "int4" and model.activations:
            raise ExportError(
                "weights int4 for openvino: with quantized activations OpenVINO computes int4 layers in float, "
                "slower than int8; use auto, or search with --act-bits float"
            )

    @property
    def folds(self) -> bool:
        """Whether the weights of a model with float activations are written as Cast and Mul, for folding."""
        return self.weight_form == "foldable" or (self.weight_form == "auto" and self.runtime in FOLDING_RUNTIMES)

    @property
    def forms(self) -> tuple[str, ...]:
        """``packed``, ``coded``, or both: what integers may be as attributes of a node; none for tensors."""
        if self.weights == "auto":
            return ("packed", "coded") if self.runtime in UNPACKING_RUNTIMES else ()
        return (self.weights,) if self.weights in ("packed", "coded") else ()

    def storage(self, bits: int) -> str:
        """Return the native type of a tensor for integers of `bits`."""
        if bits > 8:
            return "int16"
        if self.weights in ("int4", "int2"):
            return next(
                (name for name in ("int2", "int4") if bits <= NATIVE_BITS[name] >= NATIVE_BITS[self.weights]), "int8"
            )
        return "int8"
