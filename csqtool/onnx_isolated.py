"""onnx and onnxruntime on files that may be hostile: every call runs in the sandbox, and an error is one line.

The functions raise `csqtool.sandbox.SandboxError`, a `RuntimeError`: the library failed, crashed, or took more time or
memory than allowed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from csqtool import sandbox
from csqtool.files import read_bytes
from csqtool.onnx_session import CPU

if TYPE_CHECKING:
    import onnx

Arrays = Mapping[str, NDArray[Any]]
GROWTH = 64  # from one bit to a float64
SMALL_BYTES = 2**20  # what any graph may grow to
_WORKER = "csqtool.onnx_worker"


class Value(NamedTuple):
    """An input or output, with the attributes of onnxruntime's own descriptions."""

    name: str
    type: str = ""
    shape: Sequence[int | str | None] = ()


class IsolatedSession:
    """An onnxruntime session in the sandbox, with the methods of onnxruntime's own that csqtool uses.

    Args:
        content: the ONNX file.
        optimization: as in `csqtool.onnx_session.session`.
        threads: likewise.
        provider: likewise.

    Raises:
        SandboxError: onnxruntime cannot load the file.
    """

    _released: ClassVar[list[int]] = []

    def __init__(self, content: bytes, optimization: str = "on", *, threads: int = 0, provider: str = CPU) -> None:
        self._number: int | None = None
        released, IsolatedSession._released = IsolatedSession._released, []
        facts = sandbox.call(f"{_WORKER}:load", content=content, optimization=optimization, threads=threads,
                             provider=provider, release=released)  # fmt: skip
        self._number = facts["number"]
        self._generation = sandbox.shared().generation
        self._inputs = [Value(*value) for value in facts["inputs"]]
        self._outputs = [Value(name) for name in facts["outputs"]]

    def __del__(self) -> None:
        """Let the sandbox forget the session with its next one."""
        if self._number is not None and self._generation == sandbox.shared().generation:
            IsolatedSession._released.append(self._number)

    @property
    def number(self) -> int:
        """What the session is called in the sandbox.

        Raises:
            SandboxError: the sandbox came to an end since the session was loaded.
        """
        if self._number is None or self._generation != sandbox.shared().generation:
            raise sandbox.SandboxError("the process that had loaded the file came to an end")
        return self._number

    def get_inputs(self) -> list[Value]:
        """Return the inputs' descriptions."""
        return self._inputs

    def get_outputs(self) -> list[Value]:
        """Return the outputs' descriptions."""
        return self._outputs

    def run(self, names: Sequence[str], feeds: Arrays) -> list[NDArray[Any]]:
        """Return the outputs of these names.

        Raises:
            SandboxError: onnxruntime failed.
        """
        found: list[NDArray[Any]] = sandbox.call(f"{_WORKER}:run", number=self.number, names=names, feeds=dict(feeds))
        return found


def providers() -> list[str]:
    """Return the execution providers that the installed onnxruntime was built with."""
    found: list[str] = sandbox.call(f"{_WORKER}:providers")
    return found


def providers_used(content: bytes, optimization: str, provider: str, feeds: Arrays) -> dict[str, int]:
    """Return how many nodes of a file each execution provider runs."""
    found: dict[str, int] = sandbox.call(
        f"{_WORKER}:providers_used", content=content, optimization=optimization, provider=provider, feeds=dict(feeds)
    )
    return found


def checker_problem(content: bytes) -> str | None:
    """Return what onnx's checker says against a file, types and shapes included; None for nothing."""
    try:
        found: str | None = sandbox.call(f"{_WORKER}:problem", content=content)
    except sandbox.SandboxError as error:
        return f"the checker failed: {error}"
    return found


def evaluated(proto: onnx.ModelProto, feeds: Arrays | None = None) -> list[NDArray[Any]]:
    """Return a graph's outputs in onnx's reference evaluator, in their order.

    Without inputs, it is what is stored in the graph: more than `GROWTH` times its size is refused.
    """
    content = proto.SerializeToString()
    most = GROWTH * len(content) + SMALL_BYTES if feeds is None else sandbox.shared().limits.memory_bytes
    found: list[NDArray[Any]] = sandbox.call(
        f"{_WORKER}:evaluated", content=content, feeds=dict(feeds or {}), most_bytes=most
    )
    return [np.asarray(array) for array in found]


def inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the same graph without functions of its own."""
    import onnx

    content: bytes = sandbox.call(f"{_WORKER}:inlined", content=proto.SerializeToString())
    return onnx.ModelProto.FromString(content)


def inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the same graph with the types and shapes of its values, as far as onnx infers them."""
    import onnx

    try:
        content: bytes = sandbox.call(f"{_WORKER}:inferred", content=proto.SerializeToString())
    except sandbox.SandboxError:
        return proto  # an unknown operator, for instance, which the checker names
    return onnx.ModelProto.FromString(content)


def openvino_outputs(content: bytes, level: str, threads: int, batch: int, feeds: Arrays) -> dict[str, NDArray[Any]]:
    """Return a file's outputs in OpenVINO, by name."""
    found: dict[str, NDArray[Any]] = sandbox.call(
        f"{_WORKER}:openvino", content=content, level=level, threads=threads, batch=batch, feeds=dict(feeds)
    )
    return found


def qonnx_outputs(content: bytes, batch: int, feeds: Arrays) -> dict[str, NDArray[Any]]:
    """Return a QONNX file's outputs in qonnx's own executor, by name."""
    found: dict[str, NDArray[Any]] = sandbox.call(
        f"{_WORKER}:qonnx_outputs", content=content, batch=batch, feeds=dict(feeds)
    )
    return found


def qonnx_facts(content: bytes) -> dict[str, Any]:
    """Return what qonnx infers of a QONNX file: ``types``, ``bops``, ``macs`` and operators that are ``left_out``."""
    found: dict[str, Any] = sandbox.call(f"{_WORKER}:qonnx_facts", content=content)
    return found


def optimized_graph(content: bytes | Path) -> onnx.GraphProto:
    """Return the graph that onnxruntime really runs, functions inlined and operators fused.

    Raises:
        RuntimeError: onnxruntime cannot load the file.
    """
    import onnx

    content = read_bytes(content) if isinstance(content, Path) else content
    return onnx.ModelProto.FromString(sandbox.call(f"{_WORKER}:optimized", content=content)).graph


def optimized_operators(content: bytes | Path) -> list[str]:
    """Return the operators that onnxruntime really runs, in order."""
    return [node.op_type for node in optimized_graph(content).node]
