"""A `.csq` file opened for reading: checked structure, tensors decoded one at a time when they are asked for."""

from __future__ import annotations

import hashlib
import mmap
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool.csq import container, encodings, inference
from csqtool.csq.entry import DTYPES, Encoding, Entry
from csqtool.csq.rans import StreamError
from csqtool.csq.safetensors_layout import Tensor, header_and_order
from csqtool.errors import FormatError, InputError
from csqtool.finalized_file import from_tensors, parse_document, to_bytes
from csqtool.quantized_model import QuantizedModel


class CsqFile:
    """A `.csq` file whose structure has been checked.

    Attributes:
        where: the file's name, for messages.
        size_bytes: the file's size.
        finalized_sha256: of the finalized file that was packed.
        metadata: the JSON text of the finalized file.
        entries: what the table says about each tensor, by name.
        graph: the recipe of the ONNX file, if the package carries one.
        metadata_place: file and byte of the metadata, for messages.
        graph_place: file and byte of the graph, for messages.
    """

    def __init__(self, content: bytes | mmap.mmap, *, where: str) -> None:
        """Check everything but the tensors' own bytes.

        Raises:
            FormatError: `content` is no `.csq` file of a known version, or its structure is damaged.
        """
        self.where = where
        self._content = memoryview(content)
        self.size_bytes = len(self._content)
        found = container.parse(self._content, where)
        self.finalized_sha256 = found.finalized_sha256
        self.metadata = found.metadata
        self.graph = found.graph
        self.metadata_place = f"{where}: metadata at byte {found.metadata_start}"
        self.graph_place = f"{where}: graph at byte {found.graph_start}"
        self.entries = {entry.name: entry for entry in found.entries}

    def tensor(self, name: str) -> NDArray[Any]:
        """Return a tensor, its checksum and stream checked; a raw one is a read-only view of the file.

        Raises:
            FormatError: the tensor is damaged.
        """
        entry = self.entries[name]
        stored = self._stored(entry)
        try:
            if entry.encoding is Encoding.RAW and entry.dtype != "BOOL" and entry.native == DTYPES[entry.dtype]:
                return np.frombuffer(stored, entry.native).reshape(entry.shape)
            if entry.decoded_bytes > 4 * self.size_bytes:
                for _ in encodings.blocks(entry, stored):
                    pass  # a bad stream is found before it takes more memory than the file justifies
            return encodings.decode(entry, stored)
        except StreamError as error:
            raise FormatError(f"{self._place(entry)}: {error}") from error

    def blocks(self, name: str) -> Iterator[NDArray[Any]]:
        """Yield a tensor's elements in flat blocks; a block is overwritten by the next one.

        Raises:
            FormatError: the tensor is damaged.
        """
        entry = self.entries[name]
        try:
            yield from encodings.blocks(entry, self._stored(entry))
        except StreamError as error:
            raise FormatError(f"{self._place(entry)}: {error}") from error

    @property
    def is_inference(self) -> bool:
        """Whether the file is of the inference profile: the finalized file cannot be restored from it."""
        return inference.is_inference(self.metadata)

    def check(self) -> None:
        """Check every checksum, every stream and the SHA-256 of the finalized file, in blocks of bounded size.

        The SHA-256 of an inference file is not checked: it is of the finalized file, which is not in it.

        Raises:
            FormatError: something is damaged; the message names the tensor and its first byte.
        """
        for entry in self.entries.values():
            self._stored(entry)
        if self.is_inference:
            for name in self.entries:
                for _ in self.blocks(name):
                    pass
            return
        digest = hashlib.sha256()
        for piece in self.finalized():
            digest.update(piece)
        if digest.hexdigest() != self.finalized_sha256:
            raise FormatError(
                f"{self.where}: the rebuilt finalized model has SHA-256 {digest.hexdigest()}, "
                f"the file says {self.finalized_sha256}"
            )

    def finalized(self) -> Iterator[bytes]:
        """Yield the finalized safetensors file in pieces: header, then the tensors (annex A).

        Raises:
            FormatError: a tensor is damaged.
        """
        described = [Tensor(entry.name, entry.dtype, entry.shape) for entry in self.entries.values()]
        header, names = header_and_order(described, self.metadata)
        yield header
        for name in names:
            for block in self.blocks(name):
                yield block.astype(DTYPES[self.entries[name].dtype]).tobytes()

    def model(self) -> QuantizedModel:
        """Return the finalized model, everything checked before memory for it is taken.

        That of an inference file has the folded values, see `csqtool.csq.inference.restored`.

        Raises:
            FormatError: the file is damaged, or its tensors and metadata describe no finalized model.
        """
        self.check()
        if not container.is_document_small(self.metadata, self.size_bytes):
            raise FormatError(f"{self.metadata_place}: they hold more values than the file's size justifies")
        if self.is_inference:
            if self.graph is not None:
                raise FormatError(f"{self.graph_place}: an inference file has no graph")
            quantized = {entry.name: entry.bits for entry in self.entries.values() if entry.is_quantized}
            return inference.restored(
                {name: self.tensor(name) for name in self.entries}, quantized, self.metadata, self.finalized_sha256,
                where=self.metadata_place,
            )  # fmt: skip
        self._check_scales(parse_document(self.metadata, where=self.metadata_place))
        tensors = {name: self.tensor(name) for name in self.entries}
        model = from_tensors(tensors, self.metadata, where=self.metadata_place)
        stored = {entry.name: entry.bits for entry in self.entries.values() if entry.is_quantized}
        if stored != (expected := {layer.name: layer.bit_width for layer in model.layers}):
            wrong = min(name for name in stored.keys() | expected.keys() if stored.get(name) != expected.get(name))
            raise FormatError(
                f"{self._place(self.entries[wrong])}: stored at {stored.get(wrong, 'no')} bits, "
                f"the metadata say {expected.get(wrong, 'no')} bits"
            )
        return model

    def _check_scales(self, document: dict[str, Any]) -> None:
        """Check the scale of every quantized tensor and activation here, where its place in the file is known."""
        names: list[Any] = [entry.name for entry in self.entries.values() if entry.is_quantized]
        activations = document.get("activations")
        names += [a.get("name") for a in activations if isinstance(a, dict)] if isinstance(activations, list) else []
        for name in names:
            scale = self.entries.get(f"{name}_scale")
            if scale is not None and scale.shape == () and scale.dtype == "F32":
                value = float(self.tensor(scale.name))
                if not (np.isfinite(value) and value > 0):
                    raise FormatError(f"{self._place(scale)}: a scale is finite and above zero, this one is {value}")

    def _stored(self, entry: Entry) -> memoryview:
        """Return a tensor's bytes, their checksum checked."""
        stored = self._content[entry.start : entry.start + entry.length]
        if (found := zlib.crc32(stored)) != entry.crc32:
            raise FormatError(f"{self._place(entry)}: damaged: CRC-32 is {found:08x}, the table says {entry.crc32:08x}")
        return stored

    def _place(self, entry: Entry) -> str:
        return f"{self.where}: tensor {entry.name!r} at byte {entry.start}"


