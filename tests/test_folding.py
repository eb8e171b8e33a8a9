from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from csqtool import verify
from csqtool.csq import pack
from csqtool.errors import FormatError
from csqtool.finalized_file import read_finalized, to_tensors, write_finalized
from csqtool.float16 import to_float16
from csqtool.folding import bias_step, epsilon_to_fold, fold_scale, integer_bias, read_batch_norm
from csqtool.model_info import DataInfo, ModelFactory, ModelInfo
from csqtool.nn.post_training import post_training_model
from csqtool.quantized_model import QuantizedLayer, QuantizedModel
from csqtool.verifying.csq_half import half_problems
from csqtool.verifying.weights import expected_in_onnx
from exporters.onnx import to_onnx

NET = """
from torch import nn
def net():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, eps=0.01), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
"""


def folding_net() -> nn.Sequential:
    torch.manual_seed(0)
    space: dict[str, Any] = {}
    exec(NET, space)
    net: nn.Sequential = space["net"]()
    norm = net[1]
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.5, -0.5, 0.0, 2.0]))
        norm.bias.copy_(torch.tensor([0.1, 0.2, -0.3, 0.0]))
        norm.running_mean.copy_(torch.tensor([0.5, -1.0, 0.0, 0.2]))
        norm.running_var.copy_(torch.tensor([1.0, 0.25, 4.0, 0.0]))
    return net.eval()


def rounded(net: nn.Module, info: ModelInfo | None = None) -> QuantizedModel:
    inputs = torch.randn(16, 1, 5, 5, generator=torch.Generator().manual_seed(1))
    return post_training_model(net, [inputs], planes=3, act_bits=8, info=info or ModelInfo())


def with_epsilon(model: QuantizedModel, epsilon: float | None) -> QuantizedModel:
    layers = tuple(replace(x, batch_norm_epsilon=epsilon) if x.batch_norm else x for x in model.layers)
    return replace(model, layers=layers)


def test_a_finalized_layer_says_the_epsilon_of_its_module() -> None:
    model = rounded(folding_net())
    assert [(x.batch_norm, x.batch_norm_epsilon) for x in model.layers] == [("1", 0.01), (None, None)]
    assert model.info.document["batch_norm_epsilon"] == {"1": 0.01}


def test_a_folded_convolution_computes_what_convolution_and_batch_norm_compute() -> None:
    net = folding_net()
    layer, tensors = rounded(net).layers[0], {k: v.numpy() for k, v in net.state_dict().items()}
    norm = read_batch_norm(layer, tensors)
    folded = fold_scale(layer.scale, norm.factor)
    x = torch.randn(2, 1, 5, 5, dtype=torch.float64)
    # The weight of the folded layer [C, 1, 3, 3]: sign · q · scale, a factor a channel.
    factor = (folded.sign * folded.scale.astype(np.float64)).reshape(-1, 1, 1, 1)
    weight = torch.from_numpy(layer.q * factor)
    bias = torch.from_numpy(norm.effective_bias(tensors["0.bias"]))
    found = nn.functional.conv2d(x, weight, bias)
    before = nn.functional.conv2d(
        x, torch.from_numpy(layer.dequantized()).double(), torch.from_numpy(tensors["0.bias"]).double()
    )
    wanted = net[1].double()(before)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_a_channel_that_batch_norm_silences_is_zeros_at_the_layer_s_own_scale() -> None:
    folded = fold_scale(np.float32(0.5), np.array([2.0, -2.0, 0.0, 1e-60]))
    assert folded.sign.tolist() == [1, -1, 0, 0]
    assert folded.scale.tolist() == [1.0, 1.0, 0.5, 0.5]


def test_biases_are_rounded_half_to_even_and_refused_beyond_int32() -> None:
    step = bias_step(np.float32(0.5), np.array([1.0, 1.0, 1.0], np.float32))
    integers = integer_bias(np.array([0.25, 0.75, -0.25]), step)
    assert integers is not None
    assert (integers.tolist(), integers.dtype) == ([0, 2, 0], np.int32)
    assert integer_bias(np.array([2.0**31]), np.array([1], np.float32)) is None
    assert integer_bias(np.array([1.0]), np.array([0], np.float32)) is None


