"""The finalized model as a PyTorch network: what every export is compared with."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from csqtool.errors import ModelError
from csqtool.nn.activation import ActivationFakeQuantizer
from csqtool.nn.markers import marker, markers_on
from csqtool.nn.quantized_net import QuantizedNet
from csqtool.nn.reparametrized import fold_parametrizations
from csqtool.nn.state_dict import check_keys, with_versions
from csqtool.nn.weights import WeightSource, attach, weights_called
from csqtool.quantized_model import QuantizedModel


class DequantizedWeight(WeightSource):
    """A finalized weight as a parametrization: float32(q)·Δ, exactly."""

    q: Tensor
    scale: Tensor

    def __init__(self, name: str, q: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.name = name
        self.register_buffer("q", q)
        self.register_buffer("scale", scale)

    def forward(self, _: Tensor | None = None) -> Tensor:
        """Return the weight."""
        if markers_on():
            return marker("Weight", (self.q, self.scale), self.q.shape, name=self.name)
        return self.q.float() * self.scale


class FrozenActivation(ActivationFakeQuantizer):
    """A finalized activation quantizer."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x rounded to the quantizer's grid."""
        if markers_on():
            return marker("Activation", (x, self.scale), x.shape, name=self.name)
        return super().forward(x)


def finalized_net(model: nn.Module, quantized: QuantizedModel) -> QuantizedNet:
    """Put a finalized model's integers, scales and float tensors into a freshly built module.

    The module's weights are then exactly float32(q)·Δ; it is in evaluation mode.

    Args:
        model: the user's module as its factory returns it; it is changed in place.
        quantized: the finalized model.

    Raises:
        ModelError: the module's parameters and the finalized tensors do not match.
    """
    fold_parametrizations(model)
    state = model.state_dict()
    wanted = {layer.name: layer.shape for layer in quantized.layers}
    wanted |= {alias: quantized.layer(name).shape for alias, name in quantized.tied.items()}
    wanted |= {name: tensor.shape for name, tensor in quantized.tensors.items()}
    check_keys(
        {name: tuple(t.shape) for name, t in state.items()}, wanted, "the finalized model", "the factory's model"
    )
    tensors = {k: torch.from_numpy(np.array(v)) for k, v in quantized.tensors.items()}
    model.load_state_dict(with_versions(tensors, model), strict=False)
    weights = {w.name: w for w in weights_called(model, (layer.name for layer in quantized.layers))}
    for layer in quantized.layers:
        if layer.name not in weights:
            raise ModelError(f"{layer.name} is no parameter of the factory's model, or the second name of one")
        source = DequantizedWeight(layer.name, torch.from_numpy(np.array(layer.q)), torch.tensor(layer.scale))
        attach(weights[layer.name], source)
    quantizers: list[ActivationFakeQuantizer] = []
    for activation in quantized.activations:
        quantizer = FrozenActivation(activation.name, activation.bits)
        quantizer.scale.data.fill_(float(activation.scale))
        quantizer.set_zero_point(activation.zero_point)
        quantizers.append(quantizer)
    net = QuantizedNet(model, quantizers, kept_outputs=quantized.info.outputs or ())
    return net.eval().requires_grad_(False)
