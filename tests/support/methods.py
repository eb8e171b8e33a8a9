"""Methods on a small network, without a search around them."""

from __future__ import annotations

import torch
from torch import nn

from csqtool.data import as_source
from csqtool.nn.sites import record
from csqtool.nn.weights import quantizable_weights
from csqtool.searching.budget import make_budget, uniform, uniform_scheme
from csqtool.searching.config import SearchConfig
from csqtool.searching.curvature import Curvature
from csqtool.searching.method import Method, MethodContext, load_method
from csqtool.searching.options import BUILT_IN


def small_net() -> nn.Sequential:
    """Return a network of two layers, 800 and 80 weights, always the same."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 2))


def made(name: str, target: float, model: nn.Module, **settings: object) -> Method:
    """Return a method that has taken the place of the weights of `model`.

    Args:
        name: the method.
        target: planes a weight; of a method that counts bytes, bits.
        model: the network.
        settings: others.
    """
    bits = target * sum(p.numel() for p in model.parameters() if p.ndim == 2)
    budgets = {"target_size": f"{bits / 8:.0f}B"} if BUILT_IN[name].counts_bytes else {"target_bits": target}
    config = SearchConfig.make(model="m", data="d", method=name, **{**budgets, **settings})
    features = next(m.in_features for m in model.modules() if isinstance(m, nn.Linear))
    weights = quantizable_weights(model, record(model, [torch.zeros(2, features)]).weights)
    kind = load_method(name)
    budget = make_budget(config, {w.name: w.elements for w in weights}, fixed_bytes=0)
    scheme = {w.name: uniform(8) for w in weights} if kind.searches else uniform_scheme(budget, method=name)
    data = as_source(
        train=(torch.randn(64, features, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 2),
        needs=("train",),
    )
    curvature = Curvature(model, data, torch.device("cpu"), lambda found: found)
    return kind(MethodContext(weights, model, config, config.options_of(name), budget, scheme, curvature))
