"""`inspect`: explain the kind and the content of a file that csqtool wrote."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from csqtool import documents
from csqtool.benchmarking import BenchDocument
from csqtool.errors import FormatError, InputError
from csqtool.files import read_bytes
from csqtool.finalized_file import METADATA_KEY, parse_finalized
from csqtool.onnx_file import parse_onnx, stored_tensors
from csqtool.quantized_model import QuantizedModel
from csqtool.searching.records import BegunFrom, SchemeEntry, StartRecord, Summary
from csqtool.summaries import layer_table, metric_text, origin_text
from csqtool.text import size, table
from csqtool.verifying.findings import VerifyReport


def inspect(path: Path) -> tuple[str, dict[str, Any]]:
    """Explain a file or run directory.

    Returns:
        Readable text, and the same as a JSON document.

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


class _Tensor(msgspec.Struct):
    """A tensor in the header of a safetensors file."""

    dtype: str
    shape: list[int]


def _safetensors(path: Path, content: bytes) -> tuple[str, dict[str, Any]]:
    header = documents.decode(
        dict[str, Any], content[8 : 8 + int.from_bytes(content[:8], "little")],
        where=str(path), what="a safetensors file",
    )  # fmt: skip
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or METADATA_KEY not in metadata:
        tensors = documents.convert(dict[str, _Tensor], header, where=str(path), what="a safetensors file")
        rows = [(name, tensors[name].dtype, tensors[name].shape) for name in sorted(tensors)]
        text = f"{path}: float weights, {size(len(content))}\n\n{table(('tensor', 'dtype', 'shape'), rows)}"
        return text, {"kind": "float weights", "size_bytes": len(content), "tensors": sorted(tensors)}
    model = parse_finalized(content, where=str(path))
    head = f"{path}: finalized model, {size(len(content))}\n\n"
    return head + _model_text(model), {"kind": "finalized model", "size_bytes": len(content), **_model_facts(model)}


def _csq(path: Path, content: bytes) -> tuple[str, dict[str, Any]]:
    from csqtool import csq

    file = csq.CsqFile(content, where=str(path))
    model, profile = file.model(), "inference" if file.is_inference else "archival"
    stored = csq.tensor_bytes(content, where=str(path))
    payload = sum(stored[layer.name] for layer in model.layers)
    head = (
        f"{path}: packed model (.csq), {size(len(content))}, of it {size(payload)} packed integers\n"
        f"profile: {profile}\nencodings: {csq.encoding_counts(content, where=str(path))}\n\n"
    )
    facts = {"kind": "packed model", "size_bytes": len(content), "profile": profile, "packed_integer_bytes": payload,
             "encodings": csq.encoding_names(content, where=str(path))}  # fmt: skip
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

    match load_torch_file(path):
        case {"position": [int(epoch), int(batch), _], "stage": str(stage), "net": dict(net)}:
            facts = {"kind": "checkpoint", "size_bytes": len(content), "stage": stage, "epochs_done": epoch,
                     "batches_done": batch, "tensors": len(net)}  # fmt: skip
            text = (
                f"{path}: checkpoint of a search, {size(len(content))}\n"
                f"stage {stage}, {epoch} epochs and {batch} batches done, {len(net)} tensors"
            )
            return text, facts
        case _:
            raise FormatError(f"{path} is not a checkpoint of a search")


def _json(path: Path, content: bytes) -> tuple[str, dict[str, Any]]:
    """Explain a JSON file: its keys decide which document it is, and then it is checked."""
    document = documents.decode(Any, content, where=str(path))
    if isinstance(document, list):
        return _scheme(path, documents.convert(list[SchemeEntry], document, where=str(path), what="a scheme"))
    if isinstance(document, dict):
        for keys, what, check in _KINDS:
            if keys <= document.keys():
                record = check(document, str(path))
                facts = {key: value for key, value in document.items() if key not in _LISTS}
                text = f"{path}: {what}\n\n{_settings_table(facts)}"
                if isinstance(record, VerifyReport):
                    checks = [(c.level, c.name, "ok" if c.passed else "FAIL", c.detail) for c in record.checks]
                    text += "\n\n" + table(("level", "check", "", "detail"), checks)
                return text, {"kind": what, **document}
    raise InputError(f"{path} is JSON, but not a document that csqtool writes")


def _is(kind: type[Any]) -> Callable[[Any, str], Any]:
    return lambda document, where: documents.convert(kind, document, where=where)


