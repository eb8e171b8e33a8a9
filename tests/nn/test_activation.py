from __future__ import annotations

import pytest
import torch
from torch import Tensor

from csqtool.errors import ModelError
from csqtool.nn.activation import ActivationFakeQuantizer
from csqtool.nn.activation_variants import PactQuantizer, load_quantizer


def gradients(quantizer: ActivationFakeQuantizer, x: list[float], upstream: list[float]) -> tuple[Tensor, float]:
    values = torch.tensor(x, requires_grad=True)
    quantizer(values).backward(torch.tensor(upstream))
    assert values.grad is not None
    assert quantizer.scale.grad is not None
    return values.grad, float(quantizer.scale.grad)


def test_pact_trains_its_clip_where_x_lies_above_it_and_x_where_it_lies_inside() -> None:
    quantizer = PactQuantizer("relu", 2)
    quantizer.scale.data.fill_(0.5)  # α = 3 · 0.5
    for_x, for_scale = gradients(quantizer, [-1.0, 0.7, 1.5, 4.0], [2.0, 3.0, 5.0, 7.0])
    assert for_x.tolist() == [0.0, 3.0, 0.0, 0.0]  # ∂/∂α = 1 from x = α on
    assert for_scale == 3 * (5 + 7)  # α is three steps
    penalty = quantizer.regularization()
    assert penalty is not None
    assert penalty.item() == pytest.approx(1e-4 * 1.5**2)


def test_a_learned_step_size_has_the_gradient_of_lsq_around_its_zero_point() -> None:
    quantizer = ActivationFakeQuantizer("relu", 2)
    quantizer.set_zero_point(1)  # steps −1 … 2
    quantizer.scale.data.fill_(0.5)
    for_x, for_scale = gradients(quantizer, [-2.0, 0.2, 0.9, 4.0], [2.0, 3.0, 5.0, 7.0])
    assert for_x.tolist() == [0.0, 3.0, 5.0, 0.0]
    wanted = 2 * -1 + 3 * (0 - 0.4) + 5 * (2 - 1.8) + 7 * 2
    assert for_scale == pytest.approx(wanted / 3**0.5, rel=1e-5)  # over √(N·Q), one value a sample


@pytest.mark.parametrize("name", ["learned", "pact", "dorefa"])
def test_negative_activations_are_kept_by_every_static_quantizer(name: str) -> None:
    quantizer = load_quantizer(name)("sum", 4)
    x = torch.linspace(-2, 2, 101)
    quantizer.calibrate(x)
    assert quantizer.zero_point > 0
    assert (quantizer(x) - x).abs().mean() < 0.1


@pytest.mark.parametrize("name", ["learned", "pact", "dorefa", "dynamic"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_calibration_on_values_that_are_not_finite_names_the_activation_and_changes_nothing(
    name: str, bad: float
) -> None:
    quantizer = load_quantizer(name)("block.relu.output", 4)
    quantizer.calibrate(torch.linspace(-1, 2, 50))
    before = quantizer.scale.item(), quantizer.zero_point
    sample = torch.rand(4, 10)
    sample[1, 3:5] = bad
    with pytest.raises(ModelError, match=r"block\.relu\.output.*2 of 40 values are NaN or infinite"):
        quantizer.calibrate(sample)
    assert (quantizer.scale.item(), quantizer.zero_point) == before


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("constant", [3.7, -0.02, 1e-6, 1e30])
def test_a_constant_activation_is_represented(constant: float, bits: int) -> None:
    quantizer = ActivationFakeQuantizer("relu", bits)
    x = torch.full((5, 7), constant)
    quantizer.calibrate(x)
    assert torch.allclose(quantizer(x), x, rtol=1e-5, atol=0)
    assert quantizer.zero_point == (quantizer.largest if constant < 0 else 0)


def test_an_activation_that_is_always_zero_gets_the_range_from_zero_to_one() -> None:
    quantizer = ActivationFakeQuantizer("relu", 4)
    quantizer.calibrate(torch.zeros(9))
    assert quantizer.scale.item() == pytest.approx(1 / 15)
    assert quantizer.zero_point == 0
    assert not quantizer(torch.zeros(9)).any()
    quantizer.finalized()  # has a scale above zero


@pytest.mark.parametrize("largest", [1e-44, 3e38])
def test_the_scale_of_tiny_and_of_huge_activations_is_finite_and_above_zero(largest: float) -> None:
    quantizer = ActivationFakeQuantizer("relu", 2)
    quantizer.calibrate(torch.tensor([-largest, 0.0, largest]))
    quantizer.finalized()
    assert torch.isfinite(quantizer(torch.tensor([largest / 2]))).all()
