"""PyTorch's outputs where it rounds as a file does, on values that lie on the boundary between two steps.

Two correct programs add in another order, and such a value then falls on either side. A network may amplify that one
step: in a MobileViTv2 of three bits, four values of eight images, each within 4e-5 steps of a boundary, moved the
outputs by 7 % of their spread; with PyTorch on the file's side of these four, they agreed within 6e-7. So where outputs
are further apart than that is allowed, the file runs once more with the integers of its quantizers, PyTorch takes the
file's integer where its own value lies on the boundary between both, and is compared within the same bounds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from csqtool.nn.activation import to_integers
from csqtool.nn.signature import named_inputs, named_outputs, recorded_inputs
from csqtool.onnx_isolated import IsolatedSession
from csqtool.trees import chosen, samples
from csqtool.verifying import runtime
from csqtool.verifying.layer_verdicts import FEW, on_boundary
from csqtool.verifying.layers import in_graph, reference_cuts
from csqtool.verifying.outputs import Arrays, Followed, differences_of, spread_of
from csqtool.verifying.subject import Subject

MOST_BYTES = 1 << 28  # of the integers that are held at a time


def followed(
    subject: Subject, proto: onnx.ModelProto, inputs: Any, found: Arrays, wanted: Arrays, optimization: str
) -> Followed | None:
    """Return PyTorch's outputs, those of samples that are apart computed with the file's rounding on boundaries.

    Args:
        subject: what is verified.
        proto: the file, without functions of its own.
        inputs: those of N samples.
        found: the file's outputs for them.
        wanted: PyTorch's own.
        optimization: onnxruntime's level.

    Returns:
        None where the file cannot be followed: another shape of outputs, or an error of onnxruntime.
    """
    if any(name not in found or found[name].shape != values.shape for name, values in wanted.items()):
        return None
    count = samples(inputs)
    cuts = reference_cuts(subject.net, subject.model, chosen(inputs, slice(1), count))
    places = {cut.name: cut.value for cut in in_graph(proto, cuts) if cut.is_quantizer}
    size = max(1, int(MOST_BYTES / max(sum(cut.reference.nbytes for cut in cuts), 1)))
    apart = np.max([differences_of(found[name], values) for name, values in wanted.items()], axis=0)
    order = np.argsort(-apart, kind="stable")[: np.count_nonzero(apart)]
    result, boundaries = {name: values.copy() for name, values in wanted.items()}, 0
    try:
        session = IsolatedSession(_with_integers(proto, places.values()), optimization, threads=subject.threads)
        for start in range(0, len(order), size):
            positions = order[start : start + size]
            few = chosen(inputs, torch.from_numpy(positions), count)
            feeds = named_inputs(few, recorded_inputs(subject.model.info), subject.net.model)
            values = runtime.run_once(session, {name: tensor.numpy() for name, tensor in feeds.items()})
            outputs, taken = _following(subject, few, {name: values[value] for name, value in places.items()})
            # What else was asked for may have kept the runtime from fusing: then it says nothing about these outputs.
            same = _same_run(subject, values, {name: found[name][positions] for name in wanted})
            boundaries += int(taken[same].sum())
            for name, array in outputs.items():
                result[name][positions[same]] = array[same]
    except RuntimeError:
        return None
    return Followed(result, boundaries)


def _same_run(subject: Subject, values: Arrays, found: Arrays) -> NDArray[np.bool_]:
    """Tell of which samples two runs of a file are equal, up to the float32 rounding of its last layer."""
    tolerance = subject.report.tolerances.outputs_float
    close = [differences_of(values[name], one) <= tolerance * spread_of(one) for name, one in found.items()]
    return np.asarray(np.all(close, axis=0))


def _with_integers(proto: onnx.ModelProto, values: Iterable[str]) -> bytes:
    """Return a graph with some of its integers as further outputs."""
    wide = onnx.ModelProto()
    wide.CopyFrom(proto)
    known = {output.name for output in wide.graph.output}
    wide.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None)
        for name in dict.fromkeys(values)
        if name not in known
    )
    content: bytes = wide.SerializeToString()
    return content


@torch.no_grad()
def _following(subject: Subject, inputs: Any, integers: Arrays) -> tuple[Arrays, NDArray[np.int64]]:
    """Return PyTorch's outputs with the file's integers on boundaries, and how many a sample were not its own, [N]."""
    net, allowed = subject.net, subject.report.tolerances
    taken = np.zeros(samples(inputs), np.int64)

    def observe(name: str, value: Tensor) -> Tensor:
        quantizer = net.quantizers[name]
        rounded: Tensor = quantizer(value)
        theirs = integers.get(name)
        if theirs is None or theirs.shape != value.shape or theirs.size % len(taken):
            return rounded
        own = to_integers(value, quantizer.scale, quantizer.zero_point, quantizer.largest).numpy()
        moved = own != theirs
        if not moved.any() or moved.sum() > max(FEW, allowed.layer_share * moved.size):
            return rounded
        unrounded = (value.double() / quantizer.scale + quantizer.zero_point).numpy()[moved]
        explained = moved.copy()
        explained[moved] = on_boundary(unrounded, own[moved], theirs[moved], float(own.max()), allowed)
        # Some networks fold other axes into the batch: a sample has several rows then.
        taken[:] += explained.reshape(len(taken), -1).sum(axis=1)
        other = (torch.from_numpy(theirs.astype(np.float32)) - quantizer.zero_point) * quantizer.scale
        return torch.where(torch.from_numpy(explained), other, rounded)

    output = net.observed(inputs, observe)
    return {name: value.numpy() for name, value in named_outputs(output, net.kept_outputs).items()}, taken
