"""Backends that run an ONNX file in a verification; packages add theirs under ``csqtool.backends``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

from numpy.typing import NDArray

from csqtool.errors import ConfigError, nearest
from csqtool.onnx_isolated import IsolatedSession, evaluated, openvino_outputs, providers, providers_used, qonnx_outputs
from csqtool.onnx_session import CPU
from csqtool.registry import Registry
from csqtool.verifying import runtime


class Backend(Protocol):
    """Runs ONNX files.

    ``--backend NAME:OPTION`` constructs it with that option, ``--backend NAME`` without arguments.

    Attributes:
        name: its name in reports.
        levels: the optimization levels at which it runs a file; the results of all are compared.
        max_samples: how many samples it computes; None for all.
        threads: threads of one operator, 0 for its own choice; set before it runs anything.

    One with a true attribute ``reads_qonnx`` is given QONNX files as they are, others in standard operators.
    """

    name: str
    levels: tuple[str, ...]
    max_samples: int | None
    threads: int

    def run(self, content: bytes, level: str, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return a file's outputs by name.

        Raises:
            RuntimeError: it cannot load or run the file.
        """
        ...


class OnnxRuntime:
    """onnxruntime: on the CPU at each of its optimization levels, else with a provider at its default level.

    `onnxruntime:cuda` and `onnxruntime:openvino` name execution providers. onnxruntime falls back to the CPU
    silently; here it is an error if the provider ran no node.

    Args:
        provider: the execution provider, such as ``cuda`` for ``CUDAExecutionProvider``.

    Raises:
        ConfigError: this onnxruntime was built without the provider.
    """

    max_samples = None

    def __init__(self, provider: str = "cpu") -> None:
        known = {name.removesuffix("ExecutionProvider").lower(): name for name in providers()}
        wanted = provider.removesuffix("ExecutionProvider").lower()
        if wanted not in known:
            raise ConfigError(f"this onnxruntime has no provider {provider!r}; {nearest(wanted, known)}")
        self.threads = 0
        self.provider = known[wanted]
        on_cpu = self.provider == CPU
        self.name = "onnxruntime" if on_cpu else f"onnxruntime:{wanted}"
        self.levels = runtime.OPTIMIZATIONS if on_cpu else ("on",)

    def run(self, content: bytes, level: str, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return a file's outputs by name.

        Raises:
            RuntimeError: it cannot load or run the file, or the provider ran none of its nodes.
        """
        if self.provider != CPU:
            self._check_provider(content, level, feeds)
        loaded = IsolatedSession(content, level, provider=self.provider, threads=self.threads)
        return runtime.run_batches(loaded, feeds)

    def _check_provider(self, content: bytes, level: str, feeds: Mapping[str, NDArray[Any]]) -> None:
        first = {name: array[:1] for name, array in feeds.items()}
        used = providers_used(content, level, self.provider, first)
        if not used.get(self.provider):
            raise RuntimeError(f"{self.provider} ran none of its nodes: onnxruntime fell back to {', '.join(used)}")


class Reference:
    """onnx's reference evaluator: plain numpy, slow, independent of every runtime."""

    name = "reference"
    levels = ("off",)
    max_samples = 32
    threads = 0  # it has none

    def run(self, content: bytes, level: str, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return a file's outputs by name."""
        import onnx

        proto = onnx.ModelProto.FromString(content)
        names = [output.name for output in proto.graph.output]
        return dict(zip(names, evaluated(proto, feeds), strict=True))


class OpenVino:
    """OpenVINO on the CPU, without and with its low-precision transforms; float operators compute in float32.

    The transforms move quantizers, which changes outputs by steps if activations have fewer than eight bits.

    Raises:
        ConfigError: OpenVINO is not installed.
    """

    name = "openvino"
    levels = ("off", "on")
    max_samples = None

    def __init__(self) -> None:
        self.threads = 0
        if find_spec("openvino") is None:
            raise ConfigError("the backend openvino needs a package, an extra: pip install 'csqtool[openvino]'")

    def run(self, content: bytes, level: str, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return a file's outputs by name; computed in a process of its own, which OpenVINO ends on some files."""
        return openvino_outputs(content, level, self.threads, runtime.BATCH, feeds)


class Qonnx:
    """The executor of the package qonnx: QONNX files as they are, node by node.

    Raises:
        ConfigError: qonnx is not installed.
    """

    name = "qonnx"
    levels = ("off",)
    max_samples = None
    reads_qonnx = True

    def __init__(self) -> None:
        self.threads = 0  # each node runs in an onnxruntime session of its own, which takes no settings
        if find_spec("qonnx") is None:
            raise ConfigError("the backend qonnx needs a package, an extra: pip install 'csqtool[qonnx]'")

    def run(self, content: bytes, level: str, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return a file's outputs by name."""
        return qonnx_outputs(content, runtime.BATCH, feeds)


BACKENDS = Registry("csqtool.backends", "backend")


def load_backends(names: Sequence[str], threads: int = 0) -> list[Backend]:
    """Return the backends of these names, ``NAME`` or ``NAME:OPTION``, each once.

    Raises:
        ConfigError: a backend is not installed, or takes no option.
    """
    found: list[Backend] = []
    for spec in dict.fromkeys(names):
        name, _, option = spec.partition(":")
        kind = BACKENDS.load(name)
        try:
            found.append(kind(option) if option else kind())
        except TypeError as error:
            raise ConfigError(f"the backend {name} takes no option, got {option!r}") from error
        found[-1].threads = threads
    return found
