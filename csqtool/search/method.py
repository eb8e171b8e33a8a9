"""The protocol of a search method, and the registry of those installed."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from csqtool.errors import ConfigError, nearest
from csqtool.quantized_model import IntegerArray

if TYPE_CHECKING:
    from torch import Tensor, nn

    from csqtool.nn.gates import Weight
    from csqtool.search.config import SearchConfig


class Method(Protocol):
    """A way to search bit widths. Register the class under the entry point group ``csqtool.methods``.

    The training loop builds it with ``Method(weights, model, config)``, which replaces the weights in place,
    then calls, for every epoch, `begin_epoch` and `set_epoch`, and for every step `regularization`, a backward
    pass, an optimizer step and `after_step`; in the end `finish` and `set_hard`.

    Attributes:
        description: one line for ``csqtool methods``.
    """

    description: str

    def __init__(self, weights: list[Weight], model: nn.Module, config: SearchConfig) -> None: ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return optimizer groups of the method's own parameters: ``params``, ``lr``, ``weight_decay``."""
        ...

    def begin_epoch(self, epoch: int) -> None:
        """Change what is trained, once, before an epoch's first step."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Set what depends on the epoch alone, such as a temperature; also called when a run resumes."""
        ...

    def regularization(self) -> Tensor | None:
        """Return what is added to the task's loss, a scalar."""
        ...

    def after_step(self) -> None:
        """Restore constraints after an optimizer step."""
        ...

    def finish(self) -> None:
        """Complete the scheme after the last step."""
        ...

    def set_hard(self, hard: bool) -> None:
        """Let the weights be the quantized ones (True) or those that are trained (False)."""
        ...

    def status(self) -> dict[str, float]:
        """Return what progress shows beside the loss, such as ``beta``."""
        ...

    def precisions(self) -> dict[str, int]:
        """Return each layer's precision now, by parameter name."""
        ...

    def integers(self) -> dict[str, tuple[IntegerArray, np.float32, str]]:
        """Return each layer's q, Δ and mask, by parameter name."""
        ...


def installed_methods() -> dict[str, str]:
    """Return the names of the installed methods and where each is implemented."""
    return {entry.name: entry.value for entry in sorted(entry_points(group="csqtool.methods"))}


def load_method(name: str) -> type[Method]:
    """Return the class of a method.

    Raises:
        ConfigError: no such method is installed.
    """
    for entry in entry_points(group="csqtool.methods"):
        if entry.name == name:
            loaded: type[Method] = entry.load()
            return loaded
    raise ConfigError(f"unknown method {name!r}; {nearest(name, installed_methods())}")
