"""Backends that run an ONNX file in a verification; packages add theirs under ``csqtool.backends``."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from csqtool.errors import ConfigError, nearest
from csqtool.onnx_session import CPU, session
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
        import onnxruntime

        known = {name.removesuffix("ExecutionProvider").lower(): name for name in onnxruntime.get_available_providers()}
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
        return runtime.run_batches(session(content, level, provider=self.provider, threads=self.threads), feeds)

    def _check_provider(self, content: bytes, level: str, feeds: Mapping[str, NDArray[Any]]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            loaded = session(content, level, provider=self.provider, profile=Path(folder) / "profile")
            runtime.run_batches(loaded, {name: array[:1] for name, array in feeds.items()})
            events = json.loads(Path(loaded.end_profiling()).read_text())
        used = Counter(event["args"]["provider"] for event in events if event.get("args", {}).get("provider"))
        if not used[self.provider]:
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
        from onnx.reference import ReferenceEvaluator

        proto = onnx.load_from_string(content)
        try:
            outputs = ReferenceEvaluator(proto).run(None, dict(feeds))
        except Exception as error:  # an operator's implementation may raise anything
            raise RuntimeError(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}") from error
        names = [output.name for output in proto.graph.output]
        return dict(zip(names, (np.asarray(output) for output in outputs), strict=True))


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
        """Return a file's outputs by name, computed in another process, because OpenVINO aborts on some files."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "model.onnx").write_bytes(content)
            np.savez(folder / "feeds.npz", **dict(feeds))  # type: ignore[arg-type]
            settings = [str(runtime.BATCH), str(self.threads), "NO" if level == "off" else ""]
            command = [sys.executable, "-W", "ignore", "-c", _OPENVINO, name, *settings]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                with np.load(folder / "outputs.npz") as outputs:
                    return dict(outputs)
        lines = [line.removeprefix("-- ") for line in done.stderr.splitlines() if line.strip()]
        # Of several lines, the one that names the operators.
        reason = next((line for line in lines if line.startswith("No conversion")), lines[-1] if lines else "")
        raise RuntimeError(reason or f"its process ended with {done.returncode}")


_OPENVINO = """
import sys
import numpy as np, openvino
folder, batch, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
if sys.argv[4]:
    settings["LP_TRANSFORMS_MODE"] = sys.argv[4]
compiled = openvino.Core().compile_model(f"{folder}/model.onnx", "CPU", settings)
feeds = dict(np.load(f"{folder}/feeds.npz"))
names = [output.get_any_name() for output in compiled.outputs]
parts = []
for start in range(0, len(next(iter(feeds.values()))), batch):
    results = compiled({name: array[start : start + batch] for name, array in feeds.items()})
    parts.append([result.copy() for result in results.values()])
np.savez(f"{folder}/outputs.npz", **{name: np.concatenate(p) for name, p in zip(names, zip(*parts))})
"""


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
