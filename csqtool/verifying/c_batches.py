"""Graphs in which the batch is not every value's first axis, as in `nn.MultiheadAttention`: samples one by one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from csqtool.nn.quantized_net import QuantizedNet
from csqtool.quantized_model import QuantizedModel
from csqtool.trees import chosen, samples
from csqtool.verifying.c_sums import Computed
from csqtool.verifying.layers import Cut, reference_cuts


def moved_values(graph: onnx.GraphProto) -> frozenset[str]:
    """Return the values of a capture whose first axis is not the batch, or which have it in another axis as well.

    Args:
        graph: of `csqtool.verifying.expected_graph.captured`, whose sizes name the batch.
    """
    sizes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info)
    }
    batch = sizes[graph.input[0].name][0]
    return frozenset(
        name for name, axes in sizes.items()
        if any(isinstance(axis, str) for axis in axes)
        and (axes[0] != batch or any(isinstance(axis, str) for axis in axes[1:]))
    )  # fmt: skip


def joined(runs: Sequence[Computed]) -> Computed:
    """Return what runs of one sample each computed, as one run of all."""
    first = runs[0]
    return Computed(
        places={name: np.concatenate([run.places[name] for run in runs]) for name in first.places},
        layers=first.layers,
        output=np.concatenate([run.output for run in runs]),
    )


def cuts_by_sample(net: QuantizedNet, model: QuantizedModel, inputs: Any, moved: Collection[str]) -> list[Cut]:
    """Return `reference_cuts`; those named in `moved` get an axis of samples in front.

    Args:
        net: the finalized network.
        model: the finalized model.
        inputs: those of N samples.
        moved: quantizers of values whose first axis is not the batch.
    """
    if not moved:
        return reference_cuts(net, model, inputs)
    count = samples(inputs)
    runs = [reference_cuts(net, model, chosen(inputs, slice(i, i + 1), count)) for i in range(count)]

    def joined_cut(cuts: Sequence[Cut]) -> Cut:
        join = np.stack if cuts[0].name in moved else np.concatenate
        unrounded = [cut.unrounded for cut in cuts if cut.unrounded is not None]
        return replace(cuts[0], reference=join([cut.reference for cut in cuts]),
                       unrounded=join(unrounded) if len(unrounded) == count else None)  # fmt: skip

    return [joined_cut(cuts) for cuts in zip(*runs, strict=True)]
