"""`inspect`: say what a file that csqtool wrote is and what stands in it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from csqtool.errors import FormatError, InputError
from csqtool.files import read_bytes, read_json
from csqtool.finalized_file import METADATA_KEY, parse_finalized
from csqtool.onnx_file import parse_onnx, stored_tensors
from csqtool.quantized_model import QuantizedModel
from csqtool.summaries import layer_table, metric_text, origin_text
from csqtool.text import size, table


def inspect(path: Path) -> tuple[str, dict[str, Any]]:
    """Explain a file or run directory.

    Returns:
        Text for a person, and the same as a JSON document.

    Raises:
        InputError: the file is missing, damaged, or of a kind that csqtool does not write.
    """
    if path.is_dir():
        return _run(path)
    content = read_bytes(path)
    readers = {
        ".safetensors": _safetensors,
        ".csq": _csq,
        ".onnx": _onnx,
        ".pt": _checkpoint,
        ".json": _json,
        ".jsonl": _log,
        ".toml": _toml,
    }
    if path.suffix not in readers:
        raise InputError(f"{path}: csqtool writes no {path.suffix or 'such'} files; it explains {', '.join(readers)}")
    return readers[path.suffix](path, content)


def _model_facts(model: QuantizedModel) -> dict[str, Any]:
    return {
        "average_precision": model.average_precision,
        "average_bit_width": model.average_bit_width,
        "elements": model.elements,
        "info": dict(model.info.document),
        "layers": [
            {"name": x.name, "shape": list(x.shape), "precision": x.precision, "mask": x.mask, "bit_width": x.bit_width,
             "scale": float(x.scale), "elements": x.elements, "entropy": x.entropy, "levels": len(set(x.q.flat))}
            for x in model.layers
        ],
        "activations": [
            {"name": a.name, "bits": a.bits, "scale": float(a.scale), "zero_point": a.zero_point}
            for a in model.activations
        ],
    }  # fmt: skip


def _model_text(model: QuantizedModel) -> str:
    lines = [origin_text(model), metric_text(model), "", layer_table(model)]
    if model.activations:
        rows = [(a.name, a.bits, f"{a.scale:.6g}", a.zero_point) for a in model.activations]
        lines += ["", table(("activation", "bits", "scale", "zero point"), rows)]
    others = sum(t.nbytes for t in model.tensors.values())
    lines += ["", f"{len(model.tensors)} other tensors, {size(others)}"]
    return "\n".join(lines)


def _safetensors(path: Path, content: bytes) -> tuple[str, dict[str, Any]]:
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        names = [name for name in header if name != "__metadata__"]
        finalized = METADATA_KEY in header.get("__metadata__", {})
    except (ValueError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path} is not a safetensors file") from error
    if not finalized:
        rows = [(name, header[name].get("dtype"), header[name].get("shape")) for name in sorted(names)]
        text = f"{path}: float weights, {size(len(content))}\n\n{table(('tensor', 'dtype', 'shape'), rows)}"
        return text, {"kind": "float weights", "size_bytes": len(content), "tensors": sorted(names)}
    model = parse_finalized(content, where=str(path))
    head = f"{path}: finalized model, {size(len(content))}\n\n"
    return head + _model_text(model), {"kind": "finalized model", "size_bytes": len(content), **_model_facts(model)}


def _csq(path: Path, content: bytes) -> tuple[str, dict[str, Any]]:
    from csqtool import csq

    model = csq.read_csq(content, where=str(path))
    stored = csq.tensor_bytes(content, where=str(path))
    payload = sum(stored[layer.name] for layer in model.layers)
    head = f"{path}: packed model (.csq), {size(len(content))}, of it {size(payload)} packed integers\n\n"
    facts = {"kind": "packed model", "size_bytes": len(content), "packed_integer_bytes": payload}
    return head + _model_text(model), {**facts, **_model_facts(model)}


def _onnx(path: Path, content: bytes) -> tuple[str, dict[str, Any]]:
    from onnx import TensorProto

    proto = parse_onnx(content, where=str(path))
    opsets = {o.domain or "ai.onnx": o.version for o in proto.opset_import}
    properties = {p.key: p.value for p in proto.metadata_props}
    operators = Counter(node.op_type for node in proto.graph.node)
    stored: Counter[str] = Counter()
    for _, tensor in stored_tensors(proto):
        stored[TensorProto.DataType.Name(tensor.data_type).lower()] += len(tensor.raw_data) or tensor.ByteSize()
    nodes = [
        (
            ".".join(filter(None, (node.domain, node.op_type))),
            ", ".join(i for i in node.input if i),
            ", ".join(node.output),
        )
        for node in proto.graph.node
    ]
    functions = {f"{f.domain}.{f.name}": len(f.node) for f in proto.functions}
    lines = [
        f"{path}: ONNX graph, {size(len(content))}, IR {proto.ir_version}, "
        + ", ".join(f"{domain} {version}" for domain, version in opsets.items()),
        *(f"{key}  {value}" for key, value in properties.items()),
        *(f"function {name}: {count} standard operators" for name, count in functions.items()),
        "",
        table(("tensors", "bytes"), sorted(stored.items())),
        "",
        table(("operator", "inputs", "output"), nodes),
    ]
    facts = {"kind": "onnx", "size_bytes": len(content), "ir_version": proto.ir_version, "opsets": opsets,
             "metadata": properties, "operators": dict(operators), "tensor_bytes": dict(stored),
             "functions": functions}  # fmt: skip
    return "\n".join(lines), facts


def _checkpoint(path: Path, content: bytes) -> tuple[str, dict[str, Any]]:
    from csqtool.nn.state_dict import load_torch_file

    state = load_torch_file(path)
    if not isinstance(state, dict) or "position" not in state:
        raise FormatError(f"{path} is not a checkpoint of a search")
    epoch, batch, _ = state["position"]
    facts = {"kind": "checkpoint", "size_bytes": len(content), "phase": state["phase"], "epochs_done": epoch,
             "batches_done": batch, "tensors": len(state["net"])}  # fmt: skip
    text = (
        f"{path}: checkpoint of a search, {size(len(content))}\n"
        f"phase {state['phase']}, {epoch} epochs and {batch} batches done, {len(state['net'])} tensors"
    )
    return text, facts


def _json(path: Path, content: bytes) -> tuple[str, dict[str, Any]]:
    document = read_json(path)
    if isinstance(document, list) and document and "mask" in document[0]:
        columns = ("name", "precision", "mask", "bit_width", "elements")
        text = f"{path}: scheme of a search\n\n" + table(columns, [[row[c] for c in columns] for row in document])
        return text, {"kind": "scheme", "layers": document}
    if isinstance(document, dict):
        kinds = {"target_bits": "settings or summary of a search", "checks": "report of a verification",
                 "float32_bytes": "facts of an export"}  # fmt: skip
        kind = next((kind for key, kind in kinds.items() if key in document), None)
        if kind is not None:
            rows = [(key, json.dumps(value)) for key, value in document.items() if key != "checks"]
            text = f"{path}: {kind}\n\n" + table(("key", "value"), rows)
            if "checks" in document:
                checks = [
                    (c["level"], c["name"], "ok" if c["passed"] else "FAIL", c["detail"]) for c in document["checks"]
                ]
                text += "\n\n" + table(("level", "check", "", "detail"), checks)
            return text, {"kind": kind, **document}
    raise InputError(f"{path} is JSON, but none that csqtool writes")


def _log(path: Path, content: bytes) -> tuple[str, dict[str, Any]]:
    try:
        entries = [json.loads(line) for line in content.decode().splitlines()]
        columns = ["phase", "epoch", "loss", "metric_soft", "metric_hard", "beta", "average_precision"]
        rows = [
            ["" if e.get(c) is None else f"{e[c]:.4g}" if isinstance(e[c], float) else e[c] for c in columns]
            for e in entries
        ]
    except (ValueError, AttributeError) as error:
        raise FormatError(f"{path} is not the log of a search: {error}") from error
    return f"{path}: log of a search\n\n{table(columns, rows)}", {"kind": "log", "epochs": entries}


def _toml(path: Path, content: bytes) -> tuple[str, dict[str, Any]]:
    from csqtool.pipeline import read_pipeline

    pipeline = read_pipeline(path)
    settings = {**pipeline.config.to_json(), "output": str(pipeline.output), "formats": dict(pipeline.formats)}
    text = f"{path}: pipeline\n\n" + table(("setting", "value"), [(k, json.dumps(v)) for k, v in settings.items()])
    return text, {"kind": "pipeline", **settings}


def _run(path: Path) -> tuple[str, dict[str, Any]]:
    if not (path / "config.json").is_file():
        raise InputError(f"{path} is a folder, but no run directory (no config.json)")
    if not (path / "summary.json").is_file():
        text = f"{path}: unfinished search; go on with: csqtool search --resume {path}"
        return text, {"kind": "run", "finished": False, "config": read_json(path / "config.json")}
    scheme, scheme_facts = _json(path / "scheme.json", b"")
    summary = read_json(path / "summary.json")
    rows = [(key, json.dumps(value)) for key, value in summary.items()]
    text = f"{path}: finished search\n\n{table(('result', 'value'), rows)}\n\n{scheme}"
    return text, {"kind": "run", "finished": True, "summary": summary, "scheme": scheme_facts["layers"]}
