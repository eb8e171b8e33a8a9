"""What a search method is, what it is made from, and the base that leaves a method of one's own thirty lines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar, cast

from torch import Tensor, nn

from csqtool.nn.weights import Weight, attach
from csqtool.quantized_model import LayerIntegers
from csqtool.searching.budget import Budget, Scheme
from csqtool.searching.config import SearchConfig
from csqtool.searching.options import METHODS
from csqtool.searching.options import Options as NoOptions


@dataclass(frozen=True)
class MethodContext:
    """What a method is made from.

    Attributes:
        weights: the weights to train; the method puts its own source in the place of each.
        model: the model that they are in.
        config: the general settings.
        options: the method's own, an instance of its `Options`.
        budget: what the scheme may cost.
        scheme: the planes to begin with, by parameter name.
    """

    weights: Sequence[Weight]
    model: nn.Module
    config: SearchConfig
    options: NoOptions
    budget: Budget
    scheme: Scheme


class Method(Protocol):
    """A way to train quantized weights. Register the class under the entry point group ``csqtool.methods``.

    Training makes it with ``Method(context)``, which replaces the weights in place, and then calls `at_epoch` before
    every epoch; for every step `at_step`, `regularization`, a backward pass, an optimizer step and `after_step`; in
    the end `finish`. A method that searches moves its scheme within the budget; the others keep the one they are
    given, and serve for finetuning as well.

    `BaseMethod` has everything but what is trained and how.

    Attributes:
        description: one line for ``csqtool methods``.
        searches: the method finds how many planes each layer keeps.
        softens: what is trained differs from the quantized weights, so that `set_hard` changes something.
        Options: a frozen dataclass of the method's own options, its fields annotated with a
            `csqtool.searching.declarations.Setting`. They become options of ``csqtool search`` and keys in pipelines.
    """

    description: ClassVar[str]
    searches: ClassVar[bool]
    softens: ClassVar[bool]
    Options: ClassVar[type[NoOptions]]

    def __init__(self, context: MethodContext) -> None: ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return optimizer groups of the method's own parameters: ``params``, ``lr``, ``weight_decay``."""
        ...

    def at_epoch(self, share: float) -> None:
        """Set what changes from epoch to epoch, such as a temperature.

        Called again with the same share when a run resumes, and must then change nothing.

        Args:
            share: how much of the stage is done, from 0 before the first epoch to 1 before the last.
        """
        ...

    def at_step(self, share: float) -> None:
        """Set what changes from step to step, likewise.

        Args:
            share: how much of the stage is done, from 0 before the first step to 1 before the last.
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


class PlaneSource(Protocol):
    """A `csqtool.nn.weights.WeightSource` of a weight that is made of bit planes."""

    @property
    def kept(self) -> tuple[int, ...]:
        """The planes kept now, ascending."""
        ...

    def integers(self) -> LayerIntegers:
        """Return q, Δ and the mask string."""
        ...


S = TypeVar("S", bound=PlaneSource)


class BaseMethod(ABC, Generic[S]):
    """A method that trains a source for each weight. Subclasses say which source, and which parameters are trained.

    What else a `Method` may do does nothing here.

    Attributes:
        config, options, budget: as in the `MethodContext`.
        sources: what yields each weight, by parameter name.
    """

    description: ClassVar[str]
    searches: ClassVar[bool] = False
    softens: ClassVar[bool] = False
    Options: ClassVar[type[NoOptions]] = NoOptions

    def __init__(self, context: MethodContext) -> None:
        self.config = context.config
        self.options = context.options
        self.budget = context.budget
        self.sources: dict[str, S] = {}
        for weight in context.weights:
            source = self.make_source(weight, context.scheme[weight.name])
            attach(weight, cast(nn.Module, source))
            self.sources[weight.name] = source

    @abstractmethod
    def make_source(self, weight: Weight, planes: tuple[int, ...]) -> S:
        """Return what yields a weight, a `csqtool.nn.weights.WeightSource` that begins with these planes."""

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return optimizer groups of the method's own parameters: ``params``, ``lr``, ``weight_decay``."""

    def at_epoch(self, share: float) -> None:
        """Do nothing before an epoch."""

    def at_step(self, share: float) -> None:
        """Do nothing before a step."""

    def regularization(self) -> Tensor | None:
        """Return None: the task's loss is all."""
        return None

    def after_step(self) -> None:
        """Do nothing: there is no constraint."""

    def finish(self) -> None:
        """Do nothing: training ends complete."""

    def set_hard(self, hard: bool) -> None:
        """Do nothing: the weights are the quantized ones throughout."""

    def status(self) -> dict[str, float]:
        """Return nothing of its own."""
        return {}

    def scheme(self) -> dict[str, tuple[int, ...]]:
        """Return the planes each layer keeps now."""
        return {name: source.kept for name, source in self.sources.items()}

    def integers(self) -> dict[str, LayerIntegers]:
        """Return each layer's q, Δ and mask."""
        return {name: source.integers() for name, source in self.sources.items()}


def load_method(name: str) -> type[Method]:
    """Return the class of a method.

    Raises:
        ConfigError: no such method is installed.
    """
    loaded: type[Method] = METHODS.load(name)
    return loaded
