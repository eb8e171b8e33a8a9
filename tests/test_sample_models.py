from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from csqtool.factories import build_model
from csqtool.nn.activation import ActivationFakeQuantizer
from csqtool.nn.placement import place_quantizers
from csqtool.nn.quantized_net import QuantizedNet, make_quantizers
from csqtool.nn.sites import record
from csqtool.nn.state_dict import load_weights
from csqtool.nn.weights import quantizable_weights
from csqtool.pipeline_file import read_pipeline
from tests.support.commands import ROOT

RESNETS = f"{ROOT}/sample_models/resnet_cifar/model.py"


def build(spec: str) -> nn.Module:
    model: nn.Module = build_model(spec, {})
    return model


@pytest.mark.parametrize(("name", "parameters"), [("resnet20", 269_722), ("resnet32", 464_154), ("resnet56", 853_018)])
def test_resnets_have_the_papers_size_and_yield_class_scores(name: str, parameters: int) -> None:
    model = build(f"{RESNETS}:{name}").eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert len(quantizable_weights(model, record(model, [torch.zeros(2, 3, 32, 32)]).weights)) == int(
        name.removeprefix("resnet")
    )


def test_activation_quantizers_find_their_places_around_slicing_and_padding() -> None:
    model = build(f"{RESNETS}:resnet20")
    images = torch.randn(4, 3, 32, 32)
    placement = place_quantizers(record(model, [images]), 4)
    net = QuantizedNet(model, make_quantizers(placement, ActivationFakeQuantizer))
    net.calibrate(iter([images]))
    assert set(placement.layer_inputs) == record(build(f"{RESNETS}:resnet20"), [images]).weights
    assert torch.isfinite(net.eval()(images)).all()


@pytest.mark.skipif("CSQTOOL_RESNET20" not in os.environ, reason="CSQTOOL_RESNET20 names no checkpoint")
def test_a_shared_checkpoint_loads_unchanged() -> None:
    model = build(f"{RESNETS}:resnet20")
    before = model.state_dict()["conv1.weight"].clone()
    load_weights(model, Path(os.environ["CSQTOOL_RESNET20"]))
    assert not torch.equal(model.state_dict()["conv1.weight"], before)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "sample_models").glob("*/*.toml")), ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_every_sample_has_a_pipeline_that_reads(path: Path) -> None:
    assert read_pipeline(path).formats


SHAPES = {
    "resnet_imagenet/model.py:resnet18": ((3, 224, 224), 11_689_512, 21),
    "resnet_imagenet/model.py:resnet50": ((3, 224, 224), 25_557_032, 54),
    "mobilenet_v2/model.py:mobilenet_v2": ((3, 224, 224), 3_504_872, 53),
    "vgg_cifar/model.py:vgg19_bn": ((3, 32, 32), 20_035_018, 17),
}


@pytest.mark.parametrize("spec", SHAPES)
def test_well_known_networks_have_their_parameter_counts_and_layers(spec: str) -> None:
    shape, parameters, layers = SHAPES[spec]
    with torch.device("meta"):
        model = build(f"{ROOT}/sample_models/{spec}").eval()
        assert model(torch.empty(2, *shape)).shape[0] == 2
        weights = record(model, [torch.empty(2, *shape)]).weights
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(quantizable_weights(model, weights)) == layers


@pytest.mark.parametrize(
    ("spec", "keys"),
    [
        (
            "resnet_imagenet/model.py:resnet50",
            {
                "conv1.weight": (64, 3, 7, 7),
                "bn1.running_var": (64,),
                "layer1.0.downsample.0.weight": (256, 64, 1, 1),
                "layer1.0.downsample.1.num_batches_tracked": (),
                "layer2.0.conv2.weight": (128, 128, 3, 3),
                "layer4.2.bn3.bias": (2048,),
                "fc.weight": (1000, 2048),
            },
        ),
        (
            "resnet_imagenet/model.py:resnet18",
            {"layer2.0.downsample.0.weight": (128, 64, 1, 1), "layer4.1.conv2.weight": (512, 512, 3, 3)},
        ),
        (
            "mobilenet_v2/model.py:mobilenet_v2",
            {
                "features.0.0.weight": (32, 3, 3, 3),
                "features.1.conv.0.0.weight": (32, 1, 3, 3),
                "features.1.conv.1.weight": (16, 32, 1, 1),
                "features.2.conv.1.0.weight": (96, 1, 3, 3),
                "features.17.conv.3.running_mean": (320,),
                "features.18.1.weight": (1280,),
                "classifier.1.weight": (1000, 1280),
            },
        ),
    ],
)
def test_state_dicts_have_the_names_that_shared_checkpoints_use(spec: str, keys: dict[str, tuple[int, ...]]) -> None:
    with torch.device("meta"):
        state = build(f"{ROOT}/sample_models/{spec}").state_dict()
    assert {name: tuple(state[name].shape) for name in keys} == keys
