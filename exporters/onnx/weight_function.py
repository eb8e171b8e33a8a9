"""The functions of standard operators that a file has for its weights: integers from a node's attributes, scaled."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from exporters.onnx.coding import CodedWeight, decoded
from exporters.onnx.functions import FunctionBody
from exporters.onnx.packing import PackedWeight, unpacked

Stored = PackedWeight | CodedWeight


@dataclass(frozen=True)
class WeightFunction:
    """The function of standard operators that gives the integers of one kind of node, and scales them.

    Attributes:
        form: ``dequantize`` ends in DequantizeLinear, ``multiply`` in Cast and Mul, which runtimes fold into a float
            weight; ``integers`` gives the integers themselves.
        wide: the integers are int16.
        coded: they are a prefix code, not a packed stream.
        levels: fields of the stream index a table.
        transposed: the two axes are exchanged before scaling.
        aligned: in all streams, each field lies within one byte.
        padded: in some node, what is decoded ends with more than the integers.
    """

    form: str
    wide: bool
    coded: bool
    levels: bool
    transposed: bool
    aligned: bool
    padded: bool

    @classmethod
    def of(cls, weight: Stored, form: str, transposed: bool) -> WeightFunction:
        """Return the function of one weight."""
        wide = weight.dtype == np.int16
        if isinstance(weight, CodedWeight):
            return cls(form, wide, True, False, transposed, True, weight.padded)
        return cls(form, wide, False, weight.levels is not None, transposed, weight.aligned, weight.padded)

    @property
    def name(self) -> str:
        """The operator's name. One function of a name serves all such nodes of a file."""
        first = {"dequantize": "Weight", "multiply": "FloatWeight", "integers": "Integers"}[self.form]
        return (
            first + "Wide" * self.wide + "Coded" * self.coded + "Levels" * self.levels + "Transposed" * self.transposed
        )

    def joined(self, other: WeightFunction) -> WeightFunction:
        """Return the function that serves the nodes of both."""
        return replace(self, aligned=self.aligned and other.aligned, padded=self.padded or other.padded)

    def build(self) -> ir.Function:
        """Return the function: the symbols of a code are its input; integers, `shape` and `scale` are attributes."""
        body = FunctionBody(*["symbols"] * self.coded)
        shape = body.attribute("value_ints", "shape", ir.AttributeType.INTS)
        if self.coded:
            integers = decoded(body, shape, padded=self.padded)
        else:
            integers = unpacked(
                body, shape, wide=self.wide, levels=self.levels, aligned=self.aligned, padded=self.padded
            )
        if self.form == "integers":
            return body.function(self.name, integers)
        if self.transposed:
            integers = body.add("Transpose", integers, perm=[1, 0])
        scale = body.attribute("value", "scale", ir.AttributeType.TENSOR)
        if self.form == "multiply":
            return body.function(self.name, body.add("Mul", body.add("Cast", integers, to=ir.DataType.FLOAT), scale))
        # A zero point of the scale's shape: onnxruntime fuses QGemm only with one.
        kind = ir.DataType.INT16 if self.wide else ir.DataType.INT8
        zero_point = body.add("Cast", body.add("Mul", scale, body.constant(np.float32(0))), to=kind)
        return body.function(self.name, body.add("DequantizeLinear", integers, scale, zero_point, axis=0))
