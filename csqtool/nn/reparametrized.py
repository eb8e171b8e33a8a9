"""Parametrizations of the user's own, such as weight norm and spectral norm, folded into plain weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from csqtool.nn.modes import evaluating
from csqtool.nn.state_dict import load_state


def copied(module: nn.Module) -> nn.Module:
    """Return a deep copy, also of modules whose weight the old `torch.nn.utils.weight_norm` computes."""
    memo = {}
    for _, owner in module.named_modules():
        for hook in _old_style(owner):
            computed = getattr(owner, hook.name)  # torch refuses to copy what has a history
            memo[id(computed)] = computed.detach().clone()
    return copy.deepcopy(module, memo)


@torch.no_grad()
def fold_parametrizations(model: nn.Module) -> list[str]:
    """Make each tensor that another parametrization computes a plain parameter of the value that it has, in place.

    Weight norm has then no effect on inference any more, which is what it is for; spectral norm is the one that the
    weight has now.

    Returns:
        The names of the tensors that were folded.
    """
    folded = []
    with evaluating(model):  # spectral norm moves in training mode
        for path, module in list(model.named_modules()):
            names = list(getattr(module, "parametrizations", {})) if parametrize.is_parametrized(module) else []
            shared = type(module)  # by all copies of the module, and torch takes the properties away from it
            properties = {name: shared.__dict__[name] for name in names}
            for name in names:
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
            for name, computing in properties.items():
                setattr(shared, name, computing)
                if name in module._buffers:  # torch leaves what several tensors made as one that is not trained
                    value = module._buffers.pop(name)
                    assert value is not None
                    module.register_parameter(name, nn.Parameter(value.detach().clone()))
            for hook in _old_style(module):
                remove = remove_weight_norm if isinstance(hook, WeightNorm) else remove_spectral_norm
                remove(module, hook.name)
                for key, loading in list(module._load_state_dict_pre_hooks.items()):
                    if isinstance(getattr(loading, "hook", loading), SpectralNormLoadStateDictPreHook):
                        del module._load_state_dict_pre_hooks[key]  # torch itself does not find its own any more
                names.append(hook.name)
            folded += [f"{path}.{name}".lstrip(".") for name in names]
    return folded


def load_and_fold(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict of the model as it is built, or as `fold_parametrizations` leaves it, and fold the model.

    Raises:
        ModelError: keys are missing, unexpected, or shapes differ.
    """
    folded = copied(model)
    fold_parametrizations(folded)
    gone = set(model.state_dict()) - set(folded.state_dict())
    if gone and not any(key.removeprefix("module.") in gone for key in state):
        fold_parametrizations(model)
    load_state(model, state, source)
    for module in model.modules():
        for hook in _old_style(module):
            hook(module, ())  # its weight is that of what was there before
    fold_parametrizations(model)


def _old_style(module: nn.Module) -> Iterator[WeightNorm | SpectralNorm]:
    hooks = list(module._forward_pre_hooks.values())
    return (hook for hook in hooks if isinstance(hook, WeightNorm | SpectralNorm))
