"""What a model takes in bytes, counted without writing a file."""

from __future__ import annotations

from collections import Counter

from csqtool.csq.container import ALIGNMENT
from csqtool.csq.encodings import encode_integers
from csqtool.csq.entry import DTYPE_NAMES, Encoding
from csqtool.csq.reader import CsqFile
from csqtool.csq.safetensors_layout import Tensor, header_and_order
from csqtool.quantized_model import IntegerArray, QuantizedModel, twos_complement_bits


def float32_size(model: QuantizedModel) -> int:
    """Return the bytes of the float32 model as a safetensors file, whose weights are those of the finalized model."""
    tensors = [Tensor(layer.name, "F32", layer.shape) for layer in model.layers]
    for name, array in model.tensors.items():
        tensors.append(Tensor(name, DTYPE_NAMES[array.dtype.newbyteorder("<")], array.shape))
    header, _ = header_and_order(tensors, "{}")
    return len(header) + sum(tensor.size_bytes for tensor in tensors)


def tensor_bytes(content: bytes, *, where: str) -> dict[str, int]:
    """Return the bytes that each tensor takes in a `.csq` file, by name.

    Args:
        content: a `.csq` file.
        where: the file's name, for messages.

    Raises:
        FormatError: the structure of `content` is damaged, or it is no `.csq` file.
    """
    return {name: entry.length for name, entry in CsqFile(content, where=where).entries.items()}


def encoding_names(content: bytes, *, where: str) -> dict[str, str]:
    """Return how each quantized tensor of a `.csq` file is stored, by name: ``rans``, ``pruned (context)``, ….

    Args:
        content: a `.csq` file.
        where: the file's name, for messages.

    Raises:
        FormatError: the structure of `content` is damaged, or it is no `.csq` file.
    """
    names = {}
    for entry in CsqFile(content, where=where).entries.values():
        name = entry.encoding.name.lower()
        if entry.encoding is Encoding.PRUNED:
            name += f" ({Encoding(content[entry.start]).name.lower()})"
        if entry.is_quantized:
            names[entry.name] = name
    return names


def encoding_counts(content: bytes, *, where: str) -> str:
    """Return how many quantized tensors each encoding holds, as text: ``context 6, dense 1``."""
    counts = Counter(encoding_names(content, where=where).values())
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def integer_bytes(q: IntegerArray) -> int:
    """Return the bytes that a layer's integers take in a file, including the padding that aligns the next tensor.

    The file is of version 2: context coding, which `pack` takes when asked, makes it smaller, but takes long.
    """
    stored = encode_integers(q, twos_complement_bits(q), smallest=True)[1]
    return len(stored) + -len(stored) % ALIGNMENT