def _export_facts(document: Any, where: str) -> Any:
    from csqtool.pipeline_stages import ExportFacts  # not above: a pipeline needs torch

    return documents.convert(ExportFacts, document, where=where)


def _blame(document: Any, where: str) -> Any:
    from csqtool.blaming import BlameReport

    return documents.convert(BlameReport, document, where=where)


def _sensitivity(document: Any, where: str) -> Any:
    from csqtool.layer_sensitivity import SensitivityReport

    return documents.convert(SensitivityReport, document, where=where)


def _stages(document: Any, where: str) -> Any:
    from csqtool.pipeline_stages import StagesFile

    return documents.convert(StagesFile, document, where=where)


def _config(document: Any, where: str) -> Any:
    from csqtool.searching.config import SearchConfig

    return SearchConfig.from_json(document, where=where)


# Keys by which a document is recognized, its kind, and the function that checks it.
_KINDS: tuple[tuple[set[str], str, Callable[[Any, str], Any]], ...] = (
    ({"checks"}, "report of a verification", _is(VerifyReport)),
    ({"rounds", "files"}, "latencies of csqtool bench", _is(BenchDocument)),
    ({"float32_bytes"}, "facts of an export", _export_facts),
    ({"place", "stages"}, "record of a pipeline's stages", _stages),
    ({"kind", "parts", "groups"}, "shares of csqtool blame", _blame),
    ({"kind", "layers", "loss"}, "sensitivities of csqtool sensitivity", _sensitivity),
    ({"metric_name"}, "summary of a search", _is(Summary)),
    ({"target_bits", "model"}, "settings of a search", _config),
    ({"inputs", "code"}, "what a search was begun from", _is(BegunFrom)),
    ({"run", "metric_float"}, "start of a finetuning run", _is(StartRecord)),
)


_LISTS = {"checks", "layers", "parts", "groups"}  # too much for a cell; --json has them


def _settings_table(document: dict[str, Any], heads: tuple[str, str] = ("key", "value")) -> str:
    return table(heads, [(key, json.dumps(value)) for key, value in document.items()])


def _scheme(path: Path, scheme: list[SchemeEntry]) -> tuple[str, dict[str, Any]]:
    columns = SchemeEntry.__struct_fields__
    text = f"{path}: scheme of a search\n\n" + table(columns, [[getattr(x, c) for c in columns] for x in scheme])
    return text, {"kind": "scheme", "layers": documents.plain(scheme)}


def _log(path: Path, content: bytes) -> tuple[str, dict[str, Any]]:
    from csqtool.searching.run_directory import read_log

    entries = read_log(path)
    figures = ("loss", "metric_soft", "metric_hard", "beta", "average_precision")
    rows = [
        [e.stage, "" if e.epoch is None else e.epoch,
         *("" if getattr(e, c) is None else f"{getattr(e, c):.4g}" for c in figures)]
        for e in entries
    ]  # fmt: skip
    # The unchanged lines, because methods of other packages add their own figures.
    lines = [msgspec.json.decode(line) for line in content.split(b"\n")[: len(entries)]]
    text = f"{path}: log of a search\n\n{table(('stage', 'epoch', *figures), rows)}"
    return text, {"kind": "log", "epochs": lines}


def _toml(path: Path, content: bytes) -> tuple[str, dict[str, Any]]:
    from csqtool.pipeline_file import read_pipeline

    pipeline = read_pipeline(path)
    settings = {**pipeline.config.to_json(), "output": str(pipeline.output), "formats": dict(pipeline.formats)}
    return f"{path}: pipeline\n\n{_settings_table(settings, ('setting', 'value'))}", {"kind": "pipeline", **settings}


def _run(path: Path) -> tuple[str, dict[str, Any]]:
    from csqtool.searching.run_directory import RunDirectory

    run = RunDirectory(path)
    config = run.read_config()
    if not run.is_finished:
        text = f"{path}: unfinished search; continue with: csqtool search --resume {path}"
        return text, {"kind": "run", "finished": False, "config": config.to_json()}
    scheme, scheme_facts = _scheme(run.scheme, run.read_scheme())
    summary = documents.plain(run.read_summary())
    text = f"{path}: finished search\n\n{_settings_table(summary, ('result', 'value'))}\n\n{scheme}"
    return text, {"kind": "run", "finished": True, "summary": summary, "scheme": scheme_facts["layers"]}
