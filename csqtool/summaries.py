"""Summaries of a finalized model as text: tables, compression, metrics, origin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from csqtool import csq
from csqtool.errors import ExportError
from csqtool.model_info import PreprocessingInfo
from csqtool.quantized_model import QuantizedModel
from csqtool.text import size, table


@dataclass(frozen=True)
class Compression:
    """Three compression rates against float32.

    Attributes:
        paper: 32 / mean precision over layers, as the CSQ paper counts.
        elements: 32 / two's-complement bits averaged over weights.
        packed_bytes: size of the `.csq` file.
        float32_bytes: size of the same model in float32.
    """

    paper: float
    elements: float
    packed_bytes: int
    float32_bytes: int

    @property
    def real(self) -> float:
        """Float32 bytes over packed bytes."""
        return self.float32_bytes / self.packed_bytes


def compression(model: QuantizedModel) -> Compression:
    """Return a finalized model's compression; the bytes are measured on its packed file."""
    packed_bytes, float32_bytes = len(csq.pack(model)), csq.float32_size(model)
    return Compression(32 / model.layer_mean_precision, 32 / model.average_bit_width, packed_bytes, float32_bytes)


def layer_table(model: QuantizedModel) -> str:
    """Return a line for each layer: precision, mask, bit width, elements, bytes."""
    rows = [
        (layer.name, layer.precision, layer.mask, layer.bit_width, layer.elements, layer.packed_bytes)
        for layer in model.layers
    ]
    total = ("total", f"{model.average_precision:.3f}", "", f"{model.average_bit_width:.3f}", model.elements,
             sum(layer.packed_bytes for layer in model.layers))  # fmt: skip
    return table(("layer", "precision", "mask", "bit width", "elements", "bytes"), [*rows, total])


def compression_text(model: QuantizedModel) -> str:
    """Return the three compression rates of a finalized model, a line each."""
    try:
        rates = compression(model)
    except ExportError as error:
        return f"compression against float32: not known, the model cannot be packed: {error}"
    return "\n".join([
        "compression against float32",
        f"  layer mean of the precision (as in the paper)   {rates.paper:6.2f} ×",
        f"  bit width, weighted by elements                 {rates.elements:6.2f} ×",
        f"  bytes of the whole packed file                  {rates.real:6.2f} ×   "
        f"({size(rates.packed_bytes)} against {size(rates.float32_bytes)})",
    ])  # fmt: skip


def target_text(settings: Mapping[str, Any]) -> str:
    """Return the target of a search from its settings: ``target 3 bits``, ``target 60KB``, ``target 1.5G BOPs``."""
    target_bits = settings["target_bits"]
    if settings["target_size"] is not None:
        return f"target {settings['target_size']}"
    if settings.get("target_bops"):
        return f"target {settings['target_bops']} BOPs"
    return "no target" if target_bits is None else f"target {target_bits:g} bits"


def metric_text(model: QuantizedModel) -> str:
    """Return the metric of the float and of the finalized model in one line."""
    metrics = model.info.metrics
    if metrics is None:
        return "metric     not measured"
    before = "" if metrics.float_model is None else f"float {metrics.float_model:.4f} → "
    return f"{metrics.name:9}  {before}finalized {metrics.finalized:.4f} on {metrics.samples} samples"


def origin_text(model: QuantizedModel) -> str:
    """Return a model's recorded origin, a line for each of model, data, input and method."""
    info = model.info
    inputs = ", ".join(str(list(i.shape)) for i in info.inputs or ())
    factory = info.model.factory if info.model else "factory not recorded"
    lines = [f"model      {factory}" + (f"  input {inputs}" if inputs else "")]
    if info.data is None:
        lines.append("data       not recorded")
    else:
        lines.append(f"data       {info.data.source or 'source not recorded'} ({info.data.task})")
        if info.data.preprocessing is not None:
            lines.append(f"input      {preprocessing_text(info.data.preprocessing)}")
    method = info.method
    if method is None:
        return "\n".join([*lines, "method     not recorded"])
    activations = "float" if method.act_bits is None else f"{method.act_bits} bits"
    seed = "" if method.seed is None else f", seed {method.seed}"
    target = target_text(msgspec.structs.asdict(method))
    name = f"{method.name}, planes by {method.allocator}" if method.allocator else method.name
    return "\n".join([*lines, f"method     {name}, {target}, activations {activations}{seed}"])


def model_text(model: QuantizedModel) -> str:
    """Return the layer table, the three compression rates and the metrics of a finalized model."""
    return "\n\n".join([layer_table(model), compression_text(model), metric_text(model)])


def preprocessing_text(recorded: PreprocessingInfo) -> str:
    """Return a recorded preprocessing in one line."""
    mean, std = (" ".join(f"{v:.6g}" for v in values) for values in (recorded.mean, recorded.std))
    plain = all(v == 0 for v in recorded.mean) and all(v == 1 for v in recorded.std)
    return recorded.steps if plain else f"{recorded.steps}, then (x − mean) / std: mean {mean}, std {std}"