def open_csq(path: Path) -> CsqFile:
    """Open a file without reading its tensors: it is mapped into memory, and must not shrink while it is used.

    Raises:
        InputError: the file is missing, no regular file, or cannot be read.
        FormatError: it is no `.csq` file of a known version, or its structure is damaged.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is not a file")
        with open(path, "rb") as file:
            empty = path.stat().st_size == 0
            return CsqFile(b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), where=str(path))
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def read_csq(content: bytes, *, where: str) -> QuantizedModel:
    """Return the model in a `.csq` file, checked down to the SHA-256 of its finalized file.

    Args:
        content: a `.csq` file.
        where: the file's name, for messages.

    Raises:
        FormatError: `content` is damaged or no `.csq` file of a known version.
    """
    return CsqFile(content, where=where).model()


def unpack(content: bytes, *, where: str) -> bytes:
    """Return the finalized safetensors file that was packed into `content`, bit for bit.

    From an inference file, it is that of a finalized model with the folded values.

    Args:
        content: a `.csq` file.
        where: the file's name, for messages.

    Raises:
        FormatError: `content` is damaged or no `.csq` file of a known version.
    """
    file = CsqFile(content, where=where)
    model = file.model()
    return to_bytes(model) if file.is_inference else b"".join(file.finalized())
