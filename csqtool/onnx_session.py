"""Loading an ONNX file in onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CPU = "CPUExecutionProvider"


def session(
    content: bytes | Path,
    optimization: str = "on",
    *,
    optimized_path: str | None = None,
    threads: int = 0,
    provider: str = CPU,
    profile: Path | None = None,
) -> Any:
    """Return an onnxruntime session.

    Args:
        content: the ONNX file, or its path.
        optimization: the optimization level: ``off``, ``basic``, ``extended``, or ``on``, onnxruntime's default.
        optimized_path: where to write the optimized graph.
        threads: threads of one operator, 0 for onnxruntime's own choice.
        provider: the execution provider; nodes that it cannot run are run on the CPU.
        profile: the prefix of a profile's file name; ``end_profiling`` writes the file.

    Raises:
        RuntimeError: onnxruntime cannot load the file; the message is onnxruntime's.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors are raised; logged, they would print names from the file unescaped
    options.intra_op_num_threads = threads
    # Otherwise threads would spin between runs and take cores from other sessions of this process.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    level = ort.GraphOptimizationLevel
    levels = {"off": level.ORT_DISABLE_ALL, "basic": level.ORT_ENABLE_BASIC, "extended": level.ORT_ENABLE_EXTENDED}
    options.graph_optimization_level = levels.get(optimization, level.ORT_ENABLE_ALL)
    if optimized_path is not None:
        options.optimized_model_filepath = optimized_path
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    try:
        source = str(content) if isinstance(content, Path) else content
        return ort.InferenceSession(source, options, providers=list(dict.fromkeys([provider, CPU])))
    except Exception as error:  # onnxruntime has one class for each kind of error, all directly below Exception
        raise RuntimeError(str(error).strip().splitlines()[0]) from error
