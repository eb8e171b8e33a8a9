from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from csqtool.finalized_file import read_finalized
from csqtool.nn.weights import WeightSource
from csqtool.searching.bsq import Bsq
from csqtool.searching.csq import Csq
from csqtool.searching.method import load_method
from csqtool.searching.options import BUILT_IN, METHODS, MethodKind
from tests.support.commands import Built
from tests.support.methods import made, small_net

# The others are run by hand: their files have nothing that those of `lsq` or `lq-nets` have not.
RUN_HERE = {"csq": [], "bsq": [pytest.mark.slow], "lsq": [], "lq-nets": [pytest.mark.long]}


@pytest.mark.parametrize("method", [
    pytest.param(name, marks=RUN_HERE.get(name, [pytest.mark.slow]))
    for name in METHODS.names() if not BUILT_IN[name].counts_bytes
])  # fmt: skip
def test_every_method_of_planes_ends_within_the_budget_in_files_that_verify(method: str, tmp_path: Path) -> None:
    tuned = ["--finetune-epochs", 0.3] if BUILT_IN[method].searches else []
    built = Built(tmp_path, "8", "--pretrain-epochs", 1, "--epochs", 0.5, *tuned, method=method)
    summary = json.loads((built.run / "summary.json").read_text())
    assert summary["average_precision"] <= 3
    assert read_finalized(built.model).average_precision == pytest.approx(summary["average_precision"])
    assert built.verify(built.onnx)[0] == 0
    assert built.verify(built.csq)[0] == 0


@pytest.mark.parametrize("name", METHODS.names())
def test_what_is_said_of_a_method_without_torch_is_what_its_class_says(name: str) -> None:
    kind = load_method(name)
    assert BUILT_IN[name] == MethodKind(kind.Options, kind.searches, kind.counts_bytes, data=kind.data)


@pytest.mark.parametrize("name", METHODS.names())
def test_after_steps_the_hard_weights_are_the_integers_times_their_scale(name: str) -> None:
    model = small_net()
    method = made(name, 3, model)
    before = [weight.clone() for weight in (model[0].weight, model[2].weight)]
    groups = [{"momentum": 0.9, **group} for group in method.parameter_groups()]
    optimizer = torch.optim.SGD(groups, lr=0.0)
    inputs, targets = torch.randn(64, 20), torch.randint(0, 2, (64,))
    for step in range(4):
        if step % 2 == 0:
            method.at_epoch(step / 2)
        method.at_step(step / 3)
        optimizer.zero_grad()
        penalty = method.regularization()
        loss = cross_entropy(model(inputs), targets)
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        method.after_step()
    assert all(not torch.equal(old, new) for old, new in zip(before, (model[0].weight, model[2].weight), strict=True))
    method.finish()
    method.set_hard(True)
    for layer, (q, scale, mask) in method.integers().items():
        weight = model[int(layer[0])].weight.detach().numpy()
        assert np.array_equal(q.astype(np.float32) * scale, weight)
        kept = method.scheme()[layer]
        assert mask == "".join("1" if b in kept else "0" for b in reversed(range(8)))
        if name not in ("apot", "lq-nets"):  # whose levels are no sums of powers of two
            assert np.abs(q).max() <= sum(2**b for b in kept) / 2 ** kept[0]


@pytest.mark.parametrize("name", METHODS.names())
def test_weights_that_a_method_holds_leave_their_module_empty(name: str) -> None:
    model = small_net()
    made(name, 3, model)
    held = model[0].parametrizations.weight
    assert isinstance(held[0], WeightSource)
    assert held.original.numel() == 0
    assert not held.original.requires_grad


@pytest.mark.parametrize("settings", [{"optimizer": "adamw"}, {"gate_weight_decay": 1e-4}])
def test_with_adamw_or_decay_logits_have_gradients_of_their_own(settings: dict[str, Any]) -> None:
    _, method = gated(3, **settings)
    assert all(gates.step is None and gates.m_p.requires_grad for gates in method.sources.values())


@pytest.mark.parametrize(("schedule", "betas"), [("epoch", (1.0, 100.0, 100.0)), ("step", (1.0, 1.0, 10.0))])
def test_the_temperature_rises_by_epoch_or_by_step(schedule: str, betas: tuple[float, ...]) -> None:
    _, method = gated(3, beta_schedule=schedule, beta_max=100)
    found = [method.status()["beta"]]
    method.at_epoch(1.0)
    found.append(method.status()["beta"])
    method.at_step(0.5)
    found.append(method.status()["beta"])
    assert found == pytest.approx(betas)


def test_pinned_layers_start_from_their_weights_in_the_papers_recipe_too() -> None:
    model, method = gated(3, recipe="paper", pin={"2.weight": 3})
    assert method.sources["2.weight"].m_b is None
    wanted = small_net()[2].weight
    assert ((model[2].weight - wanted).norm() / wanted.norm()).item() < 0.2  # rounded to three planes


def gated(target: float, **settings: object) -> tuple[nn.Module, Csq]:
    model = small_net()
    method = made("csq", target, model, **settings)
    assert isinstance(method, Csq)
    return model, method


def test_the_budget_term_is_constant_in_the_excess_and_presses_by_elements() -> None:
    _, method = gated(3, strength=1.0)
    term = method.regularization()
    assert term is not None
    term.backward()
    gradients = {name: gates.m_b.grad for name, gates in method.sources.items() if gates.m_b is not None}
    for name, share in (("0.weight", 800 / 880), ("2.weight", 80 / 880)):
        m_b = method.sources[name].m_b
        assert m_b is not None
        sigmoid = torch.sigmoid(m_b.detach())
        # Δ_S = 8 − 3 planes; shares are of mean 1
        assert torch.allclose(gradients[name], 5 * 2 * share * sigmoid * (1 - sigmoid))


def test_the_budget_term_grows_planes_below_the_target() -> None:
    _, method = gated(7)
    for gates in method.sources.values():
        assert gates.m_b is not None
        gates.m_b.data[:4] = -1.0
    term = method.regularization()
    assert term is not None
    assert term.item() < 0


def test_setting_the_same_progress_again_changes_nothing() -> None:
    model, method = gated(3)
    method.at_epoch(1.0)
    for gates in method.sources.values():
        assert gates.m_b is not None
        gates.m_b.data[0] = -9.0  # closed since, within the epoch
    before = {name: value.clone() for name, value in model.state_dict().items()}
    method.at_epoch(1.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_no_layer_loses_its_last_plane() -> None:
    _, method = gated(1)
    for gates in method.sources.values():
        assert gates.m_b is not None
        gates.m_b.data.fill_(-3.0)
    method.after_step()
    assert all(len(planes) == 1 for planes in method.scheme().values())


def test_bsq_strips_empty_planes_at_both_ends_and_keeps_interior_ones() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[255.0, 0, 0, 0], [-33.0, 0, 0, 0], [2.0, 0, 0, 0]]))
    method = made("bsq", 3, model)
    assert isinstance(method, Bsq)
    bits = method.sources["0.weight"]
    with torch.no_grad():
        bits.p.zero_()
        bits.n.zero_()
        bits.p[1, 2, 0] = 1.2  # 2.4 → 2
        bits.n[5, 1, 0] = 0.9
        bits.n[0, 1, 0] = 1.6  # −30.4 → −30: plane 5 empties
    method.at_epoch(0.3)
    assert method.scheme() == {"0.weight": (1, 2, 3, 4)}
    q, scale, _ = method.integers()["0.weight"]
    assert q[:, 0].tolist() == [0, -15, 1]
    assert np.array_equal(q.astype(np.float32) * scale, model[0].weight.detach().numpy())
