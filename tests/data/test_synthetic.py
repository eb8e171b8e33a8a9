"""Inputs made from BatchNorm's statistics: they meet these, serve as data everywhere, and bad requests are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import csqtool
from csqtool.data import load_data
from csqtool.data.arrays import ArrayDataset
from csqtool.errors import ConfigError, InputError
from csqtool.progress import Told
from tests.support.commands import DIGITS, invoke


def trained() -> tuple[nn.Sequential, Tensor, Tensor]:
    """Return a network that knows three patterns of 1 × 6 × 6, and standardized data of them."""
    torch.manual_seed(0)
    y = torch.arange(96) % 3
    x = 0.6 * torch.randn(96, 1, 6, 6) + torch.randn(3, 1, 6, 6)[y]
    x = (x - x.mean()) / x.std()
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8),
                        nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        cross_entropy(net(x), y).backward()
        optimizer.step()
    net.zero_grad()
    return net.eval(), x, y


def made(net: nn.Module, spec: str) -> ArrayDataset:
    found = load_data(spec).for_model(net)
    assert found.train is found.test
    assert isinstance(found.train, ArrayDataset)
    return found.train


def test_the_inputs_meet_the_statistics_of_every_batch_norm_far_better_than_noise() -> None:
    net, _, _ = trained()
    inputs, labels = made(net, "none:1x6x6?samples=64&steps=60").batch(range(64))

    def distances(values: Tensor) -> list[float]:
        found = []
        for part in net:
            if isinstance(part, nn.BatchNorm2d):
                assert part.running_mean is not None
                assert part.running_var is not None
                deviation = part.running_var.sqrt()
                found.append(float(((values.mean((0, 2, 3)) - part.running_mean) / deviation).abs().mean()))
                found.append(float((values.std((0, 2, 3)) / deviation - 1).abs().mean()))
            values = part(values)
        return found

    with torch.no_grad():
        assert torch.equal(labels, net(inputs).argmax(1))
        near, noise = distances(inputs), distances(torch.randn(64, 1, 6, 6))
    assert max(near) < 0.02  # of a channel's standard deviation
    assert max(noise) > 0.05


def test_equal_weights_give_equal_inputs_and_the_network_stays_as_it_was() -> None:
    net, _, _ = trained()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    first, second = (made(net, "none:1x6x6?samples=66&steps=2").batch(range(66))[0] for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.long
def test_quantize_needs_no_data_at_all_and_loses_less_than_with_noise() -> None:
    net, x, _ = trained()
    options: dict[str, Any] = {"target_bits": 2, "act_bits": 8, "steps": 40, "device": "cpu", "batch_norm": False}
    noise = torch.randn(128, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    errors = []
    for calibration in ("none:1x6x6?samples=128&steps=60", noise):
        quantized = csqtool.quantize(net, calibration, **options)
        with torch.no_grad():
            errors.append(float((csqtool.to_torch(quantized, net)(x) - net(x)).square().mean()))
    assert errors[0] < 0.6 * errors[1]


@pytest.mark.long
def test_a_search_without_data_ends_in_a_file_that_is_verified_without_data(tmp_path: Path) -> None:
    net, _, _ = trained()
    lines: list[str] = []
    found = csqtool.search(net, data="none:1x6x6?samples=32&steps=5", method="zeroq", target_bits=3, act_bits=8,
                           epochs=0, synthetic_steps=5, device="cpu", progress=Told(lines.append))  # fmt: skip
    assert any(line.startswith("making 32 inputs that meet BatchNorm's statistics") for line in lines)
    assert found.metric_float == 1.0  # its own classes are the labels
    quantized = found.finalize()
    assert quantized.info.data is not None
    assert quantized.info.data.source == "none:1x6x6?samples=32&steps=5"
    csqtool.export(quantized, tmp_path / "m.onnx", model=net)
    assert csqtool.verify(tmp_path / "m.onnx", quantized, model=net).passed


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("none", "'none': none needs the shape of an input without the batch, such as none:3x32x32"),
        ("none:3x0x2", "none needs the shape of an input"),
        ("none:3x32x32x", "none needs the shape of an input"),
        ("none:99999x99999", "an input of 9,999,800,001 values is larger than"),
        ("none:6?samples=1", "samples must be 2 to 65536, got 1"),
        ("none:6?steps=0", "steps must be 1 to 65536, got 0"),
        ("none:6?size=3", "unknown option 'size'"),
    ],
)
def test_a_source_of_no_data_that_says_no_shape_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_data(spec)


def test_what_no_inputs_can_be_made_for_is_refused_in_a_line() -> None:
    net, _, _ = trained()
    plain, fresh = nn.Sequential(nn.Linear(6, 3)), nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))
    for model, spec, message in (
        (plain, "none:6", "none needs BatchNorm layers, whose statistics its inputs meet; the model has none"),
        (fresh, "none:6", "BatchNorm's statistics are those of an untrained network"),
        (net, "none:3x6x6", "the model failed on an input of shape 3x6x6: "),
        (net[:-2], "none:1x6x6?steps=1", "inputs are labelled by class scores"),
    ):
        with pytest.raises(InputError, match=message):
            load_data(spec).for_model(model)
    with pytest.raises(ConfigError, match="without data a network can label inputs with classes only, not for regress"):
        load_data("none:6", task="regression")
    with pytest.raises(ConfigError, match="there is no network here"):
        load_data("none:6").train[0]


def test_the_command_tells_a_missing_shape_in_a_line(tmp_path: Path) -> None:
    result = invoke("quantize", DIGITS, "--data", "none", "--target-bits", 3, "-o", tmp_path / "m.safetensors")
    assert result.exit_code == 2
    assert "none needs the shape of an input" in result.stderr
