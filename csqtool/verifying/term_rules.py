"""The rules by which two forms of one computation get one expression. Each holds for every input."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool.verifying.terms import NOTHING, Number, Term, Terms

COMMUTATIVE = ("Add", "Mul", "And", "Or", "Xor", "Equal", "BitwiseAnd", "BitwiseOr", "BitwiseXor")
OF_ONE_IS_ITSELF = ("Identity", "Max", "Min", "Sum", "Mean")
WINDOWED = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "ConvInteger")
FLOAT_CLIPS = ("Relu", "Clip")


def simplified(terms: Terms, term: Term) -> Number:
    """Return the number of an operator's result, after the rules.

    Args:
        terms: gets new expressions.
        term: an operator on numbers that are simplified already.
    """
    rule = _RULES.get(term.operator)
    if rule is not None:
        return rule(terms, term)
    if term.operator in OF_ONE_IS_ITSELF and len(term.inputs) == 1 and not term.attributes:
        return term.inputs[0]
    if term.operator in COMMUTATIVE and len(term.inputs) == 2:
        term = Term(term.operator, term.attributes, tuple(sorted(term.inputs)))
    return terms.number(term)


def _without(term: Term, *names: str) -> Term:
    return Term(term.operator, tuple((k, v) for k, v in term.attributes if k not in names), term.inputs)


def _attributes(term: Term) -> dict[str, Any]:
    return dict(term.attributes)


def _windowed(terms: Terms, term: Term) -> Number:
    """Windows: steps of 1 and paddings of 0 are the default; a kernel's shape is the weight's; a bias of 0 is none."""
    found = _attributes(term)
    if found.get("auto_pad") == "NOTSET":
        term = _without(term, "auto_pad")
    for name, neutral in (("strides", 1), ("dilations", 1), ("pads", 0), ("output_padding", 0)):
        if name in found and set(found[name]) <= {neutral}:
            term = _without(term, name)
    if "Conv" in term.operator:
        weight = terms.value(term.inputs[1])
        # Runtimes refuse another one than the weight's own, also that of a weight which the graph computes.
        if weight is None or tuple(found.get("kernel_shape", ())) == weight.shape[2:]:
            term = _without(term, "kernel_shape")
        bias = terms.value(term.inputs[2]) if len(term.inputs) == 3 else None
        if (bias is not None and not bias.any()) or (len(term.inputs) == 3 and term.inputs[2] == NOTHING):
            term = Term(term.operator, term.attributes, term.inputs[:2])
    elif "pads" not in _attributes(term) and not found.get("ceil_mode"):
        term = _without(term, "count_include_pad")
    return terms.number(term)


def _gemm(terms: Terms, term: Term) -> Number:
    """A product of matrices with factors of 1 is a MatMul and an Add, its constant weight turned beforehand."""
    found = _attributes(term)
    weight = terms.value(term.inputs[1])
    if found != {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": found.get("transB")} or weight is None:
        return terms.number(term)
    integers = terms[term.inputs[1]].operator == "integers"
    turned = terms.constant(weight.T if found["transB"] else weight, integers=integers)
    product = terms.number(Term("MatMul", (), (term.inputs[0], turned)))
    terms.ranks[product] = 2
    if len(term.inputs) < 3 or term.inputs[2] == NOTHING:
        return product
    bias = terms.value(term.inputs[2])
    if bias is not None and not bias.any():
        return product
    return terms.number(Term("Add", (), tuple(sorted((product, term.inputs[2])))))


def _add(terms: Terms, term: Term) -> Number:
    """A bias of 0 on a product of matrices is none."""
    for one, other in (term.inputs, term.inputs[::-1]):
        bias, product = terms.value(other), terms[one]
        weight = terms.value(product.inputs[1]) if product.operator == "MatMul" else None
        if weight is not None and bias is not None and bias.shape == weight.shape[-1:] and not bias.any():
            return one
    return terms.number(Term("Add", term.attributes, tuple(sorted(term.inputs))))


def _dropout(terms: Terms, term: Term) -> Number:
    """A Dropout that is not told to train passes its input on."""
    training = terms.value(term.inputs[2]) if len(term.inputs) > 2 else np.asarray(False)
    return term.inputs[0] if training is not None and not training.any() else terms.number(term)


def _dequantize(terms: Terms, term: Term) -> Number:
    """QuantizeLinear, Clip on its integers and DequantizeLinear with one scale and zero point are a quantizer.

    A Relu or a Clip before it clips the same integers, since rounding is monotonic, and goes into its bounds.
    """
    inner, low, high = terms[term.inputs[0]], 0, 255
    if inner.operator == "Clip" and len(inner.inputs) == 3:
        bounds = [terms.value(number) for number in inner.inputs[1:]]
        if any(b is None or b.dtype != np.uint8 or b.size != 1 for b in bounds):
            return terms.number(term)
        low, high = (int(b.reshape(())) for b in bounds if b is not None)
        if low > high:
            return terms.number(term)
        inner = terms[inner.inputs[0]]
    if inner.operator != "QuantizeLinear" or len(inner.inputs) != 3 or inner.inputs[1:] != term.inputs[1:]:
        return terms.number(term)
    scale, zero_point = (terms.value(number) for number in term.inputs[1:])
    plain = {"axis": 1, "saturate": 1, "block_size": 0, "output_dtype": 0, "precision": 0}
    attributes = {**_attributes(term), **_attributes(inner)}
    if scale is None or zero_point is None or scale.size != 1 or scale.dtype != np.float32 \
            or zero_point.dtype != np.uint8 or any(plain.get(k) != v for k, v in attributes.items()):  # fmt: skip
        return terms.number(term)
    return _quantizer(terms, inner.inputs[0], np.float32(scale.reshape(())), int(zero_point.reshape(())), low, high)


def _quantizer(terms: Terms, x: Number, scale: np.float32, zero_point: int, low: int, high: int) -> Number:
    source = terms[x]
    while source.operator in FLOAT_CLIPS:
        bounds = _float_bounds(terms, source)
        if bounds is None:
            break
        with np.errstate(over="ignore"):
            ends = [int(np.clip(np.rint(np.float32(b) / scale) + zero_point, 0, 255)) for b in bounds]
        low, high = (min(max(end, low), high) for end in ends)  # the quantizer clips last
        x = source.inputs[0]
        source = terms[x]
    attributes = (("high", high), ("low", low), ("scale", scale.tobytes()), ("zero_point", zero_point))
    return terms.number(Term("quantizer", attributes, (x,)))


def _float_bounds(terms: Terms, term: Term) -> tuple[float, float] | None:
    if term.operator == "Relu":
        return 0.0, np.inf
    bounds = []
    for position, default in ((1, -np.inf), (2, np.inf)):
        number = term.inputs[position] if len(term.inputs) > position else NOTHING
        value: NDArray[Any] | None = np.asarray(default) if number == NOTHING else terms.value(number)
        if value is None or value.size != 1 or value.dtype.kind != "f" or np.isnan(value).any():
            return None
        bounds.append(float(value.reshape(())))
    return (bounds[0], bounds[1]) if bounds[0] <= bounds[1] else None


def _global_average(terms: Terms, term: Term) -> Number:
    """A global average pool is the mean over all axes from the third on."""
    rank = terms.ranks.get(term.inputs[0])
    if rank is None or rank < 3:
        return terms.number(term)
    return _spatial_mean(terms, term.inputs[0], rank, keep=True)


def _spatial_mean(terms: Terms, x: Number, rank: int, *, keep: bool) -> Number:
    return terms.number(Term("spatial mean", (("keep", keep), ("rank", rank)), (x,)))


def _reduce_mean(terms: Terms, term: Term) -> Number:
    rank = terms.ranks.get(term.inputs[0])
    axes = terms.value(term.inputs[1]) if len(term.inputs) == 2 else None
    found = _attributes(term)
    if rank is None or rank < 3 or axes is None or found.get("noop_with_empty_axes"):
        return terms.number(term)
    if sorted(int(axis) % rank for axis in axes.reshape(-1)) != list(range(2, rank)):
        return terms.number(term)
    return _spatial_mean(terms, term.inputs[0], rank, keep=bool(found.get("keepdims", 1)))


def _flatten(terms: Terms, term: Term) -> Number:
    """If the axes after the channels are flattened, a mean that keeps axes of length one equals one that drops them."""
    inner = terms[term.inputs[0]]
    if inner.operator == "spatial mean" and _attributes(inner)["keep"] and _attributes(term)["axis"] == 1:
        return _spatial_mean(terms, inner.inputs[0], _attributes(inner)["rank"], keep=False)
    return terms.number(term)


def _reshape(terms: Terms, term: Term) -> Number:
    """Without a zero in the shape it does not matter what a zero means."""
    shape = terms.value(term.inputs[1])
    return terms.number(_without(term, "allowzero") if shape is not None and shape.all() else term)


def _slice(terms: Terms, term: Term) -> Number:
    """Slices of different axes are one slice; axes are counted from the front, and in order."""
    values = [terms.value(number) for number in term.inputs[1:]]
    rank = terms.ranks.get(term.inputs[0])
    if rank is None or len(values) < 3 or any(v is None for v in values):
        return terms.number(term)
    starts, ends, axes = (v.reshape(-1).tolist() for v in values[:3] if v is not None)
    steps = values[3].reshape(-1).tolist() if len(values) > 3 and values[3] is not None else [1] * len(axes)
    cuts = {int(axis) % rank: (s, e, step) for axis, s, e, step in zip(axes, starts, ends, steps, strict=True)}
    inner, x = terms[term.inputs[0]], term.inputs[0]
    if inner.operator == "slice" and not {axis for axis, *_ in inner.attributes[0][1]} & set(cuts):
        cuts |= {axis: (s, e, step) for axis, s, e, step in inner.attributes[0][1]}
        x = inner.inputs[0]
    ordered = tuple((axis, *cuts[axis]) for axis in sorted(cuts))
    number = terms.number(Term("slice", (("cuts", ordered),), (x,)))
    terms.ranks[number] = rank
    return number


_RULES = {
    **dict.fromkeys(WINDOWED, _windowed),
    "Gemm": _gemm,
    "Add": _add,
    "Dropout": _dropout,
    "DequantizeLinear": _dequantize,
    "GlobalAveragePool": _global_average,
    "ReduceMean": _reduce_mean,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Slice": _slice,
}
