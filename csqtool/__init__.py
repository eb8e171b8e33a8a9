"""csqtool: search bit widths, ship small integer models, prove they compute the same.

The verbs of the command line are functions here, with the same words::

    import csqtool

    csqtool.search(csqtool.SearchConfig(model="net.py:build", data="digits", target_bits=3), Path("run"))
    csqtool.finalize(Path("run"), Path("model.safetensors"))
    csqtool.export(Path("model.safetensors"), Path("model.onnx"), format="onnx")
    assert csqtool.verify(Path("model.onnx"), Path("model.safetensors")).passed

Importing this package imports none of torch, onnx and onnxruntime; the functions do when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from csqtool.version import __version__

if TYPE_CHECKING:
    from csqtool.benchmarking import bench
    from csqtool.diffing import diff
    from csqtool.exporting import export
    from csqtool.finalized_file import read_finalized
    from csqtool.finalizing import finalize
    from csqtool.inspecting import inspect
    from csqtool.packing import pack, unpack
    from csqtool.pipeline_runner import run_pipeline
    from csqtool.quantized_model import ActivationQuantizer, QuantizedLayer, QuantizedModel
    from csqtool.rebuild import rebuilt_net
    from csqtool.searching import SearchConfig, finetune, resume_search, search
    from csqtool.starting import init
    from csqtool.verifying import Gates, VerifyReport, verify


_HOMES = {
    "ActivationQuantizer": "csqtool.quantized_model",
    "Gates": "csqtool.verifying",
    "QuantizedLayer": "csqtool.quantized_model",
    "QuantizedModel": "csqtool.quantized_model",
    "SearchConfig": "csqtool.searching",
    "VerifyReport": "csqtool.verifying",
    "bench": "csqtool.benchmarking",
    "diff": "csqtool.diffing",
    "export": "csqtool.exporting",
    "finalize": "csqtool.finalizing",
    "finetune": "csqtool.searching",
    "init": "csqtool.starting",
    "inspect": "csqtool.inspecting",
    "pack": "csqtool.packing",
    "read_finalized": "csqtool.finalized_file",
    "rebuilt_net": "csqtool.rebuild",
    "resume_search": "csqtool.searching",
    "run_pipeline": "csqtool.pipeline_runner",
    "search": "csqtool.searching",
    "unpack": "csqtool.packing",
    "verify": "csqtool.verifying",
}

__all__ = [
    "ActivationQuantizer",
    "Gates",
    "QuantizedLayer",
    "QuantizedModel",
    "SearchConfig",
    "VerifyReport",
    "__version__",
    "bench",
    "diff",
    "export",
    "finalize",
    "finetune",
    "init",
    "inspect",
    "pack",
    "read_finalized",
    "rebuilt_net",
    "resume_search",
    "run_pipeline",
    "search",
    "unpack",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'csqtool' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
