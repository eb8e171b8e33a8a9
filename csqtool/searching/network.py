"""The network of a search: the user's module, its quantized weights and its activation quantizers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from csqtool.errors import ModelError, TrainingError
from csqtool.model_info import ModelInfo
from csqtool.nn.activation_variants import load_quantizer
from csqtool.nn.assemble import quantized_model
from csqtool.nn.multiplications import multiplications
from csqtool.nn.placement import FLOAT_BITS, input_bits, place_quantizers
from csqtool.nn.quantized_net import QuantizedNet, make_quantizers
from csqtool.nn.reparametrized import fold_parametrizations
from csqtool.nn.signature import batch_outputs, inputs_of
from csqtool.nn.sites import Sites, record
from csqtool.nn.state_dict import safetensors_bytes
from csqtool.nn.weights import check_excluded, detach, excluded_weights, quantizable_weights, unused_weights
from csqtool.quantized_model import LayerIntegers, QuantizedModel
from csqtool.searching.config import SearchConfig
from csqtool.searching.method import Method
from csqtool.trees import mapped, tensors

Integers = Mapping[str, LayerIntegers]


class Network:
    """The network that a search trains.

    Args:
        model: the user's module; it is changed.
        config: the settings.
        sample: inputs of a few samples.

    Attributes:
        model: the user's module.
        net: the module with its activation quantizers.
        weights: the parameters that are quantized.
        sites: what the float network's forward pass does.
        placement: where the activation quantizers are.
        folded: names of tensors that another parametrization computed, such as weight norm, and that are plain now.
        unused: weights of layers that the forward pass does not compute, which stay in float.
        inputs: names, shapes and types of the model's inputs.
        outputs: names of the outputs that files have.
        multiplications: of a sample with each quantized weight.
        input_bits: of what each quantized weight is multiplied by; 32 for float.
        method: trains the weights; None while they are plain parameters.

    Raises:
        ModelError: the model fails on the sample, or has nothing to quantize.
        ConfigError: a pattern matches no parameter.
    """

    def __init__(self, model: nn.Module, config: SearchConfig, sample: Any) -> None:
        self.model = model
        self._exclude = config.exclude
        self.folded = fold_parametrizations(model)
        self.sites = sites = _sites(model, sample)
        self._used = sites.weights
        check_excluded(config.exclude, quantizable_weights(model, self._used))
        self.weights = quantizable_weights(model, self._used, config.exclude)
        self.unused = unused_weights(model, self._used)
        if not self.weights:
            raise ModelError("the model has no quantizable layers (convolution, linear, embedding, attention)")
        excluded = excluded_weights(model, self._used, config.exclude)
        self.placement = place_quantizers(sites, config.act_bits, excluded)
        self.multiplications = multiplications(model, sample, [weight.name for weight in self.weights])
        bits = input_bits(sites, self.placement)
        self.input_bits = {weight.name: bits.get(weight.name, FLOAT_BITS) for weight in self.weights}
        self.inputs = inputs_of(sample, model)
        self.outputs = batch_outputs(model, sample, config.keep_output)
        quantizers = make_quantizers(self.placement, load_quantizer(config.act_quantizer))
        for quantizer in quantizers:
            quantizer.power_of_two = bool(config.options.get("power_of_two_scales"))
        self.net = QuantizedNet(model, quantizers, kept_outputs=config.keep_output)
        self.method: Method | None = None

    @property
    def elements(self) -> dict[str, int]:
        """Number of weights of each layer."""
        return {weight.name: weight.elements for weight in self.weights}

    @property
    def bit_operations(self) -> dict[str, int]:
        """Bit operations of a sample for each bit of a layer's weights: multiplications times bits of their inputs."""
        return {name: count * self.input_bits[name] for name, count in self.multiplications.items()}

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The weights, while they are plain parameters."""
        return {weight.name: weight.parameter for weight in self.weights}

    @torch.no_grad()
    def weight_values(self) -> dict[str, Tensor]:
        """Return a copy of each weight as the forward pass uses it."""
        return {weight.name: getattr(*weight.places[0]).detach().clone() for weight in self.weights}

    def make_plain(self) -> None:
        """Replace the method by its quantized weights, as plain parameters."""
        assert self.method is not None
        self.method.set_hard(True)
        values = self.weight_values()
        for weight in self.weights:
            detach(weight, values[weight.name])
        self.weights = quantizable_weights(self.model, self._used, self._exclude)

    def harden(self) -> None:
        """Switch to the quantized weights, for evaluation."""
        assert self.method is not None
        self.method.set_hard(True)
        self.net.eval()

    def calibrate(self, batches: Callable[[], Iterable[Any]]) -> list[str]:
        """Choose scales and zero points of the activation quantizers; return the names of those that saw only zeros.

        Args:
            batches: returns the inputs of batches to calibrate with; called only if there are quantizers.
        """
        if not self.net.quantizers:
            return []
        device = next(self.model.parameters()).device
        return self.net.to(device).calibrate(mapped(x, lambda tensor: tensor.to(device)) for x in batches())

    def check_scales(self) -> None:
        """Check that every activation quantizer still says something.

        Raises:
            TrainingError: the scale of one went as far as it may.
        """
        for quantizer in self.net.quantizers.values():
            if quantizer.is_dead():
                before, now = float(quantizer.calibrated), float(quantizer.scale.detach())
                raise TrainingError(
                    f"the scale of the activation {quantizer.name} went from {before:.3g} to {now:.3g}, which leaves "
                    "nothing of it: lower the learning rate or raise --act-bits; what was saved before is kept"
                )

    def quantized(self, integers: Integers, info: ModelInfo) -> QuantizedModel:
        """Return the network with these integers as a finalized model."""
        return quantized_model(self.net, self.placement, integers, info)

    def plain_weights(self) -> bytes:
        """Return the model with its quantized weights in float, as a safetensors file."""
        values = {weight.name: getattr(*weight.places[0]) for weight in self.weights}
        values |= {alias: values[weight.name] for weight in self.weights for alias in weight.aliases}
        values |= {k: v for k, v in self.model.state_dict().items() if "parametrizations" not in k.split(".")}
        return safetensors_bytes(values)


def _sites(model: nn.Module, sample: Any) -> Sites:
    try:
        return record(model, sample)
    except Exception as error:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors(sample))
        raise ModelError(f"the model failed on an input of shape {shapes}: {type(error).__name__}: {error}") from error