FITTING = {f"bn.{part}": np.ones(2, np.float32) for part in ("weight", "bias", "running_mean", "running_var")}


@pytest.mark.parametrize(
    ("change", "tensors", "wrong"),
    [
        ({"batch_norm_epsilon": None}, {}, "conv.weight: the model does not record the epsilon of its BatchNorm bn"),
        ({}, {"bn.bias": None}, "conv.weight: its BatchNorm's tensor bn.bias is not in the model"),
        ({}, {"bn.weight": np.ones(3, np.float32)}, r"conv.weight: bn.weight is float32\[3\], expected a float"),
        ({}, {"bn.running_var": np.ones(2, np.int64)}, r"conv.weight: bn.running_var is int64\[2\], expected a float"),
        ({}, {"conv.bias": np.ones((), np.float32)}, r"conv.weight: conv.bias is float32\[\], expected a float"),
        ({"q": np.array(1, np.int8)}, {}, r"conv.weight: bn.weight is float32\[2\], expected a float"),
    ],
)
def test_a_batch_norm_that_cannot_be_folded_names_the_layer(
    change: dict[str, Any], tensors: dict[str, Any], wrong: str
) -> None:
    layer = QuantizedLayer("conv.weight", np.ones((2, 1), np.int8), np.float32(1), "1", None, "bn", 1e-5)
    held = {name: tensor for name, tensor in {**FITTING, **tensors}.items() if tensor is not None}
    assert epsilon_to_fold(layer, FITTING) == 1e-5
    with pytest.raises(FormatError, match=f"^{wrong}"):
        epsilon_to_fold(replace(layer, **change), held)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finalized model that does not record its epsilon, and files that were made while it was known."""
    folder = tmp_path_factory.mktemp("folding")
    (folder / "net.py").write_text(NET)
    info = ModelInfo.of(
        model=ModelFactory(f"{folder}/net.py:net"), data=DataInfo(source=f"npz:{folder}/d.npz", task="regression")
    )
    net = folding_net()
    model = rounded(net, info)
    x = np.random.default_rng(0).standard_normal((8, 1, 5, 5)).astype(np.float32)
    y = net(torch.from_numpy(x)).detach().numpy()
    np.savez(folder / "d.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    write_finalized(with_epsilon(model, None), folder / "m.safetensors")
    (folder / "m.csq").write_bytes(pack(to_float16(model, near=folder / "m.safetensors", max_metric_change=1.0)))
    (folder / "m.onnx").write_bytes(to_onnx(model, net)[0])
    return folder


@pytest.mark.parametrize("use", ["export", "float16", "verify an ONNX file", "verify a rounded file"])
def test_whoever_folds_an_unknown_epsilon_names_the_layer(use: str, folder: Path) -> None:
    finalized = folder / "m.safetensors"
    uses = {
        "export": lambda: to_onnx(read_finalized(finalized), folding_net()),
        "float16": lambda: to_float16(read_finalized(finalized), near=finalized),
        "verify an ONNX file": lambda: verify(folder / "m.onnx", finalized),
        "verify a rounded file": lambda: verify(folder / "m.csq", finalized),
    }
    with pytest.raises(FormatError, match=r"^0\.weight: the model does not record the epsilon of its BatchNorm 1"):
        uses[use]()


def test_a_rounded_file_whose_tensors_have_another_shape_fails_verification(folder: Path) -> None:
    model = with_epsilon(read_finalized(folder / "m.safetensors"), 0.01)
    tensors, metadata = to_tensors(model)
    tensors["1.weight"] = np.ones(5, np.float32)
    problems = list(half_problems(tensors, metadata, model))
    assert problems == [("1.weight", "values: shape [5] instead of [4]")]


@pytest.mark.parametrize("epsilon", [0.01, 1.0])
def test_the_verifier_folds_with_the_layer_s_epsilon(epsilon: float) -> None:
    model = with_epsilon(rounded(folding_net()), epsilon)
    gamma, variance = (model.tensors[f"1.{part}"].astype(np.float64) for part in ("weight", "running_var"))
    scale = expected_in_onnx(model, model.layers[0]).scale
    wanted = np.abs(gamma / np.sqrt(variance + epsilon)) * model.layers[0].scale
    np.testing.assert_allclose(scale[gamma != 0], wanted[gamma != 0], rtol=1e-6)
