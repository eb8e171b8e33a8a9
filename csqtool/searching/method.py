"""The protocol of a search method, what it is constructed with, and a base class for methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar, cast

from torch import Tensor, nn

from csqtool.nn.weights import Weight, attach
from csqtool.quantized_model import LayerIntegers
from csqtool.searching.budget import Budget, Scheme
from csqtool.searching.config import SearchConfig
from csqtool.searching.curvature import Curvature
from csqtool.searching.options import METHODS
from csqtool.searching.options import Options as NoOptions


@dataclass(frozen=True)
class MethodContext:
    """What a method is constructed with.

    Attributes:
        weights: the weights to train; the method replaces each by a parametrization of its own.
        model: the model that they are in.
        config: the general settings.
        options: the method's own options, an instance of its `Options`.
        budget: the limit on the scheme's cost.
        scheme: the initial planes, by parameter name.
        curvature: estimates traces of the loss's Hessian, on training samples.
    """

    weights: Sequence[Weight]
    model: nn.Module
    config: SearchConfig
    options: NoOptions
    budget: Budget
    scheme: Scheme
    curvature: Curvature


class Method(Protocol):
    """A way to train quantized weights. Register the class under the entry point group ``csqtool.methods``.

    ``Method(context)`` replaces the weights in place. Training then calls `at_epoch` before every epoch; in every step
    `at_step`, `regularization` and, after the optimizer's step, `after_step`; and `finish` at the end. A method that
    searches changes its scheme to meet the budget. The others keep the given scheme, and can be used for finetuning.

    `BaseMethod` implements all of it but which parameters are trained, and how. docs/architecture.md has an example.

    Attributes:
        description: one line for ``csqtool methods``.
        searches: whether the method finds how many planes each layer keeps.
        counts_bytes: whether the method trains for a size of the packed file. It then needs a target size.
        data: what it needs: ``none``, ``unlabelled`` or ``labelled`` data.
        softens: whether the weights differ from the quantized ones during training, so that `set_hard` has an effect.
        Options: a frozen dataclass of the method's own options, its fields annotated with a
            `csqtool.searching.declarations.Setting`. They become options of ``csqtool search`` and keys in pipelines.
    """

    description: ClassVar[str]
    searches: ClassVar[bool]
    counts_bytes: ClassVar[bool]
    data: ClassVar[str]
    softens: ClassVar[bool]
    Options: ClassVar[type[NoOptions]]

    def __init__(self, context: MethodContext) -> None: ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return optimizer groups of the method's own parameters: ``params``, ``lr``, ``weight_decay``."""
        ...

    def at_epoch(self, share: float) -> None:
        """Update what changes from epoch to epoch, such as a temperature.

        When a run resumes, this is called again with the same share, and must then change nothing.

        Args:
            share: the share of the stage that is done, from 0 before the first epoch to 1 before the last.
        """
        ...

    def at_step(self, share: float) -> None:
        """Update what changes from step to step; the same rule holds.

        Args:
            share: the share of the stage that is done, from 0 before the first step to 1 before the last.
        """
        ...

    def regularization(self) -> Tensor | None:
        """Return a scalar that is added to the task's loss, or None."""
        ...

    def own_loss(self, net: nn.Module, teacher: nn.Module | None, inputs: Any) -> Tensor | None:
        """Return the loss of a step in place of the task's on the training batch, or None.

        Args:
            net: the network in training, with its activation quantizers.
            teacher: the float network; there is one for methods whose `data` is ``none``, and with ``distill``.
            inputs: of the training batch; a method that needs no data looks at their shape alone.
        """
        ...

    def after_step(self) -> None:
        """Restore constraints after an optimizer step."""
        ...

    def finish(self) -> None:
        """Complete the weights after the last step."""
        ...

    def tighten(self, too_large: Callable[[], bool]) -> bool:
        """Change integers after the last step until the packed file is not too large.

        Args:
            too_large: returns whether the file of the present integers exceeds the target size.

        Returns:
            False if the method cannot do this, and has changed nothing: then planes are dropped.
        """
        ...

    def set_hard(self, hard: bool) -> None:
        """Make the forward pass use the quantized weights (True) or the soft ones that are trained (False)."""
        ...

    def status(self) -> dict[str, float]:
        """Return figures that progress shows beside the loss, such as ``beta``."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold beside the network and the optimizer: tensors and plain values."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        ...

    def scheme(self) -> dict[str, tuple[int, ...]]:
        """Return the planes that each layer keeps now, by parameter name."""
        ...

    def integers(self) -> dict[str, LayerIntegers]:
        """Return each layer's q, Δ and mask, by parameter name."""
        ...


class PlaneSource(Protocol):
    """A `csqtool.nn.weights.WeightSource` whose weight consists of bit planes."""

    @property
    def kept(self) -> tuple[int, ...]:
        """The planes that are kept now, ascending."""
        ...

    def integers(self) -> LayerIntegers:
        """Return q, Δ and the mask string."""
        ...


S = TypeVar("S", bound=PlaneSource)


class BaseMethod(ABC, Generic[S]):
    """A method that trains a source for each weight. Subclasses define the source and its optimizer groups.

    The other members of `Method` do nothing unless a subclass overrides them.

    Attributes:
        config, options, budget: as in the `MethodContext`.
        sources: the source of each weight, by parameter name.
    """

    description: ClassVar[str]
    searches: ClassVar[bool] = False
    counts_bytes: ClassVar[bool] = False
    data: ClassVar[str] = "labelled"
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
    def make_source(self, weight: Weight, exponents: tuple[int, ...]) -> S:
        """Return the source of a weight, a `csqtool.nn.weights.WeightSource` that begins with these planes."""

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return optimizer groups of the method's own parameters: ``params``, ``lr``, ``weight_decay``."""

    def at_epoch(self, share: float) -> None:
        """Do nothing before an epoch."""

    def at_step(self, share: float) -> None:
        """Do nothing before a step."""

    def regularization(self) -> Tensor | None:
        """Return None: nothing is added to the task's loss."""
        return None

    def own_loss(self, net: nn.Module, teacher: nn.Module | None, inputs: Any) -> Tensor | None:
        """Return None: the loss is the task's."""
        return None

    def after_step(self) -> None:
        """Do nothing: there is no constraint."""

    def finish(self) -> None:
        """Do nothing: the weights are complete when training ends."""

    def tighten(self, too_large: Callable[[], bool]) -> bool:
        """Return False: planes are dropped instead."""
        return False

    def set_hard(self, hard: bool) -> None:
        """Do nothing: training uses the quantized weights throughout."""

    def status(self) -> dict[str, float]:
        """Return no figures."""
        return {}

    def state(self) -> dict[str, Any]:
        """Return nothing: all of the state is in the sources."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Do nothing."""

    def scheme(self) -> dict[str, tuple[int, ...]]:
        """Return the planes that each layer keeps now."""
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


class _WithStep(Protocol):
    @property
    def latent(self) -> nn.Parameter: ...

    @property
    def scale(self) -> nn.Parameter: ...


def groups_with_steps(sources: Iterable[_WithStep], config: SearchConfig) -> list[dict[str, Any]]:
    """Return optimizer groups for latent weights and their step sizes, with the rates of LSQ."""
    pairs = [(source.latent, source.scale) for source in sources]
    rate = config.learning_rate
    return [
        {"params": [latent for latent, _ in pairs], "lr": rate, "weight_decay": config.weight_decay},
        # A step size is orders of magnitude smaller than a weight.
        {"params": [step for _, step in pairs], "lr": 0.1 * rate, "weight_decay": 0.0},
    ]
