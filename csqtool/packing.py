"""The verbs `pack` and `unpack`: a finalized model as a `.csq` file, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from csqtool import csq
from csqtool.exporting import Exported, export
from csqtool.files import read_bytes, write_bytes
from csqtool.finalized_file import parse_finalized
from csqtool.quantized_model import QuantizedModel

if TYPE_CHECKING:
    from torch import nn

    from csqtool.data import DataSource


def pack(
    source: QuantizedModel | Path,
    output: Path,
    *,
    model: str | nn.Module | None = None,
    data: str | DataSource | None = None,
    **options: Any,
) -> Exported:
    """Write a finalized model as one bit-packed ``.csq`` file: `export` with the format ``csq``.

    Args:
        source: the finalized model, or its ``.safetensors`` file.
        output: the file to write.
        model: the PyTorch module or its factory, instead of the one recorded in the finalized model.
        data: data on which float16 is measured, instead of the recorded ones.
        options: ``encoding``, ``inference``, ``with_graph``, ``float16`` and ``max_metric_change``, see
            `exporters.csq.CsqOptions`.

    Raises:
        InputError: the source is no finalized model, an option is unknown or has a wrong value, the output cannot be
            written, or float16 is refused.
    """
    return export(source, output, format="csq", model=model, data=data, options=options)


def unpack(source: Path, output: Path | None = None) -> QuantizedModel:
    """Turn a ``.csq`` file back into the finalized model file it was packed from, bit for bit.

    From an inference file, it is a finalized model with the folded values, and another file than the original.

    Args:
        source: the ``.csq`` file.
        output: the file to write. With the suffix ``.onnx`` it is the ONNX file that ``export`` writes, if the model
            was packed with its graph. None writes none.

    Raises:
        InputError: `source` is missing, damaged or no ``.csq`` file, or `output` cannot be written.
    """
    content, where = read_bytes(source), str(source)
    finalized = csq.unpack(content, where=where)
    if output is not None:
        write_bytes(output, csq.unpack_onnx(content, where=where) if output.suffix == ".onnx" else finalized)
    return parse_finalized(finalized, where=where)
