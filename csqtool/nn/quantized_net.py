"""`QuantizedNet`: a user's model whose activations are quantized while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.fx.config
from torch import Tensor, nn

from csqtool.errors import ModelError
from csqtool.model_info import Input
from csqtool.nn.activation import ActivationFakeQuantizer, check_finite
from csqtool.nn.decomposing import decomposed_by_node
from csqtool.nn.markers import markers_on
from csqtool.nn.modes import evaluating
from csqtool.nn.placement import Placement
from csqtool.nn.ranges import ValueHistogram, set_range
from csqtool.nn.rewriting import rules_by_operator
from csqtool.nn.signature import named_outputs, zeros
from csqtool.nn.sites import Call, SiteMode
from csqtool.nn.state_dict import with_versions
from csqtool.nn.torchlib import sources_unread
from csqtool.trees import Arguments, mapped, tensors

Observer = Callable[[str, Tensor], Tensor]
CALIBRATION_VALUES = 65536  # about as many values of each activation and batch are looked at, evenly spaced


class ObservingMode(SiteMode):
    """Hands each quantized site's output to an observer."""

    def __init__(
        self, model: nn.Module, inputs: Iterable[Tensor], observed: frozenset[str], observer: Observer
    ) -> None:
        super().__init__(model, inputs)
        self._observed = observed
        self._observer = observer

    def on_call(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Return what the observer returns for an output that is quantized, else the output."""
        place = f"{call.name}.output"
        return self._observer(place, output) if place in self._observed else output


class QuantizedNet(nn.Module):
    """A model whose activations are quantized at the sites of a `Placement`.

    Attributes:
        model: the user's module.
        quantizers: the activation quantizers, by name (``SITE.output``, ``SITE.input``).
        kept_outputs: names of the outputs that a captured graph has; empty for all.
    """

    def __init__(
        self, model: nn.Module, quantizers: list[ActivationFakeQuantizer], *, kept_outputs: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.model = model
        self.kept_outputs = tuple(kept_outputs)
        self._positions: tuple[str, ...] = ()  # names of the last positional arguments while a graph is captured
        # What is in evaluation mode in a model that trains was put there by its owner, such as a frozen BatchNorm.
        self._frozen = [module for module in model.modules() if model.training and not module.training]
        self._quantizer_list = nn.ModuleList(quantizers)  # names with dots cannot be keys of a ModuleDict

    @property
    def quantizers(self) -> dict[str, ActivationFakeQuantizer]:
        """The activation quantizers, by name."""
        return {q.name: q for q in self._quantizer_list}  # type: ignore[misc]

    def train(self, mode: bool = True) -> QuantizedNet:
        """Set the mode, but leave what the model's owner froze in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.training = False
        return self

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Run the model with its activations quantized.

        While a graph is captured, the outputs are a tuple of tensors in the order of `named_outputs`, or one tensor.

        Args:
            inputs: the model's positional arguments. Of all tensors the first alone can be quantized.
            named: its keyword arguments.
        """
        if self._positions:
            first = len(inputs) - len(self._positions)
            inputs, named = inputs[:first], dict(zip(self._positions, inputs[first:], strict=True))
        arguments = Arguments.of(Arguments(inputs, named), self.model)
        if self._quantizer_list:
            quantizers = self.quantizers
            output = self.observed(arguments, lambda name, value: quantizers[name](value))
        else:
            output = arguments.call(self.model)
        if not markers_on():
            return output
        values = tuple(named_outputs(output, self.kept_outputs).values())
        return values if len(values) > 1 else values[0]

    @contextmanager
    def captured(self, inputs: Sequence[Input]) -> Iterator[tuple[Tensor, ...]]:
        """Prepare the network for a capture within the block.

        Keyword arguments are taken by position: torch.export knows no dynamic axes of others. And the model's code is
        told that this is no export, so that the graph is that of the forward pass which was trained and quantized.

        Args:
            inputs: the recorded inputs, positional ones first.

        Yields:
            An example of all inputs in order, two samples each: a batch of one would be specialised.
        """
        self._positions = tuple(i.name for i in inputs if i.is_keyword)
        try:
            with (
                mock.patch.object(torch.onnx, "is_in_onnx_export", return_value=False),
                _without_stack_traces(),
                decomposed_by_node(),
                rules_by_operator(),
                sources_unread(),
            ):
                yield tuple(zeros(i, 2) for i in inputs)
        finally:
            self._positions = ()

    def observed(self, inputs: Any, observer: Observer) -> Any:
        """Run the model; what `observer(name, value)` returns replaces the value at each quantizer's place.

        Args:
            inputs: a batch's inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
            observer: called once for each quantizer that the forward pass reaches, with its name.
        """
        names = frozenset(self.quantizers)
        arguments = Arguments.of(inputs, self.model)
        for name in names:
            if name.endswith(".input"):
                arguments = _with_first(arguments, partial(observer, name))
        mode = ObservingMode(self.model, tensors(arguments), names, observer)
        with mode.active():
            output = arguments.call(self.model)
        return mapped(output, mode.current)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned, including the quantizers' zero points."""
        # Runs of before quantizers had one lack the calibrated scale: its range is then that around the scale.
        state = {f"{n}.calibrated": state[f"{n}.scale"] for n in self._quantizer_names() if f"{n}.scale" in state} | {
            **state
        }
        self.load_state_dict(with_versions(state, self))
        for quantizer in self.quantizers.values():
            quantizer.set_zero_point(int(quantizer.zero_point_))
            quantizer.hold_scale()

    def _quantizer_names(self) -> list[str]:
        return [f"_quantizer_list.{i}" for i in range(len(self._quantizer_list))]

    @torch.no_grad()
    def quantized_values(self, inputs: Any) -> int:
        """Return how many activation values are quantized in a forward pass."""
        count = 0

        def observe(_name: str, value: Tensor) -> Tensor:
            nonlocal count
            count += value.numel()
            return value

        with evaluating(self):
            self.observed(inputs, observe)
        return count

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Any]) -> list[str]:
        """Set every quantizer's scale and zero point from float activations.

        Args:
            batches: the inputs of each batch: a tensor, a tuple of positional arguments, or a dict of keywords.

        Returns:
            The names of the dead activations: those that are 0 in all values that were looked at.

        Raises:
            ModelError: a quantizer's place was never reached, or its activation is not finite.
        """
        seen: dict[str, list[Tensor]] = {name: [] for name in self.quantizers}

        def observe(name: str, value: Tensor) -> Tensor:
            check_finite(name, value)  # all values, and in the order of the forward pass: the first place is the cause
            stride = max(1, value.numel() // CALIBRATION_VALUES)
            seen[name].append(value.detach().flatten()[::stride].float())
            return value

        with evaluating(self):
            for inputs in batches:
                self.observed(inputs, observe)
        dead = []
        for name, quantizer in self.quantizers.items():
            if not seen[name]:
                raise _not_reached([name])
            sample = torch.cat(seen[name])
            quantizer.calibrate(sample)
            if not sample.any():
                dead.append(name)
        return dead

    @torch.no_grad()
    def calibrate_streamed(self, batches: Iterable[Any], kind: str) -> list[str]:
        """Set every quantizer's scale and zero point from histograms, in memory that does not grow with the batches.

        Args:
            batches: as for `calibrate`.
            kind: how a range follows from a histogram, a key of `csqtool.nn.ranges.RANGES`.

        Returns:
            The names of the activations that have one value only.

        Raises:
            ModelError: quantizers' places were never reached, or an activation is not finite.
        """
        if not self.quantizers:
            return []
        histograms = {name: ValueHistogram() for name in self.quantizers}

        def observe(name: str, value: Tensor) -> Tensor:
            check_finite(name, value)
            histograms[name].add(value)
            return value

        with evaluating(self):
            for inputs in batches:
                self.observed(inputs, observe)
        if missed := [name for name, histogram in histograms.items() if not histogram.seen]:
            raise _not_reached(missed)
        for name, quantizer in self.quantizers.items():
            set_range(quantizer, histograms[name], kind)
        return [name for name, histogram in histograms.items() if histogram.constant]


def _without_stack_traces() -> AbstractContextManager[Any]:
    """Within the block, torch does not note for each node of a graph the lines that it comes from: no file has them."""
    option = "do_not_emit_stack_traces"
    return mock.patch.object(torch.fx.config, option, True) if hasattr(torch.fx.config, option) else nullcontext()


def _not_reached(names: list[str]) -> ModelError:
    what = f"the activation {names[0]} was" if len(names) == 1 else f"the activations {', '.join(names)} were"
    return ModelError(f"{what} not reached during calibration")


def _with_first(arguments: Arguments, change: Callable[[Tensor], Tensor]) -> Arguments:
    """Return arguments with their first tensor changed."""
    seen = 0

    def changed(value: Tensor) -> Tensor:
        nonlocal seen
        seen += 1
        return change(value) if seen == 1 else value

    result: Arguments = mapped(arguments, changed)
    return result


def make_quantizers(placement: Placement, kind: type[ActivationFakeQuantizer]) -> list[ActivationFakeQuantizer]:
    """Return one uncalibrated quantizer for each place, in the order of the forward pass.

    What feeds a weight gets a quantizer of `kind`. What feeds only additions and poolings gets a learned one,
    whatever `kind` is: no method prescribes these, and with fixed ranges the averages of quantized values would lie
    exactly on rounding boundaries.

    Args:
        placement: where activations are quantized.
        kind: the class of quantizers in front of weights.
    """
    places = [(placement.input, 8)] if placement.input else []
    places += [(f"{name}.output", bits) for name, bits in placement.outputs.items()]
    feeding = set(placement.layer_inputs.values())
    return [(kind if name in feeding else ActivationFakeQuantizer)(name, bits) for name, bits in places]
