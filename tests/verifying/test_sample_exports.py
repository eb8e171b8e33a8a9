"""Untouched exports of every sample model pass; rounded without training, so that no search is waited for."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from csqtool import verify
from csqtool.exporting import export
from csqtool.factories import build_model
from csqtool.finalized_file import write_finalized
from csqtool.model_info import ModelInfo
from csqtool.nn.post_training import post_training_model
from tests.support.commands import ROOT

# Networks that end in global pooling are looked at on small images.
SAMPLES = {
    "digits_cnn/model.py:digits_cnn": (1, 8, 8),
    "digits_autoencoder/model.py:digits_autoencoder": (1, 8, 8),
    "digits_vit/model.py:digits_vit": (1, 8, 8),
    "keyword_ds_cnn/model.py:ds_cnn": None,
    "resnet_cifar/model.py:resnet20": (3, 32, 32),
    "vgg_cifar/model.py:vgg19_bn": (3, 32, 32),
    "resnet_imagenet/model.py:resnet18": (3, 32, 32),
    "mobilenet_v2/model.py:mobilenet_v2": (3, 32, 32),
}


SMALL = [spec for spec in SAMPLES if spec.startswith(("digits", "keyword"))]


LARGE = ("vgg_cifar/model.py:vgg19_bn", "mobilenet_v2/model.py:mobilenet_v2",
         "resnet_imagenet/model.py:resnet18")  # fmt: skip
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")
PAIRS = [*((s, 8) for s in SAMPLES), *((s, None) for s in SMALL)]


def marks(spec: str, act_bits: int | None) -> list[pytest.MarkDecorator]:
    if spec.startswith("digits_cnn"):
        return []
    return [pytest.mark.slow if spec in LARGE or act_bits is None else pytest.mark.long]


@pytest.mark.parametrize(("spec", "act_bits"), [pytest.param(*pair, marks=marks(*pair)) for pair in PAIRS])
def test_the_untouched_export_of_a_sample_model_passes(spec: str, act_bits: int | None, tmp_path: Path) -> None:
    rounded(spec, act_bits, tmp_path)
    export(tmp_path / "model.safetensors", tmp_path / "model.onnx", format="onnx")
    report = verify(tmp_path / "model.onnx", tmp_path / "model.safetensors")
    # Untrained networks have scores next to each other: with quantized activations one step decides a label.
    judged = [c for c in report.checks if act_bits is None or c.level in ("integrity", "weights", "layers")]
    assert {c.level for c in judged} >= {"integrity", "weights", "layers"}
    assert [(c.name, c.detail) for c in judged if not c.passed] == []


@needs_compiler
@pytest.mark.parametrize("spec", [
    pytest.param(spec, marks=[pytest.mark.long if spec in SMALL else pytest.mark.slow])
    for spec in SAMPLES if not spec.startswith("vgg")
])  # fmt: skip
def test_the_untouched_c_inference_of_a_sample_model_passes(spec: str, tmp_path: Path) -> None:
    rounded(spec, 8, tmp_path)
    export(tmp_path / "model.safetensors", tmp_path / "c", format="c")
    report = verify(tmp_path / "c", tmp_path / "model.safetensors")
    judged = [c for c in report.checks if c.name != "against PyTorch" and c.level != "task"]
    assert {c.level for c in judged} == {"integrity", "structure", "weights", "layers", "outputs"}
    assert [(c.name, c.detail) for c in judged if not c.passed] == []


def rounded(spec: str, act_bits: int | None, folder: Path) -> None:
    """Write a sample model that is rounded to four planes, and data for it."""
    torch.manual_seed(0)
    factory = f"{ROOT}/sample_models/{spec}"
    module = build_model(factory, {}).eval()
    shape = SAMPLES[spec] or keyword_shape()
    inputs = torch.randn(8, *shape)
    with torch.no_grad():  # statistics of BatchNorm that fit the weights, or values fade from layer to layer
        module.train()
        for _ in range(20):
            module(inputs)
        module.eval()
    outputs = module(inputs).detach()
    task = "classification" if outputs.ndim == 2 else "regression"
    targets = outputs.argmax(-1) if task == "classification" else outputs
    np.savez(folder / "data.npz", x_train=inputs, y_train=targets, x_test=inputs, y_test=targets)
    info = {
        "model": {"factory": factory, "args": {}},
        "data": {"source": f"npz:{folder / 'data.npz'}", "task": task},
        "input_shape": list(shape),
        "method": {"name": "rounding", "target_bits": 4, "act_bits": act_bits, "seed": 0},
    }
    model = post_training_model(module, [inputs], planes=4, act_bits=act_bits, info=ModelInfo(info))
    write_finalized(model, folder / "model.safetensors")


def keyword_shape() -> tuple[int, ...]:
    from csqtool.data import load_data

    inputs, _ = load_data(f"{ROOT}/sample_models/keyword_ds_cnn/data.py:keywords").test[0]
    return tuple(inputs.shape)
