"""Sensitivity of layers: against the exact Hessian, and against rounding by hand."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import csqtool
from csqtool.errors import ConfigError
from tests.support.commands import DIGITS, ok


def small() -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    return net, torch.randn(40, 5), torch.randint(0, 3, (40,))


def test_the_figures_are_those_of_rounding_by_hand_and_the_model_is_unchanged() -> None:
    net, x, y = small()
    before = copy.deepcopy(net.state_dict())
    report = csqtool.sensitivity(net, train=(x, y), test=(x, y), samples=40, planes=[2], probes=0)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    assert [layer.name for layer in report.layers] == ["0.weight", "2.weight"]
    assert report.layers[0].trace is None
    with torch.no_grad():
        wanted = net(x)
        assert report.loss == pytest.approx(float(cross_entropy(wanted, y)), rel=1e-5)
        weight = net[2].weight.detach()
        candidates = [weight.abs().max() / 3 * share for share in torch.linspace(0.05, 1.2, 2000).tolist()]
        rounded = [torch.round(weight / s).clamp(-3, 3) * s for s in candidates]
        best = min(rounded, key=lambda r: float((r - weight).square().sum()))
        found = net[1](net[0](x)) @ best.T + net[2].bias
    one = report.layers[1].errors[0]
    error = float((found - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())
    assert one.output_error == pytest.approx(error, rel=0.05)
    p, q = wanted.softmax(-1), found.softmax(-1)
    assert one.divergence == pytest.approx(float((p * (p / q).log()).sum() / 40), rel=0.05)
    assert one.loss_change == pytest.approx(float(cross_entropy(found, y)) - report.loss, abs=2e-3)
    assert one.weight_error == pytest.approx(float((best - weight).square().sum() / weight.square().sum()), rel=0.02)


def test_more_planes_cost_less() -> None:
    net, x, y = small()
    report = csqtool.sensitivity(net, train=(x, y), test=(x, y), samples=40, planes=[7, 1, 4], probes=1)
    for layer in report.layers:
        assert [one.planes for one in layer.errors] == [1, 4, 7]
        errors = [one.output_error for one in layer.errors]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 1e-3


def test_the_command_writes_what_the_report_shows(tmp_path: Path) -> None:
    files = ["-o", tmp_path / "s.json", "--picture", tmp_path / "s.svg"]
    printed = ok("sensitivity", DIGITS, "--data", "digits", "--samples", 32, "--planes", 2, "--probes", 1, *files)
    document = json.loads((tmp_path / "s.json").read_text())
    assert document["samples"] == 32
    names = [layer["name"] for layer in document["layers"]]
    assert all(name in printed.stdout for name in names)
    assert len(list(ET.parse(tmp_path / "s.svg").iter("{http://www.w3.org/2000/svg}rect"))) == len(names)
    ok("report", tmp_path / "s.json", "-o", tmp_path / "r.html")
    assert '<section id="sensitivity">' in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"planes": [9]}, "planes must be numbers from 1 to 8"),
        ({"planes": []}, "planes must be numbers from 1 to 8"),
        ({"samples": 1}, "samples must be at least 2"),
        ({"probes": -1}, "probes must be at least 0"),
        ({"excude": ["a"]}, "did you mean 'exclude'"),
    ],
)
def test_what_cannot_be_measured_is_refused(settings: dict[str, object], message: str) -> None:
    net, x, y = small()
    with pytest.raises(ConfigError, match=message):
        csqtool.sensitivity(net, train=(x, y), test=(x, y), **settings)
