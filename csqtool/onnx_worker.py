"""What onnx and onnxruntime do with a file that may be hostile; `csqtool.onnx_isolated` calls it in the sandbox.

Functions take and return plain values, bytes and arrays. Sessions are kept under numbers until they are released.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from csqtool.files import no_temporary_files
from csqtool.onnx_session import CPU, session

Arrays = dict[str, NDArray[Any]]
_sessions: dict[int, Any] = {}
_numbers = count(1)


def providers() -> list[str]:
    """Return the execution providers that this onnxruntime was built with."""
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def load(content: bytes, optimization: str, threads: int, provider: str, release: list[int]) -> dict[str, Any]:
    """Load a file in onnxruntime, and return the session's number and its inputs and outputs.

    Args:
        content: the ONNX file.
        optimization: as in `csqtool.onnx_session.session`.
        threads: likewise.
        provider: likewise.
        release: numbers of sessions that are not needed any more.
    """
    for number in release:
        _sessions.pop(number, None)
    number = next(_numbers)
    loaded = _sessions[number] = session(content, optimization, threads=threads, provider=provider)
    return {
        "number": number,
        "inputs": [[value.name, value.type, list(value.shape)] for value in loaded.get_inputs()],
        "outputs": [value.name for value in loaded.get_outputs()],
    }


def run(number: int, names: list[str], feeds: Arrays) -> list[NDArray[Any]]:
    """Return the outputs of these names.

    Raises:
        RuntimeError: onnxruntime failed, or an output is no tensor of numbers.
    """
    return _numeric(_run(number, names, feeds))


def _run(number: int, names: list[str] | None, feeds: Arrays) -> list[Any]:
    try:
        return list(_sessions[number].run(names, feeds))
    except Exception as error:  # onnxruntime has one class for each kind of error, all directly below Exception
        raise RuntimeError(str(error).strip().splitlines()[0]) from error


def _numeric(outputs: list[Any]) -> list[NDArray[Any]]:
    for output in outputs:
        if not isinstance(output, np.ndarray) or output.dtype.hasobject:
            raise RuntimeError("an output is no tensor of numbers")
    return outputs


def random_run(number: int, shapes: dict[str, list[int]]) -> None:
    """Run a session once on inputs of these shapes, which stay for `times`."""
    loaded = _sessions[number]
    loaded.csqtool_feeds = {v.name: random_values(v.type, shapes[v.name]) for v in loaded.get_inputs()}
    _run(number, None, loaded.csqtool_feeds)


def random_values(kind: str, shape: Sequence[int]) -> NDArray[Any]:
    """Return an input of a type that onnxruntime names, such as ``tensor(float)``: normal values, zeros for integers.

    Raises:
        RuntimeError: it is no tensor of numbers.
    """
    if kind == "tensor(float)":
        return np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    name = kind.removeprefix("tensor(").removesuffix(")")
    try:
        return np.zeros(shape, {"double": "float64"}.get(name, name))
    except TypeError as error:
        raise RuntimeError(f"an input is {kind}, for which there are no random values") from error


def times(numbers: list[int], rounds: int) -> list[list[float]]:
    """Return how long each session takes, seconds a run, the runs of all of them interleaved."""
    found: list[list[float]] = [[] for _ in numbers]
    for index in range(rounds + 2):
        for position, number in enumerate(numbers):
            loaded = _sessions[number]
            start = time.perf_counter()
            loaded.run(None, loaded.csqtool_feeds)
            if index >= 2:  # the first runs allocate
                found[position].append(time.perf_counter() - start)
    return found


def load_cost(content: bytes, threads: int) -> dict[str, float]:
    """Return the seconds and the bytes of memory at the peak that loading takes, in a process that is new."""
    import onnxruntime  # noqa: F401 - what the library itself takes does not count

    path = Path("model.onnx")
    path.write_bytes(content)
    before = _peak_bytes()
    start = time.perf_counter()
    session(path, threads=threads)
    return {"seconds": time.perf_counter() - start, "peak_bytes": _peak_bytes() - before}


def _peak_bytes() -> int:
    # VmHWM, not ru_maxrss: that one is inherited from the parent at fork.
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def providers_used(content: bytes, optimization: str, provider: str, feeds: Arrays) -> dict[str, int]:
    """Return how many nodes each execution provider runs."""
    loaded = session(content, optimization, provider=provider, profile=Path("profile"))
    names = [output.name for output in loaded.get_outputs()]
    try:
        loaded.run(names, feeds)
    except Exception as error:
        raise RuntimeError(str(error).strip().splitlines()[0]) from error
    path = Path(loaded.end_profiling())
    events = json.loads(path.read_text())
    path.unlink()
    return dict(Counter(event["args"]["provider"] for event in events if event.get("args", {}).get("provider")))


def optimized(content: bytes) -> bytes:
    """Return the graph that onnxruntime really runs, as an ONNX file.

    Raises:
        RuntimeError: onnxruntime does not load it, or the temporary folder takes no file of its size.
    """
    path = Path("optimized.onnx")
    try:
        path.write_bytes(content)  # of a full disk onnxruntime says that serialization failed
        session(content, "on", optimized_path=str(path), provider=CPU)
        return path.read_bytes()
    except OSError as error:
        raise RuntimeError(no_temporary_files(error)) from error
    finally:
        path.unlink(missing_ok=True)


def problem(content: bytes) -> str | None:
    """Return what onnx's checker says against a file, types and shapes included; None for nothing."""
    import onnx

    try:
        onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return (str(error).strip().splitlines() or ["it is not valid"])[0]
    return None


