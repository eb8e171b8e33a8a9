"""Blame: shares of what a finalized model lost, against networks that are put together by hand."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
from torch import nn

import csqtool
from csqtool.blaming import ALL_ACTIVATIONS, ALL_TENSORS, STATISTICS, TENSORS
from csqtool.errors import ConfigError, CsqtoolError
from csqtool.nn.post_training import post_training_model
from csqtool.quantized_model import QuantizedModel
from tests.support.commands import Built, invoke, ok
from tests.support.onnx_nets import ConvNet

Pairs = list[tuple[torch.Tensor, int]]


def small(act_bits: int | None = 8, planes: int = 2) -> tuple[nn.Module, QuantizedModel, Pairs]:
    """Return a network, its finalized model, and samples labelled by the network itself: the float metric is 1."""
    torch.manual_seed(0)
    net = ConvNet().eval()
    inputs = torch.randn(60, 3, 8, 8)
    with torch.no_grad():
        net.classifier.bias -= net(inputs).mean(0)  # so that every class is an answer
    model = post_training_model(net, [inputs], planes=planes, act_bits=act_bits)
    with torch.no_grad():
        labels = net(inputs).argmax(-1)
    return net, model, list(zip(inputs, labels.tolist(), strict=True))


def outputs(net: nn.Module, data: Pairs) -> torch.Tensor:
    with torch.no_grad():
        return net(torch.stack([x for x, _ in data]))


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


def relative_to(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).square().sum() / wanted.square().sum())


@pytest.mark.parametrize("act_bits", [8, None])
def test_both_ends_are_the_float_network_and_the_finalized_one(act_bits: int | None) -> None:
    net, model, data = small(act_bits)
    before = copy.deepcopy(net.state_dict())
    found = csqtool.blame(model, model=net, data=data, samples=60)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    finalized = outputs(csqtool.to_torch(model, net), data)
    labels = torch.tensor([y for _, y in data])
    assert found.metric_float == 1.0
    assert found.metric == pytest.approx(float((finalized.argmax(-1) == labels).float().mean()))
    assert found.output_error == pytest.approx(relative(finalized, outputs(net, data)), rel=1e-4)
    if found.groups:
        quantizers = next(one for one in found.groups if one.name == ALL_ACTIVATIONS)
        rest = next(one for one in found.groups if one.name == ALL_TENSORS)
        assert quantizers.error_alone + rest.error_restored == pytest.approx(found.output_error, rel=1e-5)
    assert len(found.groups) == (0 if act_bits is None else 2)
    names = {part.name for part in found.parts}
    assert names == {x.name for x in model.layers} | {a.name for a in model.activations} | {STATISTICS, TENSORS}


def test_a_layers_figures_are_those_of_a_network_put_together_by_hand() -> None:
    net, model, data = small(act_bits=None)
    found = {part.name: part for part in csqtool.blame(model, model=net, data=data, samples=60).parts}
    wanted = outputs(net, data)
    alone = copy.deepcopy(net)
    weight = torch.from_numpy(model.layer("conv2.weight").dequantized())
    alone.conv2.weight.data = weight
    part = found["conv2.weight"]
    assert part.error_alone == pytest.approx(relative(outputs(alone, data), wanted), rel=1e-4)
    assert part.change == pytest.approx(relative_to(weight, net.conv2.weight.detach()), rel=1e-5)
    layers = tuple(
        dataclasses.replace(x, q=np.zeros_like(x.q)) if x.name == "conv2.weight" else x for x in model.layers
    )
    without = csqtool.to_torch(dataclasses.replace(model, layers=layers), net)
    parameter = without.model.conv2.parametrizations.weight[0]
    parameter.register_buffer("q", net.conv2.weight.detach())
    parameter.register_buffer("scale", torch.tensor(1.0))
    restored = relative(outputs(csqtool.to_torch(model, net), data), wanted) - relative(outputs(without, data), wanted)
    assert part.error_restored == pytest.approx(restored, rel=1e-3, abs=1e-6)


def test_a_part_that_was_spoilt_has_the_largest_share() -> None:
    net, model, data = small(planes=7)
    layers = [dataclasses.replace(x, q=-x.q) if x.name == "depthwise.weight" else x for x in model.layers]
    found = csqtool.blame(dataclasses.replace(model, layers=tuple(layers)), model=net, data=data, samples=60)
    assert found.parts[0].name == "depthwise.weight"
    assert found.parts[0].metric_share is not None
    assert found.parts[0].metric_share > 0.5
    tensors = {n: t * np.float32(9) if n.endswith("running_var") else t for n, t in model.tensors.items()}
    found = csqtool.blame(dataclasses.replace(model, tensors=tensors), model=net, data=data, samples=60)
    assert found.parts[0].name == STATISTICS


def test_nothing_lost_gives_no_shares() -> None:
    net, model, data = small(act_bits=None)
    exact = csqtool.to_torch(model, net).model
    with torch.no_grad():
        data = [
            (x, int(y)) for (x, _), y in zip(data, exact(torch.stack([x for x, _ in data])).argmax(-1), strict=True)
        ]
    found = csqtool.blame(model, model=exact, data=data)
    assert found.output_error == 0
    assert {(part.metric_share, part.error_share) for part in found.parts} == {(None, None)}


def test_a_run_is_blamed_by_the_weights_that_it_keeps_and_the_report_shows_it(
    eight_bits: Built, tmp_path: Path
) -> None:
    files = ["-o", tmp_path / "b.json", "--picture", tmp_path / "b.svg"]
    printed = ok("blame", eight_bits.run, "--samples", 40, *files)
    document = json.loads((tmp_path / "b.json").read_text())
    assert document["samples"] == 40
    names = [part["name"] for part in document["parts"]]
    assert all(name in printed.stdout for name in names)
    assert len(list(ET.parse(tmp_path / "b.svg").iter("{http://www.w3.org/2000/svg}rect"))) == 2 * len(names)
    ok("report", tmp_path / "b.json", "-o", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert '<section id="blame">' in page
    assert all(f'<th scope="row">{name}</th>' in page for name in names)


def test_what_cannot_be_blamed_is_refused(eight_bits: Built) -> None:
    assert "holds no float weights; give --weights FILE" in invoke("blame", eight_bits.model).stderr
    net, model, data = small()
    with pytest.raises(ConfigError, match="samples must be at least 1"):
        csqtool.blame(model, model=net, data=data, samples=0)
    with pytest.raises(CsqtoolError, match=r"the float network has no conv1\.weight"):
        csqtool.blame(model, model=ConvNet(width=4), data=data)
