"""The description of a finalized model's origin: factory, data, inputs, method, metrics.

None of it is needed to compute with the model, and a file may hold anything under these keys. So the JSON document
is kept unchanged, and its parts are read once: each is a record, or None if it is missing or of another form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import msgspec

from csqtool.errors import FormatError

INPUT_DTYPES = ("float32", "int64", "int32", "bool")
# Keys of the finalized file's document that describe the model itself (`csqtool.finalized_file`).
RESERVED = ("format_version", "layers", "activations", "tied")

_T = TypeVar("_T")
_Shape = tuple[Annotated[int, msgspec.Meta(ge=0)], ...]


class ModelFactory(msgspec.Struct, frozen=True):
    """How to build the user's module.

    Attributes:
        factory: ``path/to/file.py:name`` or ``package.module:name``.
        args: its keyword arguments.
    """

    factory: str
    args: dict[str, Any] = {}


class PreprocessingInfo(msgspec.Struct, frozen=True):
    """The preprocessing of a stored sample: `steps`, then (x − mean) / std.

    Attributes:
        steps: a description of the steps before the normalization.
        mean, std: in the units of the stored values; one number, or one a channel.
    """

    steps: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


class DataInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The data that the model was made with.

    Attributes:
        source: its name, as for ``--data``; None for data that were passed as objects.
        task: the task's name.
        preprocessing: how a stored sample becomes an input; None if unknown.
    """

    source: str | None = None
    task: str
    preprocessing: PreprocessingInfo | None = None


class MethodInfo(msgspec.Struct, frozen=True):
    """How the bits were found; None for settings that a method does not have.

    Attributes:
        name: the search method.
        target_bits: the budget, in planes a weight.
        target_size: the budget in bytes instead, such as ``60KB``.
        target_bops: the budget in bit operations a sample instead, such as ``1.5G``; not written where there is none.
        act_bits: bits of the activations that feed weights; None is float.
        epochs: epochs of the search.
        finetune_epochs: epochs with the scheme fixed.
        seed: seed of the search.
        allocator: what allotted the planes of a model that was quantized after training; not written where it was the
            measured output error.
    """

    name: str
    target_bits: float | None = None
    target_size: str | None = None
    act_bits: int | None = None
    epochs: float | None = None
    finetune_epochs: float | None = None
    seed: int | None = None
    target_bops: str | msgspec.UnsetType = msgspec.UNSET
    allocator: str | msgspec.UnsetType = msgspec.UNSET


class Metrics(msgspec.Struct, frozen=True):
    """The task's metric on the test set.

    Attributes:
        name: the metric's name.
        float_model: the float model's; None if it was not measured. The document's key is ``float``.
        finalized: the finalized model's.
        samples: size of the test set.
    """

    name: str
    float_model: float | None = msgspec.field(name="float")
    finalized: float
    samples: int


class Input(msgspec.Struct, frozen=True):
    """One input of a model.

    Attributes:
        name: its name in files.
        shape: its shape without the batch.
        dtype: its type, one of `INPUT_DTYPES`.
        keyword: True for a keyword argument of that name; not written for a positional argument.
    """

    name: str
    shape: _Shape
    dtype: Annotated[str, msgspec.Meta(pattern=f"^({'|'.join(INPUT_DTYPES)})$")] = "float32"
    keyword: bool | msgspec.UnsetType = msgspec.UNSET

    @classmethod
    def described(cls, name: str, shape: tuple[int, ...], dtype: str, *, keyword: bool) -> Input:
        """Return the description of a positional or keyword argument."""
        return cls(name, shape, dtype, True) if keyword else cls(name, shape, dtype)

    @property
    def is_keyword(self) -> bool:
        """Whether the model takes it by its name."""
        return self.keyword is True


class HalfOrigin(msgspec.Struct, frozen=True):
    """The model that was rounded to float16.

    Attributes:
        finalized_sha256: of its finalized file.
        metric_float32: its metric.
        metric: the metric after rounding.
    """

    finalized_sha256: str
    metric_float32: float
    metric: float


_PARTS: dict[str, Any] = {
    "model": ModelFactory, "data": DataInfo, "outputs": tuple[str, ...], "method": MethodInfo, "metrics": Metrics,
    "float16": HalfOrigin,
}  # fmt: skip


