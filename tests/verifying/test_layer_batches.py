"""The layers level in parts: fewer samples at a time, and fewer layers, give the same verdicts in less memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import csqtool
from csqtool.nn.post_training import post_training_model
from csqtool.quantized_model import QuantizedModel
from csqtool.verifying import layers, onnx_checks
from csqtool.verifying.findings import VerifyReport
from csqtool.verifying.layer_verdicts import Comparison
from csqtool.verifying.layers import Cut
from csqtool.verifying.tolerances import Tolerances
from tests.support.onnx_nets import ConvNet

pytestmark = pytest.mark.usefixtures("one_capture")

Exported = tuple[Path, QuantizedModel, nn.Module]


@pytest.fixture(scope="module", params=[8, None], ids=["8 bits", "float"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    net = ConvNet().eval()
    inputs = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model = post_training_model(net, [inputs], act_bits=request.param)
    path = tmp_path_factory.mktemp("layers") / "model.onnx"
    csqtool.export(model, path, model=net)
    return path, model, net


def verified(exported: Exported) -> VerifyReport:
    path, model, net = exported
    inputs = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return csqtool.verify(path, model, model=net, data=[(x, 0) for x in inputs])


@pytest.mark.parametrize("limit", [30_000, 1])  # a few samples of all layers; one sample of one layer
def test_parts_give_the_verdicts_of_the_whole(exported: Exported, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = verified(exported)
    batches: list[int] = []
    original = layers.reference_cuts

    def counted(net, model, inputs, *, keep=None):
        batches.append(len(inputs))
        return original(net, model, inputs, keep=keep)

    monkeypatch.setattr(layers, "reference_cuts", counted)
    monkeypatch.setattr(onnx_checks, "LAYER_BYTES", limit)
    parts = verified(exported)
    assert whole.passed
    assert parts.passed
    assert [(f.name, f.optimizations) for f in parts.layers] == [(f.name, f.optimizations) for f in whole.layers]
    assert max(batches) < 20
    assert len(batches) > 4
    if limit > 1:
        for part, all_of_it in zip(parts.layers, whole.layers, strict=True):
            # Kernels sum in another order in batches of another size: single values may round to the next step.
            for name, value in all_of_it.figures.items():
                assert part.figures[name] == pytest.approx(value, abs={"steps": 1, "share": 1e-3}.get(name, 1e-5))


def test_a_wrong_layer_is_named_also_where_layers_are_compared_one_by_one(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, model, net = exported
    monkeypatch.setattr(onnx_checks, "LAYER_BYTES", 1)
    with torch.no_grad():
        net.conv2.bias += 10
    try:
        wrong = post_training_model(net, [torch.randn(20, 3, 8, 8)], act_bits=8 if model.activations else None)
        report = csqtool.verify(path, wrong, model=net, data=[(x, 0) for x in torch.randn(20, 3, 8, 8)])
    finally:
        with torch.no_grad():
            net.conv2.bias -= 10
    assert any(check.level == "layers" and "conv2" in f"{check.name}{check.layer}" for check in report.failures)


def test_batches_add_up_to_the_whole() -> None:
    random = np.random.default_rng(0)
    wanted = random.integers(0, 255, (40, 30)).astype(np.uint8)
    found = wanted + (random.random(wanted.shape) < 0.1)
    for reference, other in ((wanted, found.astype(np.uint8)), (wanted / np.float32(3), found / np.float32(3))):
        cut = Cut("a", "a", reference)
        whole, parts = Comparison(cut, Tolerances()), Comparison(cut, Tolerances())
        whole.add(other, cut)
        for start in range(0, 40, 7):
            parts.add(other[start : start + 7], Cut("a", "a", reference[start : start + 7]))
        assert parts.verdict() == whole.verdict()
        assert not parts.verdict()[0]


def test_a_value_that_is_not_a_number_fails_a_layer_in_any_batch() -> None:
    reference = np.ones((2, 3), np.float32)
    cut = Cut("a", "a", reference)
    comparison = Comparison(cut, Tolerances())
    comparison.add(np.full_like(reference, np.nan), cut)
    comparison.add(reference, cut)
    assert not comparison.verdict()[0]


class Wide(nn.Module):
    """Sixteen layers whose values take much more than their inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(16 if i else 1, 16, 1) for i in range(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x.amax((2, 3))


@pytest.mark.slow
def test_memory_does_not_grow_with_samples_and_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Wide().eval()
    inputs = torch.randn(64, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    model = post_training_model(net, [inputs[:4]], act_bits=None)
    csqtool.export(model, tmp_path / "m.onnx", model=net)
    few = [(x, 0) for x in inputs[:2]]
    csqtool.verify(tmp_path / "m.onnx", model, model=net, data=few)  # the capture is made outside what is traced
    monkeypatch.setattr(onnx_checks, "LAYER_BYTES", 16 << 20)  # all values: 2 · 64 · 16 · 256 KiB = 512 MiB
    tracemalloc.start()
    try:
        report = csqtool.verify(tmp_path / "m.onnx", model, model=net, data=[(x, 0) for x in inputs])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report.passed
    assert peak < 64 << 20
