"""The outputs of some modules of a network while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from csqtool.trees import mapped


class Watched:
    """Keeps the last outputs of some modules within a block, by path in the order of the forward pass.

    Args:
        model: the module.
        paths: of the modules in it.
    """

    def __init__(self, model: nn.Module, paths: Iterable[str]) -> None:
        self.outputs: dict[str, Any] = {}
        self._modules = {path: model.get_submodule(path) for path in paths}
        self._handles: list[Any] = []

    def __enter__(self) -> dict[str, Any]:
        for path, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._keeper(path)))
        return self.outputs

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keeper(self, path: str) -> Callable[..., None]:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            # A later layer may change its input in place, as nn.ReLU(inplace=True) does.
            self.outputs[path] = mapped(output, lambda tensor: tensor.clone())

        return keep