@dataclass(frozen=True)
class ModelInfo:
    """The description of a model's origin; every part may be missing.

    Example:
        >>> info = ModelInfo({"model": {"factory": "net.py:net"}, "metrics": "good", "mine": [1, 2]})
        >>> info.model
        ModelFactory(factory='net.py:net', args={})
        >>> info.metrics is None, info.data is None
        (True, True)
        >>> info.replace(metrics=Metrics("top-1", None, 0.9, 100)).document["metrics"]["finalized"]
        0.9

    Attributes:
        document: the JSON document in its own order, without the keys that describe the model itself; do not change it.
        model: how to build the module.
        data: the data and the task.
        inputs: the model's inputs, in order; at least one.
        outputs: names of the outputs that files have; None where they have all of the model's.
        method: how the bits were found.
        metrics: the task's metric.
        float16: the model that this one was rounded from.

    Raises:
        FormatError: the document has a key that describes the model itself (`RESERVED`).
    """

    document: Mapping[str, Any] = field(default_factory=dict)
    model: ModelFactory | None = field(init=False, compare=False, repr=False)
    data: DataInfo | None = field(init=False, compare=False, repr=False)
    inputs: tuple[Input, ...] | None = field(init=False, compare=False, repr=False)
    outputs: tuple[str, ...] | None = field(init=False, compare=False, repr=False)
    method: MethodInfo | None = field(init=False, compare=False, repr=False)
    metrics: Metrics | None = field(init=False, compare=False, repr=False)
    float16: HalfOrigin | None = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if taken := [key for key in RESERVED if key in self.document]:
            raise FormatError(f"the key {taken[0]!r} describes the model itself and cannot be recorded beside it")
        document = dict(self.document)
        read = {key: _read(document.get(key), kind) for key, kind in _PARTS.items()}
        for name, value in {"document": document, "inputs": _read_inputs(document), **read}.items():
            object.__setattr__(self, name, value)

    @classmethod
    def of(
        cls,
        *,
        model: ModelFactory | None = None,
        data: DataInfo | None = None,
        inputs: Sequence[Input] | None = None,
        outputs: Sequence[str] | None = None,
        method: MethodInfo | None = None,
        metrics: Metrics | None = None,
        float16: HalfOrigin | None = None,
    ) -> ModelInfo:
        """Return the description with these parts; None leaves a part out."""
        return cls().replace(
            model=model, data=data, inputs=inputs, outputs=outputs, method=method, metrics=metrics, float16=float16
        )

    def replace(
        self,
        *,
        model: ModelFactory | None = None,
        data: DataInfo | None = None,
        inputs: Sequence[Input] | None = None,
        outputs: Sequence[str] | None = None,
        method: MethodInfo | None = None,
        metrics: Metrics | None = None,
        float16: HalfOrigin | None = None,
    ) -> ModelInfo:
        """Return another description with these parts replaced, new keys at the end; None keeps a part unchanged.

        Raises:
            FormatError: a value in a part has the wrong type, or cannot be written as JSON.
        """
        document = dict(self.document)
        parts = {"model": model, "data": data, "inputs": inputs, "outputs": outputs, "method": method}
        for key, part in {**parts, "metrics": metrics, "float16": float16}.items():
            if key == "inputs" and part is not None:
                written = _written(key, part, list[Input])
                if not written:
                    raise FormatError("inputs: a model has at least one")
                document["input_shape"] = written[0]["shape"]  # for readers that know a single input
                document[key] = written
            elif part is not None:
                document[key] = _written(key, part, _PARTS[key])
        return ModelInfo(document)


def _read(value: Any, kind: type[_T]) -> _T | None:
    """Return a part of the document as a record; None if it has another form."""
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError):
        return None


def _read_inputs(document: Mapping[str, Any]) -> tuple[Input, ...] | None:
    """Return the inputs: ``inputs``, or without it the one float tensor of ``input_shape``."""
    if "inputs" in document:
        return _read(document["inputs"], tuple[Input, ...]) or None
    shape: tuple[int, ...] | None = _read(document.get("input_shape"), _Shape)
    return None if shape is None else (Input("input", shape),)


def _written(key: str, part: Any, kind: Any) -> Any:
    """Return a record as JSON after a check of its types, which records do not check when they are constructed."""
    try:
        written = json.loads(json.dumps(msgspec.to_builtins(part), allow_nan=False))
        msgspec.convert(written, kind)
    except (ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"{key}: {error}") from error
    return written
