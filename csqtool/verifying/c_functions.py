"""Functions of one quantized value in the C inference, in PyTorch's double precision (docs/c-inference.md, 5.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name that everybody knows
from torch import Tensor


def _setting(attributes: Mapping[str, Any], name: str, default: float) -> float:
    return float(attributes.get(name, default))


# ONNX's operators, from inputs and attributes.
FUNCTIONS: Mapping[str, Callable[[list[Tensor], Mapping[str, Any]], Tensor]] = {
    "Abs": lambda x, a: x[0].abs(),
    "Add": lambda x, a: x[0] + x[1],
    "Clip": lambda x, a: torch.minimum(torch.maximum(x[0], x[1]), x[2]),
    "Div": lambda x, a: x[0] / x[1],
    "Elu": lambda x, a: F.elu(x[0], _setting(a, "alpha", 1.0)),
    "Erf": lambda x, a: torch.erf(x[0]),
    "Exp": lambda x, a: x[0].exp(),
    "Greater": lambda x, a: (x[0] > x[1]).double(),
    "HardSigmoid": lambda x, a: (x[0] * _setting(a, "alpha", 0.2) + _setting(a, "beta", 0.5)).clamp(0, 1),
    "HardSwish": lambda x, a: F.hardswish(x[0]),
    "Identity": lambda x, a: x[0],
    "LeakyRelu": lambda x, a: F.leaky_relu(x[0], _setting(a, "alpha", 0.01)),
    "Max": lambda x, a: torch.maximum(x[0], x[-1]),
    "Min": lambda x, a: torch.minimum(x[0], x[-1]),
    "Mish": lambda x, a: F.mish(x[0]),
    "Mul": lambda x, a: x[0] * x[1],
    "Neg": lambda x, a: -x[0],
    "Pow": lambda x, a: x[0].pow(x[1]),
    "PRelu": lambda x, a: torch.where(x[0] < 0, x[0] * x[1], x[0]),
    "Relu": lambda x, a: F.relu(x[0]),
    "Selu": lambda x, a: F.selu(x[0]),
    "Sigmoid": lambda x, a: torch.sigmoid(x[0]),
    "Softplus": lambda x, a: torch.logaddexp(x[0], torch.zeros_like(x[0])),
    "Sub": lambda x, a: x[0] - x[1],
    "Tanh": lambda x, a: x[0].tanh(),
    "Where": lambda x, a: torch.where(x[0] > 0, x[1], x[2]),
}
