"""From a place whose values differ to the nodes that make them differ: replaced by PyTorch's values, they do no more.

Between two places, PyTorch's own graph has values of its own (`csqtool.verifying.expected_graph`). A value of the file
is right if PyTorch's graph has the same one. The search begins at the place, where PyTorch's value is known, and goes
on to the operands that are not right, as long as giving PyTorch's operands instead still makes the place agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from csqtool.verifying.given_values import GivenValues
from csqtool.verifying.layer_verdicts import Comparison
from csqtool.verifying.layers import Cut
from csqtool.verifying.tolerances import Tolerances

TRIALS = 64  # assignments of PyTorch's values to one node's operands

Values = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Culprit:
    """A node whose value must be another one.

    Attributes:
        value: what it makes.
        instead: PyTorch's value.
        can_go: without the node, its operand passed on, the place agrees as well.
        behind: values between it and right ones that PyTorch's graph does not have either.
    """

    value: str
    instead: NDArray[Any]
    can_go: bool
    behind: tuple[str, ...]


class NodeSearch:
    """The search in one file, whose places are given PyTorch's values.

    Args:
        graph: the file's.
        cuts: its places.
        reference: PyTorch's own graph; None if torch cannot capture it.
        tolerances: what is still rounding.
    """

    def __init__(
        self, graph: GivenValues, cuts: list[Cut], reference: GivenValues | None, tolerances: Tolerances
    ) -> None:
        self._graph = graph
        self._tolerances = tolerances
        self._forced = {cut.value: cut.reference for cut in cuts if not cut.is_output}
        self._reference = reference
        self._known: Values = {}
        if reference is not None:
            steps = {f"::{cut.name}::clipped": cut.reference for cut in cuts if cut.is_quantizer}
            given = {name: steps[end] for name in reference.makers for end in steps if name.endswith(end)}
            # Its own values, computed from PyTorch's integers wherever there is a quantizer.
            self._known = reference.run(reference.needed(), given) | given
            self._known |= {t.name: onnx.numpy_helper.to_array(t) for t in reference.proto.graph.initializer}
        self._places = {cut.value: self._names_of(cut) for cut in cuts}

    def culprits(self, cut: Cut) -> list[Culprit]:
        """Return the nodes that make a place differ.

        Raises:
            RuntimeError: onnxruntime cannot run the part of the graph that computes it.
        """
        segment = self._graph.behind(cut.value, self._forced)
        own = self._graph.run(segment, {k: v for k, v in self._forced.items() if k != cut.value})
        wrong = [name for name in segment if name == cut.value or not self._is_known(own[name], cut)]
        found = list(self._from(cut.value, cut.reference, cut, own, wrong))
        return [
            Culprit(value, instead, self._can_go(value, cut, own), self._behind(value, wrong))
            for value, instead in found
        ]

    def _from(
        self, value: str, instead: NDArray[Any], cut: Cut, own: Values, wrong: list[str]
    ) -> Iterator[tuple[str, NDArray[Any]]]:
        """Yield the nodes that must have another value, among those that a value is computed by."""
        operands = [name for name in dict.fromkeys(self._graph.makers[value].input) if name in wrong]
        for values in self._assignments(value, instead, operands, cut, own):
            given = dict(zip(operands, values, strict=True))
            if self._agrees(cut, given):
                for name, one in given.items():
                    yield from self._from(name, one, cut, own, wrong)
                return
        further = self._further(value, operands, cut, own, wrong)
        if further is not None:
            yield from self._from(*further, cut, own, wrong)
        else:
            yield value, instead

    def _further(
        self, value: str, operands: list[str], cut: Cut, own: Values, wrong: list[str]
    ) -> tuple[str, NDArray[Any]] | None:
        """Return a value before the operands, where both graphs compute alike again, and PyTorch's one.

        Between them are nodes of another form than PyTorch's: a pooling and a Flatten, for instance, for one mean.
        """
        if not operands or self._reference is None:
            return None
        places = [name for name in reversed(self._behind(value, wrong)) if name not in operands]
        trials = ((name, one) for name in places for one in self._candidates(name, cut, own))
        return next((trial for trial in islice(trials, TRIALS) if self._agrees(cut, dict([trial]))), None)

    def _assignments(
        self, value: str, instead: NDArray[Any], operands: list[str], cut: Cut, own: Values
    ) -> Iterator[tuple[NDArray[Any], ...]]:
        """Yield values of PyTorch's graph for a node's operands: those of its own node first."""
        if not operands or self._reference is None:
            return
        node = self._graph.makers[value]
        for name in self._equal_to(instead, cut):
            other = self._reference.makers.get(name)
            if other is not None and other.op_type == node.op_type and len(other.input) == len(node.input):
                places = [list(node.input).index(operand) for operand in operands]
                orders = [places] if len(node.input) != 2 else [places, [1 - place for place in places]]
                for order in orders:
                    if all(other.input[place] in self._known for place in order):
                        yield tuple(self._known[other.input[place]] for place in order)
        yield from islice(product(*(self._candidates(name, cut, own) for name in operands)), TRIALS)

    def _candidates(self, name: str, cut: Cut, own: Values) -> list[NDArray[Any]]:
        """Return PyTorch's values that a value of the file may stand for."""
        return [one for one in self._nearby(cut) if one.shape == own[name].shape and one.dtype == own[name].dtype]

    def _nearby(self, cut: Cut) -> list[NDArray[Any]]:
        """Return the values of PyTorch's graph between a place and those before it; constants last."""
        assert self._reference is not None
        stops = {name for value, names in self._places.items() if value != cut.value for name in names}
        names = [name for end in self._places[cut.value][:1] for name in self._reference.behind(end, stops)]
        reads = [name for one in names for name in self._reference.makers[one].input if name in self._known]
        return [self._known[name] for name in dict.fromkeys([*names, *reads])]

    def _names_of(self, cut: Cut) -> list[str]:
        """Return what a place is called in PyTorch's graph."""
        if cut.is_quantizer:
            return [name for name in self._known if name.endswith(f"::{cut.name}::clipped")]
        if self._reference is not None and cut.is_output:
            return [cut.name]
        return [name for name in self._equal_to(cut.reference, cut) if name in getattr(self._reference, "makers", {})]

    def _equal_to(self, values: NDArray[Any], cut: Cut) -> list[str]:
        return [name for name, known in self._known.items() if known is values or self._same(values, known, cut)]

    def _is_known(self, values: NDArray[Any], cut: Cut) -> bool:
        return any(self._same(values, known, cut) for known in self._known.values())

    def _same(self, values: NDArray[Any], known: NDArray[Any], cut: Cut) -> bool:
        """Tell whether two values are equal up to the rounding that the layers level allows."""
        if values.shape != known.shape or values.dtype != known.dtype or not values.size:
            return False
        as_integers = values.dtype == np.uint8 and bool(values.ndim)
        like = Cut(cut.name, cut.value, known if as_integers else known.astype(np.float64), cut.fan_in)
        comparison = Comparison(like, self._tolerances)
        comparison.add(values if as_integers else values.astype(np.float64), like)
        return comparison.verdict()[0]

    def _agrees(self, cut: Cut, given: Mapping[str, NDArray[Any]]) -> bool:
        forced = {name: array for name, array in self._forced.items() if name != cut.value}
        try:
            found = self._graph.run([cut.value], forced | dict(given))
        except RuntimeError:
            return False
        comparison = Comparison(cut, self._tolerances)
        comparison.add(found[cut.value], cut)
        return comparison.verdict()[0]

    def _can_go(self, value: str, cut: Cut, own: Values) -> bool:
        """Tell whether the place agrees if one of a node's operands is taken for its result."""
        for name in self._graph.makers[value].input:
            operand = self._forced.get(name, own.get(name))
            if operand is None or operand.shape != own[value].shape or operand.dtype != own[value].dtype:
                continue
            if value != cut.value and self._agrees(cut, {value: operand}):
                return True
            comparison = Comparison(cut, self._tolerances)
            comparison.add(operand, cut)
            if value == cut.value and comparison.verdict()[0]:
                return True
        return False

    def _behind(self, value: str, wrong: list[str]) -> tuple[str, ...]:
        right = self._graph.makers.keys() - set(wrong)
        return tuple(name for name in self._graph.behind(value, right | self._forced.keys()) if name != value)
