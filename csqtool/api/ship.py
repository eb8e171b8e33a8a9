"""The verbs that ship a model: `save`, `load`, `to_torch`, `export`, `pack`, `unpack`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csqtool.api.given import PathLike, data_to_test_on, model_or_path
from csqtool.quantized_model import QuantizedModel
from csqtool.trust import trusting

if TYPE_CHECKING:
    from torch import nn

    from csqtool.exporting import Exported


def save(quantized: QuantizedModel, path: PathLike) -> None:
    """Write a finalized model as a safetensors file, atomically.

    Raises:
        InputError: the file cannot be written.
    """
    from csqtool.finalized_file import write_finalized

    write_finalized(quantized, Path(path))


def load(path: PathLike) -> QuantizedModel:
    """Read a finalized model from a ``.safetensors`` file that `finalize` or `save` wrote, or from a ``.csq`` file.

    Raises:
        InputError: the file is missing.
        FormatError: it is damaged, or of another kind.
    """
    from csqtool import csq
    from csqtool.files import read_bytes
    from csqtool.finalized_file import read_finalized

    path = Path(path)
    if path.suffix == ".csq":
        return csq.read_csq(read_bytes(path), where=str(path))
    return read_finalized(path)


def to_torch(
    quantized: QuantizedModel | PathLike,
    model: nn.Module | str | None = None,
    *,
    trust_factory: str | Sequence[str] = (),
) -> nn.Module:
    """Return the finalized network in PyTorch, in evaluation mode: the reference of every comparison.

    Its weights are exactly ``float32(q) * scale``, and its activations are rounded by the model's quantizers.

    Args:
        quantized: a finalized model, or its file.
        model: a module, which is copied, or a name; None builds the factory that the model records.
        trust_factory: factories that files may name although they are not the user's own code, see `csqtool.trust`.

    Raises:
        InputError: the module does not match, or none is given and none is recorded.
    """
    from csqtool.rebuild import rebuilt_net

    near = Path(quantized) if isinstance(quantized, str | Path) else None
    finalized = load(quantized) if isinstance(quantized, str | Path) else quantized
    with trusting(trust_factory):
        net: nn.Module = rebuilt_net(finalized, factory=model, near=near)
    return net


def export(
    quantized: QuantizedModel | PathLike,
    output: PathLike,
    *,
    format: str | None = None,  # noqa: A002 - the verb's word
    model: nn.Module | str | None = None,
    data: Any = None,
    trust_factory: str | Sequence[str] = (),
    **options: Any,
) -> Exported:
    """Write a finalized model in a deployable format.

    Args:
        quantized: a finalized model, or its file.
        output: the file to write.
        format: the format's name, see `formats`; None takes it from the suffix of `output`.
        model: a module, which is copied, or a name; None builds the factory that the model records. Formats that
            contain a graph need it.
        data: test data for exports that measure, such as ``float16``; None takes those that the model records.
        trust_factory: factories that files may name although they are not the user's own code, see `csqtool.trust`.
        options: options of the format, such as ``weights="int8"`` for ``onnx``.

    Raises:
        InputError: the format or an option is unknown, the format cannot represent the model, or the output cannot be
            written.
        CheckFailed: the file would not hold a condition that an option sets; nothing is written.
    """
    from csqtool.exporting import export as write
    from csqtool.exporting import format_of

    output = Path(output)
    with trusting(trust_factory):
        return write(
            model_or_path(quantized),
            output,
            format=format or format_of(output),
            model=model,
            data=data_to_test_on(data),
            options=options,
        )


def pack(
    quantized: QuantizedModel | PathLike,
    output: PathLike,
    *,
    model: nn.Module | str | None = None,
    data: Any = None,
    trust_factory: str | Sequence[str] = (),
    **options: Any,
) -> Exported:
    """Write a finalized model as one bit-packed ``.csq`` file.

    Args:
        quantized: a finalized model, or its file.
        output: the file to write.
        model: as in `export`; needed for ``with_graph`` and ``float16``.
        data: test data on which ``float16`` is measured; None takes those that the model records.
        trust_factory: factories that files may name although they are not the user's own code, see `csqtool.trust`.
        options: ``encoding``, ``inference``, ``with_graph``, ``float16``, ``max_metric_change``; see
            `csqtool.packing.pack`.

    Raises:
        InputError: the output cannot be written, or float16 is refused.
    """
    from csqtool.packing import pack as write

    with trusting(trust_factory):
        return write(model_or_path(quantized), Path(output), model=model, data=data_to_test_on(data), **options)


def unpack(file: PathLike, output: PathLike | None = None) -> QuantizedModel:
    """Turn a ``.csq`` file back into the finalized model that was packed.

    Args:
        file: the ``.csq`` file.
        output: the file to write: the finalized model, bit for bit unless `file` is an inference file; or with the
            suffix ``.onnx`` the ONNX file that was packed with it. None writes none.

    Raises:
        InputError: `file` is missing, damaged or no ``.csq`` file, or `output` cannot be written.
    """
    from csqtool.packing import unpack as read

    return read(Path(file), None if output is None else Path(output))
