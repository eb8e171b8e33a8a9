"""Cross-layer equalization: scales of channels move between parts that follow each other (Nagel et al. 2019).

A quantized weight has one step size, so channels of small weights lose most. Where the output of one part reaches the
next one alone, through nothing but functions f with f(s·x) = s·f(x) for s > 0, channel i may be divided by any s_i in
the first part and multiplied by it in the second, and the network computes the same (eq. 5 to 7). BatchNorm takes the
scale of its input away by its statistics, so in front of it output channels are free whatever follows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from csqtool.nn.operations import NORM_OPS, WEIGHT_OPS
from csqtool.nn.sites import Site, Sites

# f(s·x) = s·f(x) for s > 0, channel by channel. Activation functions with a fixed bound, such as ReLU6, are none.
HOMOGENEOUS_OPS = ("relu", "leaky_relu", "max_pool", "avg_pool", "dropout")
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)  # output channels on axis 0 of the weight, inputs on axis 1
NEGLIGIBLE = 1e-3  # of the median effect; channels below it are dead, and stay as they are


@dataclass(frozen=True)
class Edge:
    """Two parts of which the second alone uses the first one's output.

    Attributes:
        source: path of a layer or a BatchNorm.
        target: path of the BatchNorm or the layer that follows.
    """

    source: str
    target: str

    @property
    def weights(self) -> set[str]:
        """The names of both parts' weights."""
        return {f"{self.source}.weight", f"{self.target}.weight"}


def edges(model: nn.Module, recorded: Sites) -> list[Edge]:
    """Return where scales can move, in the order of the forward pass.

    Args:
        model: the float module that was recorded; its weights are plain parameters.
        recorded: its sites.

    Example:
        ReLU lets scales pass, ReLU6 does not:

        >>> from csqtool.nn.sites import record
        >>> first = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU6()
        >>> net = nn.Sequential(*first, nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> edges(net, record(net, torch.zeros(2, 4)))
        [Edge(source='0', target='1'), Edge(source='3', target='5')]
    """
    calls = Counter(site.module for site in recorded.sites if site.kind in (WEIGHT_OPS, NORM_OPS))
    holders = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))

    def is_usable(site: Site) -> bool:
        module = model.get_submodule(site.module)
        if calls[site.module] > 1 or any(holders[id(p)] > 1 for p in module.parameters(recurse=False)):
            return False
        if site.kind == NORM_OPS:
            return isinstance(module, _BatchNorm) and module.affine and module.running_var is not None
        plain = isinstance(module, LAYERS) and not parametrize.is_parametrized(module)
        return plain and site.weight == f"{site.module}.weight"

    found = []
    for site in recorded.sites:
        if site.kind not in (WEIGHT_OPS, NORM_OPS) or not is_usable(site):
            continue
        after = _only_consumer(site)
        while after is not None and after.operation in HOMOGENEOUS_OPS:
            after = _only_consumer(after)
        if after is None or after.kind not in (WEIGHT_OPS, NORM_OPS) or not is_usable(after):
            continue
        source, target = (model.get_submodule(one.module) for one in (site, after))
        if _channels(source)[1] == _channels(target)[0]:
            found.append(Edge(site.module, after.module))
    return found


def _only_consumer(site: Site) -> Site | None:
    return site.consumers[0] if len(site.consumers) == 1 and not site.is_output else None


def _weight(part: nn.Module) -> Tensor:
    assert isinstance(part.weight, Tensor)
    return part.weight


def _channels(part: nn.Module) -> tuple[int, int]:
    """Return the numbers of input and output channels."""
    weight = _weight(part)
    return len(weight) if isinstance(part, _BatchNorm) else weight.shape[1] * getattr(part, "groups", 1), len(weight)


