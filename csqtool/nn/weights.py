"""Which parameters are quantized, and how a parametrization takes their place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from csqtool.errors import ConfigError


@dataclass(frozen=True)
class Weight:
    """A quantizable parameter.

    Attributes:
        name: its first name in the model.
        parameter: the parameter, emptied once a parametrization has taken its place.
        places: all modules and attributes that hold it; several if it is tied.
        aliases: its other names.
        shape: the weight's shape.
    """

    name: str
    parameter: nn.Parameter
    places: tuple[tuple[nn.Module, str], ...]
    aliases: tuple[str, ...]
    shape: torch.Size

    @property
    def elements(self) -> int:
        """Number of weights."""
        return self.shape.numel()


class WeightSource(nn.Module):
    """Base of the parametrizations that hold a weight in a form of their own, and yield it in every forward pass."""

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Leave an empty tensor in the parametrized module's place: the weight is held here."""
        return weight.new_empty(0)


def weights_called(model: nn.Module, names: Iterable[str]) -> list[Weight]:
    """Return parameters by name, in the model's order; one that is tied, or in a module of two names, is returned once.

    Args:
        model: the model.
        names: names of parameters; those that the model does not have are left out.
    """
    wanted = set(names)
    found: dict[int, tuple[str, nn.Parameter, dict[tuple[int, str], tuple[nn.Module, str]], list[str]]] = {}
    for module_name, module in model.named_modules(remove_duplicate=False):
        for attribute, parameter in module.named_parameters(recurse=False):
            name = f"{module_name}.{attribute}" if module_name else attribute
            _, _, places, its_names = found.setdefault(id(parameter), (name, parameter, {}, []))
            places[id(module), attribute] = (module, attribute)
            its_names.append(name)
    return [
        Weight(name, p, tuple(places.values()), tuple(its_names[1:]), p.shape)
        for name, p, places, its_names in found.values()
        if wanted.intersection(its_names)
    ]


def quantizable_weights(model: nn.Module, used: Iterable[str], exclude: tuple[str, ...] = ()) -> list[Weight]:
    """Return the weights of convolutions, linear and recurrent layers, embeddings, attention and matrix products.

    What an operation does with a parameter counts, not what it is called: a factor of a normalisation is none,
    whatever its shape.

    Args:
        model: the model.
        used: names of the parameters that the forward pass uses as weights, `csqtool.nn.sites.Sites.weights`.
        exclude: patterns of names (as in a shell) that are left out.
    """
    return [
        weight for weight in weights_called(model, used)
        if len(weight.shape) >= 2 and weight.parameter.is_floating_point()
        and not any(fnmatchcase(weight.name, pattern) for pattern in exclude)
    ]  # fmt: skip


def excluded_weights(model: nn.Module, used: Iterable[str], exclude: tuple[str, ...]) -> set[str]:
    """Return the names of the weights that patterns leave out; the arguments are those of `quantizable_weights`."""
    kept = {weight.name for weight in quantizable_weights(model, used, exclude)}
    return {weight.name for weight in quantizable_weights(model, used)} - kept


def unused_weights(model: nn.Module, used: Iterable[str]) -> list[str]:
    """Return the weights of layers that the forward pass does not compute, by name: they stay in float."""
    known = {id(weight.parameter) for weight in weights_called(model, used)}
    layers = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding, nn.RNNBase, nn.RNNCellBase)
    return [
        f"{path}.{name}" for path, module in model.named_modules() if isinstance(module, layers)
        for name, parameter in module.named_parameters(recurse=False)
        if name.startswith("weight") and parameter.ndim >= 2 and id(parameter) not in known
    ]  # fmt: skip


def check_excluded(exclude: tuple[str, ...], weights: list[Weight]) -> None:
    """Check that every pattern matches a quantizable weight.

    Raises:
        ConfigError: one matches none.
    """
    names = [name for weight in weights for name in (weight.name, *weight.aliases)]
    for pattern in exclude:
        if not any(fnmatchcase(name, pattern) for name in names):
            layers = ", ".join(weight.name for weight in weights)
            raise ConfigError(f"exclude {pattern!r} matches no quantized layer; the layers are {layers}")


def attach(weight: Weight, source: nn.Module) -> None:
    """Make `source` the parametrization of the weight in all its places, so that tied weights stay tied."""
    for module, attribute in weight.places:
        parametrize.register_parametrization(module, attribute, source, unsafe=True)
        # What torch keeps as the original is an empty tensor, which must not be trained or decayed.
        getattr(module.parametrizations, attribute).original.requires_grad_(False)
        if isinstance(module, nn.RNNBase):
            _forget_weights(module)
            if _forget_weights not in module._forward_hooks.values():
                module.register_forward_hook(_forget_weights)


@torch.no_grad()
def detach(weight: Weight, value: Tensor) -> None:
    """Undo `attach`: remove the parametrization and make `value` the weight, one parameter for all its places."""
    parameter = nn.Parameter(value.clone())
    for module, attribute in weight.places:
        parametrize.remove_parametrizations(module, attribute, leave_parametrized=False)
        setattr(module, attribute, parameter)
        if isinstance(module, nn.RNNBase) and not parametrize.is_parametrized(module):
            for key in [key for key, hook in module._forward_hooks.items() if hook is _forget_weights]:
                del module._forward_hooks[key]
            module._init_flat_weights()


def _forget_weights(module: nn.RNNBase, *_: Any) -> None:
    """Drop the list in which a recurrent layer keeps its weights: it then makes a new one in the next forward pass.

    The weights of the last pass have a history, with which torch copies no module, and would be kept in memory.
    """
    count = len(module._flat_weights_names)
    module._flat_weights = [None] * count
    # References that lead nowhere, also where `parametrize.cached` keeps the weights themselves.
    module._flat_weight_refs = [_nothing] * count  # type: ignore[list-item]


def _nothing() -> None:
    """Return what a reference to a tensor that is gone returns."""