def inlined(content: bytes) -> bytes:
    """Return the same graph without functions of its own."""
    import onnx
    import onnx.inliner

    return bytes(onnx.inliner.inline_local_functions(onnx.load_from_string(content)).SerializeToString())


def inferred(content: bytes) -> bytes:
    """Return the same graph with the types and shapes of its values, as far as onnx infers them."""
    import onnx

    return bytes(onnx.shape_inference.infer_shapes(onnx.load_from_string(content)).SerializeToString())


def evaluated(content: bytes, feeds: Arrays, most_bytes: int) -> list[NDArray[Any]]:
    """Return a graph's outputs in onnx's reference evaluator, if they take at most so many bytes.

    Raises:
        RuntimeError: it cannot, or an output is no tensor of numbers.
    """
    import onnx
    from onnx.reference import ReferenceEvaluator

    try:
        with np.errstate(all="ignore"):
            outputs = ReferenceEvaluator(onnx.load_from_string(content)).run(None, feeds)
    except MemoryError:
        raise
    except Exception as error:  # whatever an operator's implementation stumbles over
        raise RuntimeError(_first_line(error)) from error
    arrays = _numeric([np.asarray(output) if np.isscalar(output) else output for output in outputs])
    if sum(array.nbytes for array in arrays) > most_bytes:
        raise RuntimeError(f"it has {sum(array.nbytes for array in arrays)} bytes, at most {most_bytes} are expected")
    return arrays


def openvino(content: bytes, level: str, threads: int, batch: int, feeds: Arrays) -> Arrays:
    """Return a file's outputs in OpenVINO, by name.

    Raises:
        RuntimeError: it does not load or run the file.
    """
    import openvino as ov  # type: ignore[import-not-found, unused-ignore]

    Path("model.onnx").write_bytes(content)
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    if level == "off":
        settings["LP_TRANSFORMS_MODE"] = "NO"
    try:
        compiled = ov.Core().compile_model("model.onnx", "CPU", settings)
        names = [output.get_any_name() for output in compiled.outputs]
        parts = []
        for start in range(0, len(next(iter(feeds.values()))), batch):
            results = compiled({name: array[start : start + batch] for name, array in feeds.items()})
            parts.append([result.copy() for result in results.values()])
    except Exception as error:
        lines = [line.removeprefix("-- ") for line in str(error).splitlines() if line.strip()] or ["no message"]
        # Of many lines, the one that names the operators.
        raise RuntimeError(next((line for line in lines if line.startswith("No conversion")), lines[-1])) from error
    return {name: np.concatenate(column) for name, column in zip(names, zip(*parts, strict=True), strict=True)}


def qonnx_outputs(content: bytes, batch: int, feeds: Arrays) -> Arrays:
    """Return a QONNX file's outputs in qonnx's own executor, by name.

    Raises:
        RuntimeError: it does not load or run the file.
    """
    import onnx
    from qonnx.core import onnx_exec
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.transformation.infer_shapes import InferShapes

    proto = onnx.load_from_string(content)

    def made(graph: onnx.GraphProto, **settings: Any) -> onnx.ModelProto:
        # qonnx gives the model of each node the newest version of the format that onnx knows, onnxruntime may not.
        return onnx.helper.make_model(graph, **{"opset_imports": proto.opset_import, **settings},
                                      ir_version=proto.ir_version)  # fmt: skip

    parts = []
    try:
        with mock.patch.object(onnx_exec, "qonnx_make_model", made):
            for start in range(0, len(next(iter(feeds.values()))), batch):
                given = {name: array[start : start + batch] for name, array in feeds.items()}
                for value in (*proto.graph.input, *proto.graph.output):
                    value.type.tensor_type.shape.dim[0].dim_value = len(next(iter(given.values())))
                wrapper = ModelWrapper(proto, make_deepcopy=True).transform(InferShapes())
                parts.append(dict(onnx_exec.execute_onnx(wrapper, given)))
    except Exception as error:
        raise RuntimeError(_first_line(error)) from error
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def qonnx_facts(content: bytes) -> dict[str, Any]:
    """Return what qonnx infers of a QONNX file: the type and bits of each value, and its cost of an inference.

    Raises:
        RuntimeError: it does not read the file.
    """
    import onnx
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.transformation.infer_datatypes import InferDataTypes
    from qonnx.transformation.infer_shapes import InferShapes
    from qonnx.util.inference_cost import inference_cost

    try:
        wrapper = ModelWrapper(onnx.load_from_string(content)).transform(InferShapes())
        wrapper = wrapper.transform(InferDataTypes(allow_scaledint_dtypes=True))
        types = {name: wrapper.get_tensor_datatype(name) for node in wrapper.graph.node for name in node.output}
        cost = inference_cost(ModelWrapper(onnx.load_from_string(content)))["total_cost"]
    except Exception as error:
        raise RuntimeError(_first_line(error)) from error
    return {
        "types": {name: [kind.name, int(kind.bitwidth())] for name, kind in types.items()},
        "bops": float(cost["total_bops"]),
        "macs": float(cost["total_macs"]),
        "left_out": sorted(re.findall(r"\w+", cost["unsupported"].removeprefix("set"))),
    }


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0]}"
