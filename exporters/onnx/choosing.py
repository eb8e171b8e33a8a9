"""Which weights of a file are packed at k bits and which are coded: what takes the fewest bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from csqtool.quantized_model import IntegerArray
from exporters.onnx.coding import CodedWeight, code_weights, symbols_function
from exporters.onnx.packing import pack_weight
from exporters.onnx.weight_function import Stored, WeightFunction

# Integers of one code: all are decoded at once when a file is loaded, in about 40 bytes each at the most.
MOST_INTEGERS = 1 << 21


@dataclass(frozen=True)
class WaitingWeight:
    """Integers that a function will give.

    Attributes:
        name: of the layer.
        q: the integers.
        forms: what they may be: ``packed``, ``coded`` or both.
    """

    name: str
    q: IntegerArray
    forms: tuple[str, ...]


def choose(weights: Sequence[WaitingWeight], keys: Sequence[tuple[str, bool]]) -> list[Stored]:
    """Return each weight in the form in which all of them, with their functions, take the fewest bytes.

    A function takes one or two kilobytes. So as many weights as may be are packed, or coded, or each is what takes
    fewer bytes.

    Args:
        weights: the weights.
        keys: the form of each weight's function, and whether it transposes.
    """
    packed = [pack_weight(weight.q) if "packed" in weight.forms else None for weight in weights]

    def coded_where(chosen: Sequence[bool]) -> list[Stored]:
        coded = iter(_coded([weight.q for weight, yes in zip(weights, chosen, strict=True) if yes]))
        found = [next(coded) if yes else one for one, yes in zip(packed, chosen, strict=True)]
        return [one for one in found if one is not None]

    choices = [coded_where([one is None for one in packed])]
    if any("coded" in weight.forms for weight in weights):
        choices.append(coded_where(["coded" in weight.forms for weight in weights]))
        smaller = [one is None or (isinstance(other, CodedWeight) and other.size_bytes < one.size_bytes)
                   for one, other in zip(packed, choices[-1], strict=True)]  # fmt: skip
        choices.append(coded_where(smaller))

    def size_bytes(stored: Sequence[Stored]) -> int:
        kinds: dict[str, WeightFunction] = {}
        for weight, key in zip(stored, keys, strict=True):
            kind = WeightFunction.of(weight, *key)
            kinds[kind.name] = kinds.get(kind.name, kind).joined(kind)
        functions = [kind.build() for kind in kinds.values()]
        if any(isinstance(weight, CodedWeight) for weight in stored):
            functions.append(symbols_function())
        function_bytes = sum(int(ir.to_proto(function).ByteSize()) for function in functions)
        return function_bytes + sum(weight.size_bytes for weight in stored)

    return min(choices, key=size_bytes)


def _coded(layers: Sequence[IntegerArray]) -> list[CodedWeight]:
    """Return the layers as symbols of as many codes as their size asks for."""
    found: list[CodedWeight] = []
    together: list[IntegerArray] = []
    for q in layers:
        if together and sum(other.size for other in together) + q.size > MOST_INTEGERS:
            found += code_weights(together)
            together = []
        together.append(q)
    return found + code_weights(together) if together else found
