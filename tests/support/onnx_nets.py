"""Small networks and a short way from a float module to an ONNX file, for the tests of the exporter."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from csqtool.exporting import ExportReport
from csqtool.nn.finalized_net import finalized_net
from csqtool.nn.post_training import post_training_model
from csqtool.nn.quantized_net import QuantizedNet
from csqtool.onnx_file import flattened
from csqtool.onnx_isolated import optimized_operators
from csqtool.onnx_session import session
from csqtool.quantized_model import QuantizedModel
from csqtool.verifying.weights import onnx_activation_problems, onnx_weight_problems
from exporters.onnx import OnnxOptions, to_onnx


@dataclass
class Export:
    """A module on its whole way."""

    model: QuantizedModel
    net: QuantizedNet
    content: bytes
    report: ExportReport
    inputs: Tensor

    @property
    def proto(self) -> onnx.ModelProto:
        return onnx.load_from_string(self.content)

    def torch_output(self) -> NDArray[Any]:
        with torch.no_grad():
            return self.net(self.inputs).numpy()

    def onnxruntime_output(self, optimization: str = "on") -> NDArray[Any]:
        return session(self.content, optimization).run(None, {"input": self.inputs.numpy()})[0]

    def reference_output(self) -> NDArray[Any]:
        return ReferenceEvaluator(self.proto).run(None, {"input": self.inputs.numpy()})[0]

    def operators(self) -> list[str]:
        return optimized_operators(self.content)

    def problems(self) -> list[tuple[str, str]]:
        flat = flattened(self.proto, where="x")
        return [*onnx_weight_problems(flat, self.model), *onnx_activation_problems(flat, self.model)]

    def assert_faithful(self) -> None:
        """Weights bit for bit; outputs of both runtimes as PyTorch's."""
        assert self.problems() == []
        wanted = self.torch_output()
        spread = float(np.abs(wanted).max())
        for found in (self.onnxruntime_output("off"), self.onnxruntime_output(), self.reference_output()):
            assert found.shape == wanted.shape
            if self.model.activations:  # single rounding flips, no drift
                assert np.abs(found - wanted).mean() <= 0.02 * spread
            else:
                assert np.abs(found - wanted).max() <= 1e-5 * max(1.0, spread)


def export_module(
    module: nn.Module,
    shape: tuple[int, ...],
    *,
    planes: int | Callable[[str], int] = 3,
    act_bits: int | None = None,
    prepare: Callable[[QuantizedModel], QuantizedModel] | None = None,
    **options: Any,
) -> Export:
    """Quantize, export and rebuild; inputs of `shape` are random."""
    module = module.eval()
    inputs = torch.randn(16, *shape, generator=torch.Generator().manual_seed(0))
    model = post_training_model(module, [inputs], planes=planes, act_bits=act_bits)
    model = prepare(model) if prepare else model
    content, report = to_onnx(model, copy.deepcopy(module), OnnxOptions(**options))
    return Export(model, finalized_net(copy.deepcopy(module), model), content, report, inputs[:4])


class ConvNet(nn.Module):
    """Convolution with BatchNorm, depthwise convolution, a residual addition, pooling, classifier."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.conv2 = nn.Conv2d(width, width, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, 5)
        with torch.no_grad():
            self.norm1.weight.copy_(torch.linspace(-1, 1, width))  # flips signs of channels
            self.norm1.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.conv2(torch.relu(self.depthwise(x))) + x)
        return self.classifier(torch.flatten(self.pool(x), 1))
