"""Networks of quantized activations for the C inference: a module, the shape of its input, options of the export."""

from __future__ import annotations

from csqtool.factories import build_model
from tests.support.c_nets import (
    Branches,
    Functions,
    InFloat,
    JoinedInFloat,
    OneDimension,
    Products,
    SmoothFunctions,
)
from tests.support.commands import ROOT
from tests.support.onnx_nets import ConvNet

NETS = {
    "residual, depthwise, flipped channels": (ConvNet, (3, 8, 8), {}),
    "4-bit activations": (ConvNet, (3, 8, 8), {"act_bits": 4}),
    "nine-bit weights": (ConvNet, (3, 5, 5), {"planes": 8}),
    "bytes": (ConvNet, (3, 5, 5), {"weights": "int8"}),
    "branches": (Branches, (3, 9, 11), {}),
    "functions": (Functions, (2, 5, 6), {}),
    "products": (Products, (2, 5, 4), {}),
    "one dimension": (OneDimension, (3, 13), {"planes": 1}),
    "in float": (InFloat, (5, 8), {}),
    "joined in float": (JoinedInFloat, (4, 6), {}),
    "smooth functions": (lambda: SmoothFunctions(tables=True), (4, 6), {}),
    "smooth functions in float": (SmoothFunctions, (4, 6), {}),
    "vision transformer": (
        lambda: build_model(f"{ROOT}/sample_models/digits_vit/model.py:digits_vit", {"depth": 1}),
        (1, 8, 8),
        {},
    ),
}
