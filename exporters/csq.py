"""The `.csq` file as an export format; `csqtool.csq` writes and reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from csqtool import csq
from csqtool.files import write_bytes
from csqtool.quantized_model import QuantizedModel


class CsqExporter:
    """Writes a model as one `.csq` file, which `unpack` turns back into the finalized model bit for bit."""

    name = "csq"
    suffix = ".csq"
    description = "packed weights at each layer's own bit width or below, restored bit for bit by unpack"

    def export(
        self,
        model: QuantizedModel,
        path: Path,
        *,
        build_module: Any = None,
        encoding: str = "smallest",
        onnx: bytes | None = None,
    ) -> list[str]:
        """Write `model` to `path` atomically; see `csqtool.csq.pack`."""
        write_bytes(path, csq.pack(model, encoding=encoding, onnx=onnx))
        return []

    def float32_size(self, model: QuantizedModel, *, build_module: Any = None) -> int:
        """Return the bytes of the float32 model as a safetensors file."""
        return csq.float32_size(model)
