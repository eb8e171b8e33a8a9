"""Everything in a folder with an inference in C, explained before any of it is compiled: each file, and each line."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import msgspec
import onnx

from csqtool import documents
from csqtool.documents import Count
from csqtool.errors import InputError
from csqtool.files import read_bytes
from csqtool.quantized_model import QuantizedModel
from csqtool.verifying.c_program import CFolder
from csqtool.verifying.c_sources import INTEGERS, Inference, known
from csqtool.verifying.c_text import CFault, digest, items, shown

MOST = 100_000  # steps and blocks of a plan
MOST_BYTES = 1 << 26  # of a file around the inference
AROUND = ("main.c", "Makefile", "CMakeLists.txt")  # the example; only the folder's owner runs it


class _Block(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    offset: Count
    bytes: Count
    first: Count
    last: Count


class _Plan(msgspec.Struct, forbid_unknown_fields=True):
    finalized_sha256: str
    arena_bytes: Count
    least_bytes: Count
    steps: Annotated[list[str], msgspec.Meta(max_length=MOST)]
    blocks: Annotated[list[_Block], msgspec.Meta(max_length=MOST)]


def inference_of(folder: CFolder) -> Inference:
    """Read the code of a folder."""
    return Inference({name: folder.files[name] for name in folder.names})


def unexplained(
    folder: CFolder,
    graph: onnx.GraphProto | None = None,
    model: QuantizedModel | None = None,
    *,
    inference: Inference | None = None,
) -> list[str]:
    """Return what is not explained in a folder, with file and line; [] if everything is.

    Args:
        folder: the exported folder.
        graph: a capture with marker nodes, which the calls are compared with, if nothing else is unexplained.
        model: the finalized model that it is of.
        inference: its code, if that was read before.
    """
    sources = {name: folder.files[name] for name in folder.names}
    inference = inference or inference_of(folder)
    faults = [*inference.faults, *_around(folder.path, sources, inference)]
    if not faults and (inference.sizes, inference.sha256) != (folder.sizes, folder.sha256):
        faults.append("model.h: a comment has sizes or a finalized model other than the code")
    if graph is not None and not faults:
        layers = () if model is None else model.layers
        faults = inference.beyond(graph, {layer.name for layer in layers if layer.input_quantizer is None})
    return faults


def _around(path: Path, sources: Mapping[str, bytes], inference: Inference) -> Iterator[str]:
    """Yield what is wrong with the other files."""
    for entry in sorted(path.iterdir()):
        name = entry.name
        if name in sources and entry.is_file():
            continue
        if name not in (*AROUND, "arena.json") or not entry.is_file():
            yield f"{shown(name)}: not part of an inference"
            continue
        try:
            if entry.stat().st_size > MOST_BYTES:
                raise CFault(name, 0, "too large")
            content = read_bytes(entry)
            if name == "arena.json":
                _check_plan(content, inference)
            elif known()[name].get(_digest(name, content)) != _form(name, sources, inference):
                yield f"{name}: not the file that comes with an inference"
        except (CFault, InputError) as error:
            yield shown(str(error))


def _form(name: str, sources: Mapping[str, bytes], inference: Inference) -> str:
    form = "files" if "weights.h" in sources else "header"
    return f"{form}, unquantized" if name == "main.c" and inference.input_type != INTEGERS else form


def _digest(name: str, content: bytes) -> str:
    """Return the digest of a file around the inference: of C its tokens, of others all but the form of line ends."""
    if name.endswith(".c"):
        return digest(items(name, content))
    return hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest()


def _check_plan(content: bytes, inference: Inference) -> None:
    """Check that the plan of the arena is one, and of this inference; no program reads it but ``csqtool report``."""
    plan = documents.decode(_Plan, content, where="arena.json", what="the plan of an arena")
    inside = all(block.offset + block.bytes <= plan.arena_bytes for block in plan.blocks)
    sizes = inference.sizes.get("ARENA"), inference.sha256
    if not inside or (max(1, plan.arena_bytes), plan.finalized_sha256) != sizes:
        raise CFault("arena.json", 0, "not the plan of this inference")
