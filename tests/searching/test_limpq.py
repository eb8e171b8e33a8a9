"""LIMPQ: a step of its training by hand, and what becomes of step sizes that fall as planes are dropped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from csqtool.searching.allocators.limpq import Limpq
from tests.support.allocations import given


def test_a_step_of_limpq_moves_the_step_sizes_along_the_gradients_of_lsq_by_hand() -> None:
    # With two planes everywhere the uniform pass and the random mix are the same: each gradient counts twice.
    settings: dict[str, Any] = {"min_bits": 2, "max_bits": 2, "target_bits": 2, "batch_size": 60}
    rate = 1.0
    allocation, net, x, y = given("limpq", importance_steps=1, importance_rate=rate, **settings)
    found = Limpq(allocation).step_sizes()
    weights = {name: p.detach() for name, p in net.named_parameters() if p.ndim == 2}
    starts = {name: max(abs(float(w.mean()) + sign * 3 * float(w.std(correction=0))) for sign in (-1, 1)) / 4
              for name, w in weights.items()}  # fmt: skip
    sizes = {name: torch.tensor(start, requires_grad=True) for name, start in starts.items()}
    latents = {name: w.clone().requires_grad_(True) for name, w in weights.items()}
    others = {name: p.detach().clone().requires_grad_(True) for name, p in net.named_parameters() if p.ndim == 1}
    rounded = {}
    for name, latent in latents.items():
        v = (latent / sizes[name]).clamp(-3, 3)
        rounded[name] = (v + (v.round() - v).detach()) * sizes[name]  # straight through the rounding
    loss = cross_entropy(torch.func.functional_call(net.train(), {**rounded, **others}, (x,)), y)
    loss.backward()  # type: ignore[no-untyped-call]
    scaled = {name: 2 * float(s.grad) / (weights[name].numel() * 3) ** 0.5 for name, s in sizes.items()}
    # BatchNorm has two sets of factors, one for each pass.
    squares = [value**2 for value in scaled.values()] + [float((2 * w.grad).square().sum()) for w in latents.values()]
    squares += [float(p.grad.square().sum()) * (2 if name.startswith("1.") else 4) for name, p in others.items()]
    clipped = min(1.0, 1 / sum(squares) ** 0.5)
    for name, start in starts.items():
        moved = start - rate * clipped * scaled[name]
        assert 1e-4 < abs(moved / start - 1) < 0.02
        assert found[name][2] - start == pytest.approx(moved - start, rel=1e-2)


def test_limpq_takes_planes_whose_step_size_falls_only_where_nothing_else_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    allocation, _, _, _ = given("limpq", target_bits=2, max_bits=3)
    sizes = {name: {1: 0.9, 2: 0.5, 3: 0.2} for name in allocation.network.parameters}
    sizes["3.weight"] = {1: 0.9, 2: 0.1, 3: 0.2}  # at two planes it claims to matter less than at three
    monkeypatch.setattr(Limpq, "step_sizes", lambda _: sizes)
    assert len(Limpq(allocation).scheme()["3.weight"]) != 2
    allocation.budget.max_planes["3.weight"] = allocation.budget.min_planes["3.weight"] = 2  # type: ignore[index]
    assert len(Limpq(allocation).scheme()["3.weight"]) == 2
