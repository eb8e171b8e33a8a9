"""Training on a GPU: the same networks, files and promises as on the CPU. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import csqtool
from csqtool.nn.kernels import Kernel

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

MODEL = "sample_models/digits_cnn/model.py:digits_cnn"
SETTINGS: dict[str, Any] = {"data": "digits", "pretrain_epochs": 4, "epochs": 2, "batch_size": 64}
BUDGETS: dict[str, dict[str, Any]] = {
    "csq": {"target_bits": 3, "finetune_epochs": 2},
    "bsq": {"target_bits": 3, "finetune_epochs": 2},
    "csq-uniform": {"target_bits": 3},
    "ste-uniform": {"target_bits": 3},
    "lsq": {"target_bits": 3},
    "entropy": {"target_size": "8KB"},
}


@pytest.mark.parametrize("act_bits", [None, 8])
@pytest.mark.parametrize("method", BUDGETS)
def test_a_search_on_the_gpu_ends_in_a_verified_file(method: str, act_bits: int | None, tmp_path: Path) -> None:
    settings = {**SETTINGS, **BUDGETS[method], "act_bits": act_bits}
    found = csqtool.search(MODEL, method=method, device="cuda", **settings)
    assert found.metric > 0.5
    quantized = found.finalize()
    csqtool.export(quantized, tmp_path / "m.onnx", model=MODEL)
    report = csqtool.verify(tmp_path / "m.onnx", quantized, model=MODEL, data="digits")
    assert report.passed, report.failures
    size = csqtool.pack(quantized, tmp_path / "m.csq").size_bytes
    assert "target_size" not in settings or size <= 8_000


def test_the_gpu_learns_what_the_cpu_learns() -> None:
    # Of the first epoch: later, differences of rounding have grown to those of two seeds.
    losses = {
        device: csqtool.search(MODEL, method="lsq", target_bits=3, device=device, amp="no", **SETTINGS).log[0].loss
        for device in ("cpu", "cuda")
    }
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.02)


def test_a_stopped_search_on_the_gpu_goes_on(tmp_path: Path) -> None:
    whole = csqtool.search(MODEL, method="lsq", target_bits=3, device="cuda", run=tmp_path / "a", **SETTINGS)
    (tmp_path / "a" / "summary.json").unlink()
    (tmp_path / "a" / "checkpoints" / "last.pt").unlink()  # the checkpoint before it is of an earlier epoch
    resumed = csqtool.search(resume=tmp_path / "a")
    assert [entry.stage for entry in resumed.log] == [entry.stage for entry in whole.log]
    assert resumed.metric == pytest.approx(whole.metric, abs=0.02)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside torch.compile
def test_compiled_kernels_compute_the_same_on_the_gpu() -> None:
    from csqtool.nn.gates import BitGates

    weight = torch.randn(64, 33, 3, 3, device="cuda")
    results = []
    try:
        for wanted in ("no", "yes"):
            assert Kernel.choose(wanted, element_steps=0) == (wanted == "yes")
            gates = BitGates(weight, range(8), mask_init=0.05).to("cuda")
            gates().square().sum().backward()
            gradients = [p.grad for p in gates.parameters() if p.grad is not None]
            results.append([gates().detach(), *gradients])
    finally:
        Kernel.choose("no", element_steps=0)
    for eager, compiled in zip(*results, strict=True):
        np.testing.assert_allclose(eager.cpu(), compiled.cpu(), rtol=1e-3, atol=1e-5)


def test_quantizing_after_training_runs_on_the_gpu(tmp_path: Path) -> None:
    found = csqtool.search(MODEL, method="lsq", target_bits=7, run=tmp_path / "a", device="cuda", **SETTINGS)
    weights = tmp_path / "a" / "float.safetensors"
    quantized = csqtool.quantize(MODEL, "digits", target_bits=4, act_bits=8, steps=20, weights=weights, device="cuda")
    csqtool.export(quantized, tmp_path / "m.onnx", model=MODEL)
    assert found.metric > 0.5
    assert csqtool.verify(tmp_path / "m.onnx", quantized, model=MODEL, data="digits").passed
