from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from csqtool.errors import ModelError
from csqtool.nn.assemble import snap_bias
from csqtool.nn.post_training import post_training_model
from csqtool.quantized_model import ActivationQuantizer, QuantizedLayer

EPSILON = 1e-5
RANDOM = np.random.default_rng(0)
Q = RANDOM.integers(-7, 8, (6, 4)).astype(np.int8)


def layer(scale: float = 0.02, batch_norm: str | None = None) -> QuantizedLayer:
    epsilon = None if batch_norm is None else EPSILON
    return QuantizedLayer("conv.weight", Q, np.float32(scale), "111", batch_norm=batch_norm, batch_norm_epsilon=epsilon)


def quantizer(scale: float = 0.1) -> ActivationQuantizer:
    return ActivationQuantizer("x", np.float32(scale), 0, 8)


def floats(*, bias: bool = True, gamma: NDArray[Any] | None = None) -> dict[str, NDArray[Any]]:
    tensors = {
        "norm.weight": np.linspace(-1, 1, 6) if gamma is None else gamma,
        "norm.bias": RANDOM.normal(size=6),
        "norm.running_mean": RANDOM.normal(size=6),
        "norm.running_var": RANDOM.uniform(0.1, 2, 6),
        **({"conv.bias": RANDOM.normal(size=6)} if bias else {}),
    }
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def effective_bias(tensors: dict[str, NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The layer's bias behind BatchNorm, and |γ|/σ, in double precision."""
    values = {name: value.astype(np.float64) for name, value in tensors.items()}
    factor = values["norm.weight"] / np.sqrt(values["norm.running_var"] + EPSILON)
    return values["norm.bias"] + (values.get("conv.bias", 0) - values["norm.running_mean"]) * factor, np.abs(factor)


def test_a_bias_becomes_the_nearest_multiple_of_both_scales() -> None:
    tensors = floats()
    before = tensors["conv.bias"].copy()
    assert snap_bias(layer(), tensors, quantizer())
    step = np.float32(0.1) * np.float32(0.02)
    assert np.array_equal(tensors["conv.bias"], np.rint(before / np.float64(step)).astype(np.float32) * step)
    assert 0 < np.abs(tensors["conv.bias"] - before).max() <= step / 2 * 1.001


@pytest.mark.parametrize("bias", [True, False])
def test_with_batch_norm_its_beta_takes_the_change(bias: bool) -> None:
    tensors = floats(bias=bias)
    before = {name: value.copy() for name, value in tensors.items()}
    assert snap_bias(layer(batch_norm="norm"), tensors, quantizer())
    assert [name for name in tensors if not np.array_equal(tensors[name], before[name])] == ["norm.bias"]
    effective, factor = effective_bias(tensors)
    steps = effective / (0.1 * 0.02 * factor)
    assert np.abs(steps - np.rint(steps)).max() < 0.01
    assert np.abs(effective - effective_bias(before)[0]).max() <= (0.1 * 0.02 * factor).max() / 2 * 1.001


def test_a_channel_that_batch_norm_turns_off_keeps_the_layers_own_step() -> None:
    gamma = np.array([0, 1, 1, 1, 1, 1], np.float32)
    tensors = floats(gamma=gamma)
    assert snap_bias(layer(batch_norm="norm"), tensors, quantizer())
    steps = float(tensors["norm.bias"][0]) / (0.1 * 0.02)
    assert steps == pytest.approx(round(steps), abs=0.01)


@pytest.mark.parametrize("batch_norm", ["norm", None])
def test_a_grid_too_fine_for_int32_is_reported_and_changes_nothing(batch_norm: str | None) -> None:
    tensors = floats()
    before = {name: value.copy() for name, value in tensors.items()}
    assert not snap_bias(layer(1e-9, batch_norm), tensors, quantizer(1e-4))
    assert all(np.array_equal(tensors[name], before[name]) for name in before)


def test_without_a_quantizer_or_a_bias_there_is_nothing_to_snap() -> None:
    for tensors, given in ((floats(), None), (floats(bias=False), quantizer())):
        before = {name: value.copy() for name, value in tensors.items()}
        assert snap_bias(layer(), tensors, given)
        assert all(np.array_equal(tensors[name], before[name]) for name in before)


@pytest.mark.parametrize("name", ["1.running_var", "1.weight", "0.bias"])
def test_values_that_are_not_finite_are_refused_with_their_name(name: str) -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)).eval()
    net.register_buffer("mask", torch.full((2,), -torch.inf))  # a mask of attention may be
    assert post_training_model(net, [torch.randn(8, 4)], act_bits=None).layers
    with torch.no_grad():
        net.state_dict()[name][2] = torch.inf
    with pytest.raises(ModelError, match=rf"{name} holds values that are NaN or infinite: training diverged"):
        post_training_model(net, [torch.randn(8, 4)], act_bits=None)