@torch.no_grad()
def move(model: nn.Module, edge: Edge, factors: Tensor) -> None:
    """Divide an edge's channels by factors in its source, and multiply them by these in its target.

    Args:
        model: is changed; it computes the same, up to the rounding of float32.
        edge: one of `edges`.
        factors: above zero, [C].
    """
    source, target = model.get_submodule(edge.source), model.get_submodule(edge.target)
    s = factors.double()
    for parameter in (source.weight, source.bias):
        if isinstance(parameter, Tensor):
            parameter.copy_(parameter.double() / s.view(-1, *[1] * (parameter.ndim - 1)))
    weight = _weight(target)
    if not isinstance(target, _BatchNorm):
        groups = getattr(target, "groups", 1)
        # [groups, 1, inputs of each] → [outputs, inputs of each, 1, …]
        by_weight = s.view(groups, 1, -1).expand(-1, len(weight) // groups, -1).flatten(0, 1)
        weight.copy_(weight.double() * by_weight.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2)))
        return
    assert target.running_mean is not None
    assert target.running_var is not None
    variance = target.running_var.double()
    # ε makes the standard deviation shrink by less than s: γ makes up for it.
    before, after = (variance + target.eps).sqrt(), (variance / s**2 + target.eps).sqrt()
    target.running_mean.copy_(target.running_mean.double() / s)
    target.running_var.copy_(variance / s**2)
    weight.copy_(weight.double() * s * after / before)


@torch.no_grad()
def factors(model: nn.Module, edge: Edge) -> list[Tensor]:
    """Return factors that equalize an edge's channels, one or two ways, each float64 [C] with a geometric mean of 1.

    A channel of size r₁ that is multiplied by r₂ has the effect e = r₁·r₂. Between layers, s = √(r₁/r₂) leaves √e in
    both (eq. 11, with root mean squares for ranges); of BatchNorm, r₁ is √(γ² + β²). BatchNorm multiplies by γ/σ, so in
    front of it s = r₁/√e leaves √e in the weight, and s = r₁ the same in all rows, as one step size for each row would.
    Dead channels keep their scale.
    """
    source, target = model.get_submodule(edge.source), model.get_submodule(edge.target)
    weight = _weight(source).double()
    if isinstance(source, _BatchNorm):
        first = (weight.square() + source.bias.double().square()).sqrt()
    else:
        first = weight.flatten(1).square().mean(1).sqrt()
    if isinstance(target, _BatchNorm):
        assert target.running_var is not None
        effect = first * target.weight.double().abs() / (target.running_var.double() + target.eps).sqrt()
        wanted = [first, first / effect.sqrt()]
    else:
        second = _column_sizes(target)
        effect, wanted = first * second, [(first / second).sqrt()]
    alive = effect > NEGLIGIBLE * effect.median()
    return [torch.where(alive, one / one[alive].log().mean().exp(), 1.0) for one in wanted]


def _column_sizes(layer: nn.Module) -> Tensor:
    """Return the root mean square of the weights that each input channel is multiplied by, float64 [inputs]."""
    weight = _weight(layer).double()
    squares = weight.square().reshape(*weight.shape[:2], -1).mean(-1)  # [outputs, inputs of each group]
    return squares.view(getattr(layer, "groups", 1), -1, squares.shape[1]).mean(1).sqrt().flatten()


def equalize(model: nn.Module, found: Iterable[Edge], error: Callable[[Edge], float]) -> list[Edge]:
    """Equalize each edge where that lowers an error.

    Args:
        model: is changed; it computes the same.
        found: its `edges`. Those in front of BatchNorm come last: they change no other weight.
        error: measures the network with the weights of an edge rounded.

    Returns:
        The edges that were equalized.
    """
    changed = []
    for edge in sorted(found, key=lambda edge: isinstance(model.get_submodule(edge.target), _BatchNorm)):
        parts = [model.get_submodule(path) for path in (edge.source, edge.target)]
        kept = [{name: value.clone() for name, value in part.state_dict().items()} for part in parts]
        best, chosen = error(edge), None
        for given in factors(model, edge):
            move(model, edge, given)
            after = error(edge)
            for part, state in zip(parts, kept, strict=True):
                part.load_state_dict(state)
            if after < best:
                best, chosen = after, given
        if chosen is not None:
            move(model, edge, chosen)
            changed.append(edge)
    return changed
