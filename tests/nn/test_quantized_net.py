from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from csqtool.errors import ModelError
from csqtool.nn.activation import ActivationFakeQuantizer
from csqtool.nn.placement import place_quantizers
from csqtool.nn.quantized_net import QuantizedNet, make_quantizers
from csqtool.nn.sites import record


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv1(x))
        return self.head(torch.relu(self.bn(self.conv2(y)) + y))


def test_quantizers_see_the_same_values_in_training_and_in_evaluation() -> None:
    # BatchNorm counts its batches in training, with an addition that is no residual one.
    model = Residual()
    x = torch.randn(5, 4, 6, 6)
    placement = place_quantizers(record(model.eval(), [x]), 4)
    net = QuantizedNet(model, make_quantizers(placement, ActivationFakeQuantizer))
    seen: dict[bool, dict[str, tuple[int, ...]]] = {True: {}, False: {}}
    for training, shapes in seen.items():
        net.train(training)

        def observe(name: str, value: Tensor, shapes: dict[str, tuple[int, ...]] = shapes) -> Tensor:
            shapes[name] = tuple(value.shape)
            return value

        net.observed(x, observe)
    assert seen[True] == seen[False]
    assert seen[True]["bn.output"] == (5, 4, 6, 6)


def quantized(model: nn.Module, x: Tensor) -> QuantizedNet:
    return QuantizedNet(model, make_quantizers(place_quantizers(record(model, [x]), 4), ActivationFakeQuantizer))


def test_calibration_names_the_first_activation_that_is_not_finite() -> None:
    model, x = Residual(), torch.randn(5, 4, 6, 6)
    net = quantized(model, x)
    model.conv2.weight.data[0] = float("nan")
    with pytest.raises(ModelError, match=r"activation bn\.output cannot be quantized: 180 of 720 values"):
        net.calibrate([x])


def test_calibration_looks_for_values_that_are_not_finite_also_between_those_it_samples() -> None:
    x = torch.zeros(1, 4, 200, 200)
    net = quantized(Residual(), x)
    x[0, 0, 0, 1] = float("inf")
    with pytest.raises(ModelError, match=r"conv1\.input cannot be quantized: 1 of 160000 values"):
        net.calibrate([x])


def test_calibration_reports_dead_activations() -> None:
    model, x = Residual(), torch.randn(5, 4, 6, 6)
    net = quantized(model, x)
    assert net.calibrate([x]) == []
    model.conv1.weight.data.zero_()
    model.conv1.bias.data.fill_(-1.0)
    model.bn.bias.data.fill_(3.0)  # the second ReLU stays alive
    assert net.calibrate([x]) == ["relu.output"]
    assert torch.isfinite(net(x)).all()


def test_calibration_names_an_activation_that_is_not_reached() -> None:
    net = QuantizedNet(Residual(), [ActivationFakeQuantizer("conv9.output", 8)])
    with pytest.raises(ModelError, match=r"conv9\.output was not reached"):
        net.calibrate([torch.randn(1, 4, 6, 6)])


def test_what_a_residual_addition_reads_has_eight_bits_and_what_a_convolution_reads_the_wanted_ones() -> None:
    placement = place_quantizers(record(Residual(), [torch.randn(5, 4, 6, 6)]), 4)
    assert placement.outputs == {"relu": 4, "bn": 8, "relu@2": 4}
    assert placement.input == "conv1.input"
    assert placement.layer_inputs == {
        "conv1.weight": "conv1.input", "conv2.weight": "relu.output", "head.weight": "relu@2.output",
    }  # fmt: skip
    assert placement.batch_norms == {"conv2.weight": "bn"}


class Detector(nn.Module):
    """Boxes and scores, joined as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.boxes, self.classes = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.boxes(x), self.classes(x).sigmoid()], 1)


def test_scores_that_are_only_joined_to_the_output_are_not_quantized() -> None:
    # Small scores lie in few steps, and runtimes compute a sigmoid up to 1e-7 only: all equal ones would move together.
    placement = place_quantizers(record(Detector(), torch.zeros(2, 3, 4, 4)), act_bits=8)
    assert placement.outputs == {"boxes": 8, "classes": 8}


class Boxes(nn.Module):
    """Corners of boxes, decoded from distances as detectors do: an expectation over bins by a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.distances, self.bins = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 1, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shares = self.distances(x).view(len(x), 4, 2, -1).softmax(1)
        first, second = self.bins(shares).chunk(2, 2)
        low, high = 0.5 - first, second + 0.5
        return torch.cat([(low + high) / 2, (high - low).clamp(min=0.0)], 1)


def test_coordinates_that_are_added_and_joined_on_their_way_out_are_not_quantized() -> None:
    # In eight bits a box of an image of 640 pixels has corners at every third pixel.
    placement = place_quantizers(record(Boxes(), torch.zeros(2, 3, 4, 4)), act_bits=8)
    assert placement.outputs == {"softmax": 8, "bins": 8}


class AddedInFloat(nn.Module):
    """A sum of results of float functions, in front of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.first(x).sigmoid() + self.second(x).tanh())


def test_results_of_float_functions_are_quantized_for_a_sum_that_leads_to_a_quantized_weight_only() -> None:
    added = record(AddedInFloat(), torch.zeros(2, 3, 4, 4))
    ends = {"first": 8, "second": 8}  # of the integer kernels
    assert place_quantizers(added, 4).outputs == {**ends, "sigmoid": 8, "tanh": 8, "add": 4}
    assert place_quantizers(added, 4, {"head.weight"}).outputs == ends


def test_what_a_layer_in_float_reads_is_quantized_only_for_the_integer_kernel_in_front_of_it() -> None:
    assert place_quantizers(record(Boxes(), torch.zeros(2, 3, 4, 4)), 8, {"bins.weight"}).outputs == {}
    residual = record(Residual(), [torch.randn(5, 4, 6, 6)])
    assert place_quantizers(residual, 4, {"conv2.weight"}).outputs["relu"] == 4
    assert place_quantizers(residual, 4, {"conv1.weight"}).input is None


def test_without_activation_bits_no_activation_is_quantized_and_batch_norm_still_folds() -> None:
    placement = place_quantizers(record(Residual(), [torch.randn(5, 4, 6, 6)]), None)
    assert (placement.outputs, placement.input, placement.layer_inputs) == ({}, None, {})
    assert placement.batch_norms == {"conv2.weight": "bn"}
