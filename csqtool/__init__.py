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
    from csqtool.api import (
        bench,
        diff,
        export,
        finalize,
        finetune,
        formats,
        init,
        inspect,
        load,
        methods,
        pack,
        report,
        run,
        save,
        search,
        to_torch,
        unpack,
        verify,
    )
    from csqtool.errors import CheckFailed, CsqtoolError, InputError, SearchInterrupted
    from csqtool.quantized_model import ActivationQuantizer, QuantizedLayer, QuantizedModel
    from csqtool.searching.config import SearchConfig
    from csqtool.searching.result import SearchResult
    from csqtool.task import Task
    from csqtool.verifying import Gates, Tolerances, VerifyReport

_HOMES = {
    "ActivationQuantizer": "csqtool.quantized_model",
    "CheckFailed": "csqtool.errors",
    "CsqtoolError": "csqtool.errors",
    "Gates": "csqtool.verifying",
    "InputError": "csqtool.errors",
    "QuantizedLayer": "csqtool.quantized_model",
    "QuantizedModel": "csqtool.quantized_model",
    "SearchConfig": "csqtool.searching.config",
    "SearchInterrupted": "csqtool.errors",
    "SearchResult": "csqtool.searching.result",
    "Task": "csqtool.task",
    "Tolerances": "csqtool.verifying",
    "VerifyReport": "csqtool.verifying",
    "bench": "csqtool.api",
    "diff": "csqtool.api",
    "export": "csqtool.api",
    "finalize": "csqtool.api",
    "finetune": "csqtool.api",
    "formats": "csqtool.api",
    "init": "csqtool.api",
    "inspect": "csqtool.api",
    "load": "csqtool.api",
    "methods": "csqtool.api",
    "pack": "csqtool.api",
    "report": "csqtool.api",
    "run": "csqtool.api",
    "save": "csqtool.api",
    "search": "csqtool.api",
    "to_torch": "csqtool.api",
    "unpack": "csqtool.api",
    "verify": "csqtool.api",
}

__all__ = [
    "ActivationQuantizer",
    "CheckFailed",
    "CsqtoolError",
    "Gates",
    "InputError",
    "QuantizedLayer",
    "QuantizedModel",
    "SearchConfig",
    "SearchInterrupted",
    "SearchResult",
    "Task",
    "Tolerances",
    "VerifyReport",
    "__version__",
    "bench",
    "diff",
    "export",
    "finalize",
    "finetune",
    "formats",
    "init",
    "inspect",
    "load",
    "methods",
    "pack",
    "report",
    "run",
    "save",
    "search",
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
