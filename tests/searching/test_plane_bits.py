"""Bits that planes cost in an entropy-coded file."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csqtool.nn.gates import BitGates
from csqtool.searching import plane_bits as module
from csqtool.searching.csq import Csq
from csqtool.searching.plane_bits import plane_bits
from tests.support.methods import made, small_net


def coded(q: np.ndarray) -> float:
    shares = np.unique(q, return_counts=True)[1] / q.size
    return float(-(shares * np.log2(shares)).sum())


def gates_of(weight: torch.Tensor, closed: tuple[int, ...]) -> BitGates:
    gates = BitGates(weight, range(4), n_planes=8, mask_init=0.1)
    assert gates.m_b is not None
    with torch.no_grad():
        gates.m_b[list(closed)] = -1
    return gates


@pytest.mark.parametrize("closed", [(), (0,), (0, 3)])
def test_bits_are_those_of_the_integers_with_and_without_a_plane(closed: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 7, 3)
    found = plane_bits({"w": gates_of(weight, closed), "other": gates_of(torch.randn(9), ())})
    q, _, _ = gates_of(weight, closed).integers()
    assert float(found.layers["w"]) == pytest.approx(coded(q), abs=1e-6)
    for plane in range(4):
        changed = set(closed) ^ {plane}
        other, _, _ = gates_of(weight, tuple(changed)).integers()
        assert float(found.planes["w"][plane]) == pytest.approx(abs(coded(other) - coded(q)), abs=1e-6)


def test_a_plane_of_few_bits_costs_less_than_one_of_many() -> None:
    weight = torch.tensor([1.0, -1.0, 0.0, 1.0] * 32 + [15.0])
    lowest, *others = plane_bits({"w": gates_of(weight, ())}).planes["w"].tolist()
    assert lowest > 1
    assert max(others) < 0.1  # one weight has these bits


def test_large_layers_are_measured_on_evenly_spaced_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WEIGHTS", 100)
    numbers = torch.arange(250)  # every third one is read
    for weight, bits in ((numbers // 3 % 3 * 5.0, np.log2(3)), (numbers % 3 * 5.0, 0)):
        assert float(plane_bits({"w": gates_of(weight, ())}).layers["w"]) == pytest.approx(bits, abs=1e-3)


@pytest.mark.parametrize(("size", "sign"), [("300B", 1), ("1000B", -1)])  # 800 bytes at first
def test_a_size_presses_on_masks_by_the_bits_of_their_planes(size: str, sign: int) -> None:
    method = made("csq", 3, small_net(), target_bits=None, target_size=size)
    assert isinstance(method, Csq)
    penalty = method.regularization()
    assert penalty is not None
    masks = {name: gates.m_b for name, gates in method.sources.items() if gates.m_b is not None}
    gradients = torch.autograd.grad(penalty, list(masks.values()))
    bits = plane_bits(method.sources).planes
    for name, gradient in zip(masks, gradients, strict=True):
        gate = torch.sigmoid(masks[name].detach())
        pressure = gradient / (gate * (1 - gate)) / bits[name]
        assert float(pressure[0]) * sign > 0
        torch.testing.assert_close(pressure, pressure[:1].expand(8))
