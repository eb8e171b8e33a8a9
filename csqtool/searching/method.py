"""The protocol of a method, and the registry of those installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from csqtool.quantized_model import LayerIntegers
from csqtool.registry import Registry
from csqtool.searching.budget import Budget, Scheme

if TYPE_CHECKING:
    from torch import Tensor, nn

    from csqtool.nn.weights import Weight
    from csqtool.searching.config import SearchConfig


class Method(Protocol):
    """A way to train quantized weights. Register the class under the entry point group ``csqtool.methods``.

    The training loop builds it with ``Method(weights, model, config, budget, scheme)``, which replaces the weights
    in place, and then calls `set_progress` before each epoch (or step), and for every step `regularization`, a
    backward pass, an optimizer step and `after_step`; in the end `finish`. A method that searches moves its
    scheme within the budget; the others keep the one they are given, and serve for finetuning as well.

    Attributes:
        description: one line for ``csqtool methods``.
        searches: the method finds how many planes each layer keeps.
        softens: what is trained differs from the quantized weights, so that `set_hard` changes something.
    """

    description: str
    searches: bool
    softens: bool

    def __init__(
        self, weights: list[Weight], model: nn.Module, config: SearchConfig, budget: Budget, scheme: Scheme
    ) -> None: ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return optimizer groups of the method's own parameters: ``params``, ``lr``, ``weight_decay``."""
        ...

    def set_progress(self, share: float) -> None:
        """Set what depends on the share (0 … 1) of the phase that is done, such as a temperature.

        Called again with the same share when a run resumes, and must then change nothing.
        """
        ...

    def regularization(self) -> Tensor | None:
        """Return what is added to the task's loss, a scalar."""
        ...

    def after_step(self) -> None:
        """Restore constraints after an optimizer step."""
        ...

    def finish(self) -> None:
        """Complete the weights after the last step."""
        ...

    def set_hard(self, hard: bool) -> None:
        """Let the weights be the quantized ones (True) or those that are trained (False)."""
        ...

    def status(self) -> dict[str, float]:
        """Return what progress shows beside the loss, such as ``beta``."""
        ...

    def scheme(self) -> dict[str, tuple[int, ...]]:
        """Return the planes each layer keeps now, by parameter name."""
        ...

    def integers(self) -> dict[str, LayerIntegers]:
        """Return each layer's q, Δ and mask, by parameter name."""
        ...


METHODS = Registry("csqtool.methods", "method")


def load_method(name: str) -> type[Method]:
    """Return the class of a method.

    Raises:
        ConfigError: no such method is installed.
    """
    loaded: type[Method] = METHODS.load(name)
    return loaded
