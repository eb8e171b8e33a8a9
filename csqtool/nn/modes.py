"""Training and evaluation mode of modules, put back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def keeping_modes(net: nn.Module) -> Iterator[None]:
    """On exit, also after an exception, give each module of `net` back the mode that it has now.

    ``net.train(was_training)`` would instead put all modules into the mode of the outermost one, and a BatchNorm
    that its owner froze with ``norm.eval()`` would train again.
    """
    modes = [(module, module.training) for module in net.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Put `net` into evaluation mode; on exit, give each of its modules its own mode back.

    Example:
        >>> net = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3).eval())
        >>> with evaluating(net):
        ...     [module.training for module in net]
        [False, False]
        >>> [module.training for module in net]
        [True, False]
    """
    with keeping_modes(net):
        net.eval()
        yield
