"""csqtool: search bit widths, ship small integer models, prove that they compute the same.

What the command line does, Python does with objects. A whole pipeline on a model of your own::

    import csqtool

    found = csqtool.search(model, train=train, test=test, target_bits=3, act_bits=8)
    quantized = found.finalize()
    csqtool.save(quantized, "model.safetensors")
    csqtool.export(quantized, "model.onnx", model=model)
    assert csqtool.verify("model.onnx", quantized, model=model, data=test).passed

The functions are described in `csqtool.api`. Importing this package imports none of torch, onnx and onnxruntime; the
functions do when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from csqtool.version import __version__

if TYPE_CHECKING:
    from csqtool.api.look import blame, doctor, formats, inspect, methods, report, sensitivity
    from csqtool.api.make import check, finalize, finetune, init, quantize, run, search
    from csqtool.api.prove import bench, diff, verify
    from csqtool.api.ship import export, load, pack, save, to_torch, unpack
    from csqtool.api.sweeps import best, compare, sweep
    from csqtool.comparing import Comparison
    from csqtool.errors import CheckFailed, CsqtoolError, InputError, SearchInterrupted
    from csqtool.quantized_model import ActivationQuantizer, QuantizedLayer, QuantizedModel
    from csqtool.searching.config import SearchConfig
    from csqtool.searching.result import SearchResult
    from csqtool.sweeping.result import SweepResult
    from csqtool.task import Task
    from csqtool.verifying import Gates, Tolerances, VerifyReport

_HOMES = {
    "ActivationQuantizer": "csqtool.quantized_model",
    "CheckFailed": "csqtool.errors",
    "CsqtoolError": "csqtool.errors",
    "Comparison": "csqtool.comparing",
    "Gates": "csqtool.verifying",
    "InputError": "csqtool.errors",
    "QuantizedLayer": "csqtool.quantized_model",
    "QuantizedModel": "csqtool.quantized_model",
    "SearchConfig": "csqtool.searching.config",
    "SearchInterrupted": "csqtool.errors",
    "SearchResult": "csqtool.searching.result",
    "SweepResult": "csqtool.sweeping.result",
    "Task": "csqtool.task",
    "Tolerances": "csqtool.verifying",
    "VerifyReport": "csqtool.verifying",
    "bench": "csqtool.api.prove",
    "best": "csqtool.api.sweeps",
    "blame": "csqtool.api.look",
    "check": "csqtool.api.make",
    "compare": "csqtool.api.sweeps",
    "diff": "csqtool.api.prove",
    "doctor": "csqtool.api.look",
    "export": "csqtool.api.ship",
    "finalize": "csqtool.api.make",
    "finetune": "csqtool.api.make",
    "formats": "csqtool.api.look",
    "init": "csqtool.api.make",
    "inspect": "csqtool.api.look",
    "load": "csqtool.api.ship",
    "methods": "csqtool.api.look",
    "pack": "csqtool.api.ship",
    "quantize": "csqtool.api.make",
    "report": "csqtool.api.look",
    "run": "csqtool.api.make",
    "save": "csqtool.api.ship",
    "search": "csqtool.api.make",
    "sensitivity": "csqtool.api.look",
    "sweep": "csqtool.api.sweeps",
    "to_torch": "csqtool.api.ship",
    "unpack": "csqtool.api.ship",
    "verify": "csqtool.api.prove",
}

__all__ = [
    "ActivationQuantizer",
    "CheckFailed",
    "Comparison",
    "CsqtoolError",
    "Gates",
    "InputError",
    "QuantizedLayer",
    "QuantizedModel",
    "SearchConfig",
    "SearchInterrupted",
    "SearchResult",
    "SweepResult",
    "Task",
    "Tolerances",
    "VerifyReport",
    "__version__",
    "bench",
    "best",
    "blame",
    "check",
    "compare",
    "diff",
    "doctor",
    "export",
    "finalize",
    "finetune",
    "formats",
    "init",
    "inspect",
    "load",
    "methods",
    "pack",
    "quantize",
    "report",
    "run",
    "save",
    "search",
    "sensitivity",
    "sweep",
    "to_torch",
    "unpack",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'csqtool' has no attribute {name!r}")
    import importlib

    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
