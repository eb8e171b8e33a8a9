"""ZAQ: training that reads no image, generator and network in turn, and the same again after a stop."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import csqtool
from csqtool.errors import ConfigError, SearchInterrupted
from csqtool.progress import Silent
from csqtool.searching.zaq import Zaq

SETTINGS: dict[str, Any] = {
    "method": "zaq", "target_bits": 3, "act_bits": 8, "epochs": 2, "batch_size": 16, "device": "cpu", "compile": "no",
}  # fmt: skip


class Convolutions(nn.Module):
    """Six convolution channels at two sizes, and a classifier of three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(6, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.classifier = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.second(self.first(x)).mean((2, 3)))
        return scores


def net() -> Convolutions:
    torch.manual_seed(0)
    return Convolutions().eval()


def images(seed: int = 0) -> tuple[Tensor, Tensor]:
    return torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(seed)), torch.arange(64) % 3


def test_labels_and_images_of_the_training_set_make_no_difference_to_the_weights() -> None:
    float_activations = {**SETTINGS, "act_bits": None, "epochs": 1}  # activation ranges are calibrated on images
    test = images()
    one = csqtool.search(net(), train=images(1), test=test, **float_activations).finalize()
    x, y = images(2)
    other = csqtool.search(net(), train=(x, y.flip(0)), test=test, **float_activations).finalize()
    for a, b in zip(one.layers, other.layers, strict=True):
        assert np.array_equal(a.q, b.q)
        assert a.scale == b.scale
    assert all(np.array_equal(one.tensors[name], value) for name, value in other.tensors.items())


@pytest.mark.long
def test_training_comes_nearer_to_the_float_network_and_keeps_batch_norms_statistics() -> None:
    x, _ = images(3)
    wanted = net()(x).detach()

    def far(epochs: float) -> float:
        model = net()
        found = csqtool.search(
            model, train=images(1), test=images(), **{**SETTINGS, "target_bits": 2, "epochs": epochs}
        )
        quantized = found.finalize()
        assert np.array_equal(quantized.tensors["first.1.running_var"], model.first[1].running_var.numpy())
        return float((csqtool.to_torch(quantized, model)(x).detach() - wanted).square().mean())

    assert far(10) < 0.6 * far(0.25)


@pytest.mark.parametrize(("allocator", "trainer"), [("zeroq", "zaq"), ("hawq-v3", "lq-nets")])
def test_an_allocators_scheme_is_trained_by_the_asked_method(allocator: str, trainer: str) -> None:
    model = net()
    settings = {**SETTINGS, "method": allocator, "finetune_with": trainer, "target_bits": 2.5, "epochs": 0.5}
    few = {"synthetic_steps": 4} if allocator == "zeroq" else {"hessian_steps": 2}
    quantized = csqtool.search(model, train=images(1), test=images(), **settings, **few).finalize()
    assert quantized.average_precision <= 2.5
    assert len({layer.precision for layer in quantized.layers}) > 1
    statistics = torch.from_numpy(quantized.tensors["first.1.running_var"])
    assert torch.equal(statistics, model.first[1].running_var) == (trainer == "zaq")
    if trainer == "lq-nets":
        assert all(len(np.unique(layer.q)) <= 2**layer.precision for layer in quantized.layers)


def test_a_stopped_run_goes_on_with_its_generator(tmp_path: Path) -> None:
    data: dict[str, Any] = {"train": images(1), "test": images()}
    whole = csqtool.search(net(), **data, **SETTINGS).finalize()

    class Interrupting(Silent):
        def step(self, stage: str, done: int, total: int, facts: dict[str, float]) -> None:
            if done == 6:
                os.kill(os.getpid(), signal.SIGINT)

    run = tmp_path / "run"
    with pytest.raises(SearchInterrupted):
        csqtool.search(net(), **data, **SETTINGS, run=run, progress=Interrupting())
    resumed = csqtool.search(net(), **data, resume=run).finalize()
    for a, b in zip(whole.layers, resumed.layers, strict=True):
        assert np.array_equal(a.q, b.q)
        assert a.scale == b.scale


def test_the_generator_is_trained_every_fifth_time_and_away_from_the_network() -> None:
    model, teacher = nn.Sequential(), net()
    model.add_module("model", net())
    method = Zaq.__new__(Zaq)
    method.options = Zaq.Options()  # type: ignore[assignment]
    inputs = images()[0][:4]
    moved = []
    for _ in range(6):
        before = None if method._generator is None else method._generator.start.weight.detach().clone()
        method.own_loss(model, teacher, inputs)
        assert method._generator is not None
        moved.append(before is None or not torch.equal(before, method._generator.start.weight))
    assert moved == [True, False, False, False, False, True]


@pytest.mark.parametrize(
    ("features", "model", "problem"),
    [
        (torch.zeros(8, 20), nn.Linear(20, 2), "zaq makes images"),
        (torch.zeros(8, 1, 4, 4), nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), "zaq compares feature maps"),
    ],
)
def test_what_it_cannot_imagine_is_named(features: Tensor, model: nn.Module, problem: str) -> None:
    data = (features, torch.arange(8) % 2)
    with pytest.raises(ConfigError, match=problem):
        csqtool.search(model, train=data, test=data, **{**SETTINGS, "act_bits": None})
