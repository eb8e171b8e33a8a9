from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch import nn

from csqtool.factories import build_model
from csqtool.nn.activation import ActivationFakeQuantizer
from csqtool.nn.dataflow import place_quantizers, record
from csqtool.nn.net import QuantizedNet, make_quantizers
from csqtool.nn.weights import quantizable_weights
from csqtool.pipeline import read_pipeline
from csqtool.search.checkpoint import load_weights

RESNETS = f"{ROOT}/sample_models/resnet_cifar/model.py"


def build(spec: str) -> nn.Module:
    model: nn.Module = build_model(spec, {})
    return model


@pytest.mark.parametrize(("name", "parameters"), [("resnet20", 269_722), ("resnet32", 464_154), ("resnet56", 853_018)])
def test_resnets_have_the_papers_size_and_yield_class_scores(name: str, parameters: int) -> None:
    model = build(f"{RESNETS}:{name}").eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert len(quantizable_weights(model)) == int(name.removeprefix("resnet"))


def test_activation_quantizers_find_their_places_around_slicing_and_padding() -> None:
    model = build(f"{RESNETS}:resnet20")
    images = torch.randn(4, 3, 32, 32)
    placement = place_quantizers(record(model, [images]), 4)
    net = QuantizedNet(model, make_quantizers(placement, ActivationFakeQuantizer))
    net.calibrate(iter([images]))
    assert set(placement.layer_inputs) == {weight.name for weight in quantizable_weights(build(f"{RESNETS}:resnet20"))}
    assert torch.isfinite(net.eval()(images)).all()


@pytest.mark.skipif("CSQTOOL_RESNET20" not in os.environ, reason="CSQTOOL_RESNET20 names no checkpoint")
def test_a_shared_checkpoint_loads_unchanged() -> None:
    load_weights(build(f"{RESNETS}:resnet20"), Path(os.environ["CSQTOOL_RESNET20"]))


@pytest.mark.parametrize("path", sorted((ROOT / "sample_models").glob("*/pipeline.toml")), ids=lambda p: p.parent.name)
def test_every_sample_has_a_pipeline_that_reads(path: Path) -> None:
    assert read_pipeline(path).formats
