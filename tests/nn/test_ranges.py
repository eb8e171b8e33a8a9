"""Ranges of activations from streamed histograms: against exact computations, and in memory that does not grow."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from csqtool.errors import ModelError
from csqtool.nn.activation import ActivationFakeQuantizer
from csqtool.nn.placement import place_quantizers
from csqtool.nn.quantized_net import QuantizedNet, make_quantizers
from csqtool.nn.ranges import RANGES, ValueHistogram, set_range
from csqtool.nn.sites import record


def histogram_of(*batches: Tensor) -> ValueHistogram:
    histogram = ValueHistogram()
    for batch in batches:
        histogram.add(batch)
    return histogram


def quantizer_of(kind: str, *batches: Tensor, bits: int = 4) -> ActivationFakeQuantizer:
    quantizer = ActivationFakeQuantizer("x", bits)
    set_range(quantizer, histogram_of(*batches), kind)
    return quantizer


def values(count: int = 20000) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(1))


def test_a_histogram_of_growing_values_counts_each_where_it_lies() -> None:
    batches = [values(1000) * factor for factor in (1e-6, 0.03, 1.0, 700.0)]
    histogram = histogram_of(*batches)
    whole = torch.cat(batches).double()
    middles, counts = histogram.filled()
    assert int(counts.sum()) == histogram.seen == 4000
    assert (histogram.low, histogram.high) == (float(whole.min()), float(whole.max()))
    for bound in (-100.0, 0.0, 3.0, 100.0):  # edges of bins
        assert int(counts[middles < bound].sum()) == int((whole < bound).sum())


@torch.no_grad()
@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_the_least_squares_range_is_as_good_as_that_of_all_values_at_once(shift: float) -> None:
    x = torch.relu(values() + shift)
    streamed, exact = quantizer_of("mse", *x.split(777)), ActivationFakeQuantizer("x", 4)
    exact.calibrate(x)
    assert float((streamed(x) - x).square().mean()) <= 1.02 * float((exact(x) - x).square().mean())


def test_percentiles_leave_outliers_out_and_min_max_does_not() -> None:
    x = torch.cat([values().abs(), torch.tensor([1000.0])])
    cut, whole = quantizer_of("percentile", x), quantizer_of("min-max", x)
    assert float(cut.calibrated) * 15 < 6
    assert float(whole.calibrated) * 15 == pytest.approx(1000)


@pytest.mark.parametrize("kind", list(RANGES))
@pytest.mark.parametrize("constant", [0.0, 3.7, -0.02])
def test_constant_activations_are_represented(kind: str, constant: float) -> None:
    x = torch.full((5, 3), constant)
    rounded = quantizer_of(kind, x, x, bits=8)(x).detach()
    torch.testing.assert_close(rounded, x, rtol=1e-6, atol=0.0)
    assert histogram_of(x, x).constant
    assert not histogram_of(x, x + 1).constant


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.one(x))
        return torch.as_tensor(self.last(torch.relu(self.other(y)) if len(x) > 4 else y))


def quantized(model: nn.Module, x: Tensor) -> QuantizedNet:
    return QuantizedNet(model, make_quantizers(place_quantizers(record(model, x), 8), ActivationFakeQuantizer))


def test_all_activations_that_no_sample_reaches_are_named() -> None:
    net = quantized(Gated().eval(), torch.zeros(8, 6))
    with pytest.raises(ModelError, match=r"the activation relu@2\.output was not reached"):
        net.calibrate_streamed([torch.ones(2, 6)], "mse")


def test_memory_does_not_grow_with_the_samples() -> None:
    net = quantized(nn.Sequential(nn.Linear(6, 4096), nn.ReLU(), nn.Linear(4096, 2)).eval(), torch.zeros(8, 6))

    def kept(count: int) -> int:
        held: list[int] = []

        def batches() -> Iterator[Tensor]:
            for number in range(count):
                held.append(sum(t.numel() for t in _tensors_alive()))
                yield torch.randn(16, 6, generator=torch.Generator().manual_seed(number))

        net.calibrate_streamed(batches(), "mse")
        return max(held)

    assert kept(12) <= kept(3) + 4096


def _tensors_alive() -> list[Tensor]:
    return [found for found in gc.get_objects() if type(found) is Tensor]
