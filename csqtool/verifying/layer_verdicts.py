"""Whether a layer of an ONNX file computes what PyTorch computes, and what is wrong if it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from csqtool.quantized_model import QuantizedModel
from csqtool.verifying.layers import Cut
from csqtool.verifying.tolerances import Tolerances

FEW = 3  # one layer of two million has more, of 3,000 values that are off by rounding with a chance of 2e-5


class Comparison:
    """The comparison of one layer, batch by batch.

    Integer layers: by default at most one step off, on at most 1e-3 of the values (the float result lies next to a
    rounding boundary there). A layer of a thousand values cannot show so small a share: one value is already more.
    So up to `FEW` values may be off in any layer if PyTorch's own, before rounding, lie within float32 rounding of the
    boundary that they crossed: 32·ε of the largest integer. Float layers: float32 rounding, 32·ε·√K of the largest
    value for K products.
    """

    def __init__(self, cut: Cut, allowed: Tolerances) -> None:
        self._is_integer = cut.is_quantizer
        self._fan_in = cut.fan_in
        self._allowed = allowed
        self._problem: str | None = None
        self._steps = self._moved = self._unexplained = self._values = 0
        self._difference = self._largest = np.float32(0)

    def add(self, found: NDArray[Any], wanted: Cut) -> None:
        """Compare a batch [N, …] with PyTorch's."""
        reference = wanted.reference
        if found.shape != reference.shape:
            self._problem = f"shape {list(found.shape)} instead of {list(reference.shape)}"
        elif self._is_integer:
            steps = np.abs(found.astype(np.int16) - reference.astype(np.int16))
            self._steps = max(self._steps, int(steps.max()))
            self._moved += int((steps > 0).sum())
            self._values += steps.size
            self._unexplained += self._not_rounding(found, wanted, steps > 0)
        else:  # np.maximum keeps NaN
            if found.dtype.kind != "f":  # an output of whole numbers, or a mask
                found, reference = found.astype(np.float64), reference.astype(np.float64)
            self._difference = np.maximum(self._difference, np.abs(found - reference).max())
            self._largest = np.maximum(self._largest, np.abs(reference).max())

    def _not_rounding(self, found: NDArray[Any], wanted: Cut, moved: NDArray[np.bool_]) -> int:
        """Return how many of the values that differ did not lie next to the boundary between both integers."""
        if wanted.unrounded is None:
            return int(moved.sum())
        own, theirs = wanted.reference[moved], found[moved]
        largest = float(wanted.reference.max())
        return int((~on_boundary(wanted.unrounded[moved], own, theirs, largest, self._allowed)).sum())

    def verdict(self) -> tuple[bool, str, dict[str, float]]:
        """Return verdict, detail and figures."""
        allowed = self._allowed
        if self._problem is not None:
            return False, self._problem, {}
        if self._is_integer:
            share = self._moved / max(1, self._values)
            few = allowed.layer_share > 0 and self._moved <= FEW and not self._unexplained
            holds = self._steps <= allowed.layer_steps and (share <= allowed.layer_share or few)
            detail = f"{self._steps} steps off at most, {share:.2g} of the values"
            if holds and share > allowed.layer_share:
                detail += ", all of them on a rounding boundary"
            if not holds:
                detail += f" ({allowed.layer_steps:g} and {allowed.layer_share:g} allowed)"
            return holds, detail, {"steps": self._steps, "share": share}
        difference = float(self._difference)
        unit = float(np.finfo(np.float32).eps) * self._fan_in**0.5
        tolerance = allowed.layer_rounding * unit * max(1.0, float(self._largest))
        return difference <= tolerance, f"{difference:.2g} off, {tolerance:.2g} allowed", {"max_abs_diff": difference}


def on_boundary(
    unrounded: NDArray[np.float64], own: NDArray[Any], theirs: NDArray[Any], largest: float, allowed: Tolerances
) -> NDArray[np.bool_]:
    """Tell which values lie, before rounding, within float32 rounding of the boundary between two other integers.

    Args:
        unrounded: values in steps.
        own: what they were rounded to.
        theirs: what another program rounded them to; further than the next step it is none of rounding.
        largest: the layer's largest integer.
        allowed: how many ε of it are rounding; none are where no value of a layer may be off.
    """
    boundary = np.minimum(own, theirs) + 0.5
    unit = float(np.finfo(np.float32).eps) * max(1.0, largest)
    near = np.abs(unrounded - boundary) <= allowed.layer_rounding * unit
    next_to = np.abs(own.astype(np.int16) - theirs.astype(np.int16)) <= 1
    return np.asarray(near & next_to & (allowed.layer_share > 0))


class WeightsBehind:
    """Finds the quantized parameters between a value and the cuts before it: the layers it may blame."""

    def __init__(self, proto: onnx.ModelProto, cuts: list[Cut], model: QuantizedModel) -> None:
        self._makers = {output: node for node in proto.graph.node for output in node.output}
        self._names = {layer.name for layer in model.layers}
        self._stops = {cut.value for cut in cuts}

    def __call__(self, value: str) -> str | None:
        """Return their names, None where there are none."""
        queue, seen, found = [value], set(), []
        while queue:
            name = queue.pop()
            if name in seen or (name in self._stops and name != value):
                continue
            seen.add(name)
            if name in self._names:
                found.append(name)
            if name in self._makers:
                queue.extend(self._makers[name].input)
        return ", ".join(sorted(found)) or None


def likely_cause(
    cut: Cut, behind: str | None, figures: dict[str, float], wrong: set[str], held_unoptimized: bool
) -> str:
    """Return what puts a layer outside its tolerance, worked out from everything else that was compared.

    Args:
        cut: the layer.
        behind: the quantized parameters that it is computed from, from `WeightsBehind`.
        figures: of `Comparison`.
        wrong: parameters and quantizers that failed the weights level.
        held_unoptimized: the layer held with optimizations off.
    """
    if at_fault := wrong & set((behind or "").split(", ")):
        return f"the weights of {min(at_fault)} are wrong"
    if cut.name in wrong:
        return "its activation quantizer is wrong"
    if held_unoptimized:
        return "a fusion: with optimizations off it holds"
    if figures.get("steps", 2) <= 1:
        return "rounding: no value is further off than the next step"
    return "the graph: weights and quantizers are right, an operator, a bias or an edge is not"
