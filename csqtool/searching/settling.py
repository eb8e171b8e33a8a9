"""After a search: a scheme within the budget, and the weights that finetuning starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from csqtool.nn.state_dict import load_weights
from csqtool.searching.budget import Budget, Scheme
from csqtool.searching.network import Network
from csqtool.searching.scheme import LossProbe, close_holes, settle

Settled = dict[str, tuple[int, ...]]
MOST_PLANES = 8  # of a layer


class StartingPoints:
    """The weights that finetuning may start from: the search's own, hard or soft, or the float model's.

    A short search finds a scheme before its gates have hardened into good weights, and a very short one before
    its soft weights are better than the float model's. After a long search, or one from scratch, the searched
    weights fit the scheme best.

    Args:
        network: the network with the searched weights as plain parameters.
        soft: the weights with gates as they were trained; None where the method has no soft weights.
        float_weights: the float model's file; it need not exist.
        calibrate: calibrates the activation quantizers with the network's present weights.
    """

    def __init__(
        self,
        network: Network,
        soft: Mapping[str, Tensor] | None,
        float_weights: Path,
        calibrate: Callable[[], None],
    ) -> None:
        self._network = network
        self._soft = soft
        self._float_weights = float_weights
        self._calibrate = calibrate
        self._searched = {name: value.clone() for name, value in network.net.state_dict().items()}
        self.names = [
            name
            for name, there in (("searched", True), ("soft", soft is not None), ("float", float_weights.is_file()))
            if there
        ]

    def load(self, name: str) -> None:
        """Load one of them into the network: ``searched``, ``soft`` or ``float``."""
        if name == "float":
            load_weights(self._network.model, self._float_weights)
            self._calibrate()  # its activations differ from the searched network's
            return
        self._network.net.restore(self._searched)
        if name == "soft" and self._soft is not None:
            with torch.no_grad():
                for weight in self._network.weights:
                    weight.parameter.copy_(self._soft[weight.name])

    def best(self, scheme: Scheme, probe: LossProbe) -> str:
        """Return the name of the weights that have the lowest loss when they are rounded to a scheme."""
        losses = {}
        for name in self.names:
            self.load(name)
            losses[name] = probe.of_scheme(scheme)
        return min(losses, key=losses.__getitem__)


def saved_scheme(saved: Mapping[str, Sequence[int]]) -> Settled:
    """Return the planes of each layer that a checkpoint holds.

    Raises:
        ValueError: one of them is no plane that a search has.
    """
    if not all(plane in range(MOST_PLANES) for planes in saved.values() for plane in planes):
        raise ValueError("a plane of its scheme is none that a search has")
    return {name: tuple(planes) for name, planes in saved.items()}


def contiguous(found: Scheme) -> Settled:
    """Return contiguous planes for each layer, as many as were found."""
    return {name: close_holes(exponents) for name, exponents in found.items()}


def within_budget(scheme: Scheme, budget: Budget, probe: LossProbe) -> Settled:
    """Return the scheme with planes dropped and added by measured loss, see `csqtool.searching.scheme.settle`."""
    return settle(scheme, budget, loss_with=probe)
