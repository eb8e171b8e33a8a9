"""`QuantizedNet`: a user's model with activation quantizers at its sites; weights come from gates or integers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from csqtool.errors import ModelError
from csqtool.nn.activation import ActivationFakeQuantizer
from csqtool.nn.dataflow import Call, Placement, SiteMode
from csqtool.nn.weights import WeightSource, attach, quantizable_weights
from csqtool.quantized_model import QuantizedModel

Observer = Callable[[str, Tensor], Tensor]


class _ObservingMode(SiteMode):
    """Hands each quantized site's output to an observer."""

    def __init__(self, model: nn.Module, observed: frozenset[str], observer: Observer) -> None:
        super().__init__(model)
        self._observed = observed
        self._observer = observer

    def on_call(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        place = f"{call.name}.output"
        return self._observer(place, output) if place in self._observed else output


class QuantizedNet(nn.Module):
    """A model whose activations are quantized at the sites of a `Placement`.

    Attributes:
        model: the user's module.
        quantizers: the activation quantizers, by name (``MODULE.output``, ``MODULE.input``).
    """

    def __init__(self, model: nn.Module, quantizers: list[ActivationFakeQuantizer]) -> None:
        super().__init__()
        self.model = model
        self._quantizer_list = nn.ModuleList(quantizers)  # names with dots cannot be keys of a ModuleDict

    @property
    def quantizers(self) -> dict[str, ActivationFakeQuantizer]:
        """The activation quantizers, by name."""
        return {q.name: q for q in self._quantizer_list}  # type: ignore[misc]

    def forward(self, x: Tensor, *more: Tensor) -> Any:
        """Run the model with its activations quantized; `more` are its inputs behind the first."""
        if not self._quantizer_list:
            return self.model(x, *more)
        quantizers = self.quantizers
        return self.observed(x, lambda name, value: quantizers[name](value), *more)

    def observed(self, x: Tensor, observer: Observer, *more: Tensor) -> Any:
        """Run the model and let `observer(name, value)` replace the value at each quantizer's place."""
        names = frozenset(self.quantizers)
        for name in names:
            if name.endswith(".input"):
                x = observer(name, x)
        mode = _ObservingMode(self.model, names, observer)
        with mode.active():
            return self.model(x, *more)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned, quantizers and all."""
        self.load_state_dict(state)
        for quantizer in self.quantizers.values():
            quantizer.set_zero_point(int(quantizer.zero_point_))

    @torch.no_grad()
    def quantized_values(self, x: Tensor) -> int:
        """Return how many activation values are quantized in a forward pass of `x`."""
        count = 0

        def observe(_name: str, value: Tensor) -> Tensor:
            nonlocal count
            count += value.numel()
            return value

        was_training = self.training
        self.eval()
        self.observed(x, observe)
        self.train(was_training)
        return count

    @torch.no_grad()
    def calibrate(self, batches: Iterator[Tensor | tuple[Tensor, ...]], *, values_per_batch: int = 65536) -> None:
        """Set every quantizer's scale and zero point from float activations.

        Raises:
            ModelError: a quantizer's place was never reached.
        """
        seen: dict[str, list[Tensor]] = {name: [] for name in self.quantizers}

        def observe(name: str, value: Tensor) -> Tensor:
            flat = value.detach().flatten()
            stride = max(1, flat.numel() // values_per_batch)
            seen[name].append(flat[::stride].float())
            return value

        was_training = self.training
        self.eval()
        for batch in batches:
            x, *more = batch if isinstance(batch, tuple) else (batch,)
            self.observed(x, observe, *more)
        self.train(was_training)
        for name, quantizer in self.quantizers.items():
            if not seen[name]:
                raise ModelError(f"the activation {name} was not reached during calibration")
            quantizer.calibrate(torch.cat(seen[name]))


def make_quantizers(placement: Placement, kind: type[ActivationFakeQuantizer]) -> list[ActivationFakeQuantizer]:
    """Return one uncalibrated quantizer for each place, in the order of the forward pass.

    What feeds a weight gets one of `kind`; what only feeds additions and poolings a learned one, which no other
    method speaks of. (With fixed ranges, averages of quantized values would fall on rounding boundaries exactly.)
    """
    places = [(placement.input, 8)] if placement.input else []
    places += [(f"{name}.output", bits) for name, bits in placement.outputs.items()]
    feeding = set(placement.layer_inputs.values())
    return [(kind if name in feeding else ActivationFakeQuantizer)(name, bits) for name, bits in places]


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
            return marker("Activation", (x, self.scale.detach()), x.shape, name=self.name)
        return super().forward(x)


MARKER_DOMAIN = "csqtool.marker"
_markers_on = False


def markers_on() -> bool:
    """Tell whether a graph is being captured, in which quantized values stand as marker nodes."""
    return _markers_on


@contextmanager
def graph_markers() -> Iterator[None]:
    """While a graph is captured: weights and activation quantizers become nodes of their own."""
    global _markers_on  # noqa: PLW0603 - capture runs in one thread and nothing else can pass the word
    _markers_on = True
    try:
        yield
    finally:
        _markers_on = False


def marker(kind: str, inputs: tuple[Tensor, ...], shape: Any, *, name: str) -> Tensor:
    """Return the output of a marker node `kind` that carries `name` (`torch.onnx.ops.symbolic`)."""
    result: Tensor = torch.onnx.ops.symbolic(
        f"{MARKER_DOMAIN}::{kind}", inputs, attrs={"name": name}, dtype=torch.float32, shape=shape, version=1
    )
    return result


def finalized_net(model: nn.Module, quantized: QuantizedModel) -> QuantizedNet:
    """Put a finalized model's integers, scales and float tensors into a freshly built module.

    The module's weights are then exactly float32(q)·Δ; it is in evaluation mode.

    Args:
        model: the user's module as its factory returns it; it is changed in place.
        quantized: the finalized model.

    Raises:
        ModelError: the module's parameters and the finalized tensors do not match.
    """
    state = model.state_dict()
    wanted = {layer.name: layer.shape for layer in quantized.layers}
    wanted |= {alias: quantized.layer(name).shape for alias, name in quantized.tied.items()}
    wanted |= {name: tensor.shape for name, tensor in quantized.tensors.items()}
    check_keys(
        {name: tuple(t.shape) for name, t in state.items()}, wanted, "the finalized model", "the factory's model"
    )
    model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in quantized.tensors.items()}, strict=False)
    weights = {w.name: w for w in quantizable_weights(model)}
    for layer in quantized.layers:
        if layer.name not in weights:
            raise ModelError(f"{layer.name} is no quantizable weight of the factory's model")
        source = DequantizedWeight(layer.name, torch.from_numpy(np.array(layer.q)), torch.tensor(layer.scale))
        attach(weights[layer.name], source)
    quantizers: list[ActivationFakeQuantizer] = []
    for activation in quantized.activations:
        quantizer = FrozenActivation(activation.name, activation.bits)
        quantizer.scale.data.fill_(float(activation.scale))
        quantizer.set_zero_point(activation.zero_point)
        quantizers.append(quantizer)
    return QuantizedNet(model, quantizers).eval().requires_grad_(False)


def check_keys(has: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]], source: str, target: str) -> None:
    """Compare names and shapes.

    Raises:
        ModelError: lists what is missing, what is unexpected and whose shape differs.
    """
    problems = []
    if missing := sorted(set(has) - set(wanted)):
        problems.append(f"missing {_listed(missing)}")
    if unexpected := sorted(set(wanted) - set(has)):
        problems.append(f"unexpected {_listed(unexpected)}")
    for name in sorted(set(has) & set(wanted)):
        if tuple(has[name]) != tuple(wanted[name]):
            problems.append(f"{name} has shape {list(wanted[name])} instead of {list(has[name])}")
    if problems:
        raise ModelError(f"{source} does not match {target}: " + "; ".join(problems))


def _listed(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
