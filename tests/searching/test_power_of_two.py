from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

import csqtool
from csqtool.nn.activation import ActivationFakeQuantizer
from csqtool.nn.power_of_two import nearest_power_of_two
from csqtool.quantized_model import QuantizedModel
from csqtool.searching.config import SearchConfig
from csqtool.searching.declarations import SettingError
from tests.support.onnx_nets import ConvNet


def is_power_of_two(scale: float) -> bool:
    return bool(np.frexp(scale)[0] == 0.5)


@given(st.floats(2.0**-100, 2.0**100, width=32))
def test_the_nearest_power_of_two_is_exact_and_passes_the_gradient(scale: float) -> None:
    latent = torch.tensor(scale, requires_grad=True)
    nearest = nearest_power_of_two(latent)
    nearest.backward()
    ratio = float(nearest.detach()) / scale
    assert is_power_of_two(float(nearest.detach()))
    assert ratio * (1 + 1e-6) >= 2**-0.5
    assert ratio <= 2**0.5 * (1 + 1e-6)
    assert latent.grad == 1


@pytest.mark.parametrize(("low", "zero_point"), [(0.0, 0), (-0.3, 8)])
def test_calibration_chooses_a_power_of_two_and_a_zero_point_that_hardware_takes(low: float, zero_point: int) -> None:
    quantizer = ActivationFakeQuantizer("a", 4)
    quantizer.power_of_two = True
    sample = torch.linspace(low, 2.9, 500)
    quantizer.calibrate(sample)
    found = quantizer.finalized()
    assert is_power_of_two(found.scale)
    assert found.zero_point == zero_point
    if not low:
        assert found.scale == 0.25  # 15 steps of it reach further than the sample; of 0.125 they end at 1.9
    assert float((quantizer(sample) - sample).detach().abs().mean()) < 0.5


def test_training_moves_a_step_size_from_one_power_of_two_to_another() -> None:
    quantizer = ActivationFakeQuantizer("a", 4)
    quantizer.power_of_two = True
    quantizer.set_grid(0.125, 0)
    x = torch.linspace(0, 12, 50)  # beyond 15 steps of 0.125
    for _ in range(90):
        (gradient,) = torch.autograd.grad((quantizer(x) - x).square().sum(), quantizer.scale)
        with torch.no_grad():
            quantizer.scale -= gradient  # the quantizer limits each change
        quantizer.after_step()
    assert quantizer.finalized().scale >= 0.5
    assert not is_power_of_two(float(quantizer.scale.detach()))  # what is trained is a number between


def searched(method: str, **settings: object) -> QuantizedModel:
    torch.manual_seed(0)
    parts = [TensorDataset(torch.randn(64, 3, 6, 6), torch.randint(0, 5, (64,))) for _ in range(2)]
    found = csqtool.search(
        ConvNet(), train=parts[0], test=parts[1], target_bits=2, act_bits=4, method=method, batch_size=32,
        power_of_two_scales=True, **settings,
    )  # fmt: skip
    return found.finalize()


@pytest.mark.parametrize(
    "method", [pytest.param("lsq", marks=pytest.mark.long), pytest.param("csq", marks=pytest.mark.slow)]
)
def test_a_search_ends_in_scales_and_zero_points_that_hardware_takes(method: str) -> None:
    settings = {"epochs": 2} if method == "lsq" else {"epochs": 1, "finetune_epochs": 1}
    model = searched(method, **settings)
    scales = [layer.scale for layer in model.layers] + [quantizer.scale for quantizer in model.activations]
    assert all(map(is_power_of_two, scales))
    assert {a.zero_point for a in model.activations} <= {0, 8, 128}
    assert any(a.zero_point for a in model.activations)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "lsq", "act_quantizer": "pact"}, "must be learned"),
        ({"method": "ste-uniform"}, "not an option of ste-uniform; it belongs to"),
        ({"method": "csq", "finetune_with": "csq"}, "not an option of csq; it belongs to"),
    ],
)
def test_it_is_refused_where_no_step_sizes_are_learned(settings: dict[str, str], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        SearchConfig.make(target_bits=3, act_bits=8, epochs=1, power_of_two_scales=True, **settings)
