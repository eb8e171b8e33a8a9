"""Allocators: schemes within the budget that are the best of all by an independent count, and searches with them."""

from __future__ import annotations

import copy
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import csqtool
from csqtool.errors import ConfigError, SearchInterrupted
from csqtool.progress import Silent
from csqtool.searching.allocation import cheapest, load_allocator
from csqtool.searching.allocators.hawq import Hawq
from csqtool.searching.allocators.hawq_v2 import HawqV2
from csqtool.searching.allocators.hawq_v3 import HawqV3
from csqtool.searching.allocators.quanos import Quanos
from csqtool.searching.allocators.zeroq import ZeroQ
from csqtool.searching.budget import Budget
from csqtool.searching.config import SearchConfig
from csqtool.searching.options import ALLOCATORS, BUILT_IN, MethodKind
from csqtool.searching.scheme import round_to
from tests.support.allocations import QUICK, given, trained


def exact_hessians(net: nn.Sequential, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Return the diagonal block of each weight matrix, from torch's exact second derivatives."""
    found = {}
    for name, weight in net.named_parameters():
        if weight.ndim == 2:

            def loss(changed: Tensor, name: str = name) -> Tensor:
                return cross_entropy(torch.func.functional_call(net, {name: changed}, (x,)), y)

            hessian = torch.autograd.functional.hessian(loss, weight.detach())
            found[name] = hessian.reshape(weight.numel(), weight.numel())
    return found


@pytest.mark.parametrize("name", ALLOCATORS.names())
def test_what_is_said_of_an_allocator_without_torch_is_what_its_class_says(name: str) -> None:
    kind = load_allocator(name)
    assert BUILT_IN[name] == MethodKind(kind.Options, allocates=True, data=kind.data)
    assert kind.description


@pytest.mark.parametrize("name", ALLOCATORS.names())
def test_every_allocator_stays_within_budget_and_bounds_and_leaves_the_float_network_as_it_was(name: str) -> None:
    package = getattr(load_allocator(name), "requires", "")
    if package:
        pytest.importorskip(package)
    quick = {"gp": {"gp_curves": 10, "gp_steps": 1}, "haq": {"haq_episodes": 30}}.get(name, {})
    allocation, net, _, _ = given(name, pin={"5.*": 4}, max_bits=5, act_bits=8, **quick)
    before = {key: value.clone() for key, value in allocation.network.model.state_dict().items()}
    scheme = load_allocator(name)(allocation).scheme()
    precisions = {key: len(planes) for key, planes in scheme.items()}
    assert precisions.keys() == {"0.weight", "3.weight", "5.weight"}
    assert precisions["5.weight"] == 4
    assert max(precisions.values()) <= 5
    elements = {key: net.get_parameter(key).numel() for key in precisions}
    assert sum(elements[key] * planes for key, planes in precisions.items()) <= 2.5 * sum(elements.values())
    after = allocation.network.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_hawq_v3_finds_the_scheme_of_least_trace_times_error_of_all() -> None:
    allocation, net, x, y = given("hawq-v3", hessian_steps=150, hessian_tolerance=0.0)
    found = HawqV3(allocation).scheme()
    omega: dict[str, list[float]] = {}
    for name, hessian in exact_hessians(net, x, y).items():
        weight = net.get_parameter(name).detach()
        average = float(hessian.trace()) / weight.numel()
        omega[name] = []
        for planes in range(1, 8):
            top = 2**planes - 1
            scales = [float(weight.abs().max()) / top * share for share in torch.linspace(0.05, 1.1, 800).tolist()]
            errors = [float((torch.round(weight / s).clamp(-top, top) * s - weight).square().sum()) for s in scales]
            omega[name].append(average * min(errors))
    counts = {name: net.get_parameter(name).numel() for name in omega}
    room = 2.5 * sum(counts.values())

    def total(scheme: tuple[int, ...]) -> float:
        return sum(omega[name][planes - 1] for name, planes in zip(omega, scheme, strict=True))

    within = [one for one in itertools.product(range(1, 8), repeat=3)
              if sum(k * n for k, n in zip(one, counts.values(), strict=True)) <= room]  # fmt: skip
    least = min(map(total, within))
    assert total(tuple(len(found[name]) for name in omega)) <= 1.05 * least
    assert total((2, 2, 2)) > 1.2 * least  # other schemes are clearly worse


def test_hawq_v2s_planes_never_rise_from_a_larger_average_trace_to_a_smaller() -> None:
    allocation, net, x, y = given("hawq-v2", target_bits=3.3, hessian_steps=150, hessian_tolerance=0.0)
    found = HawqV2(allocation).scheme()
    averages = {name: float(h.trace()) / len(h) for name, h in exact_hessians(net, x, y).items()}
    planes = [len(found[name]) for name in sorted(averages, key=averages.__getitem__, reverse=True)]
    assert planes == sorted(planes, reverse=True)
    assert planes[0] > planes[-1]


def test_hawq_weights_rounding_errors_by_the_exact_top_eigenvalue() -> None:
    allocation, net, x, y = given("hawq", hessian_steps=300, hessian_tolerance=1e-6)
    harms = Hawq(allocation).harms()
    exact = {name: float(torch.linalg.eigvalsh(h.double()).abs().max()) / len(h)
             for name, h in exact_hessians(net, x, y).items()}  # fmt: skip
    largest = max(exact.values())
    for name, eigenvalue in exact.items():
        error = Hawq(allocation).errors(name)[2]
        assert harms[name][2] == pytest.approx(eigenvalue / largest * error, rel=0.01)


def test_planes_by_measured_loss_are_nearly_the_best_by_the_losses_of_single_layers() -> None:
    allocation, net, _, _ = given("measured", target_bits=1.6)
    found = load_allocator("measured")(allocation).scheme()
    probe = allocation.probe(60)
    losses = {name: [probe(name, tuple(range(k))) for k in range(1, 8)] for name in found}
    counts = [net.get_parameter(name).numel() for name in found]

    def total(scheme: tuple[int, ...]) -> float:
        return sum(losses[name][k - 1] for name, k in zip(found, scheme, strict=True))

    within = [one for one in itertools.product(range(1, 8), repeat=3)
              if sum(k * n for k, n in zip(one, counts, strict=True)) <= 1.6 * sum(counts)]  # fmt: skip
    best, worst = min(map(total, within)), max(map(total, within))
    assert total(tuple(map(len, found.values()))) <= best + 0.1 * (worst - best)


def test_a_size_below_one_plane_everywhere_gives_every_layer_its_fewest() -> None:
    budget = Budget({"a": 800, "b": 80}, {"a": 1, "b": 2}, {"a": 7, "b": 7}, 100, "bytes", reaches_zero=True)
    harms = {name: {k: 4.0**-k for k in range(1, 8)} for name in ("a", "b")}
    assert cheapest(harms, budget) == {"a": (0,), "b": (0, 1)}


@pytest.mark.parametrize("unit", ["elements", "layers", "bytes", "bops"])
def test_the_room_of_a_budget_is_used_and_never_exceeded(unit: str) -> None:
    elements = {"a": 1000, "b": 90, "c": 37}
    one, seven = dict.fromkeys(elements, 1), dict.fromkeys(elements, 7)
    harms = {name: {k: 4.0**-k for k in range(1, 8)} for name in elements}
    for tenths in range(11, 60):
        limit = tenths / 10 if unit in ("elements", "layers") else 40.0 * tenths
        operations = {"a": 11, "b": 171, "c": 5}
        fixed = 100 if unit == "bytes" else 0
        budget = Budget(elements, one, seven, limit, unit, fixed_bytes=fixed, bit_operations=operations)
        found = cheapest(harms, budget)
        cost = budget.cost(found)
        assert cost <= limit
        for name, planes in found.items():
            more = {**found, name: tuple(range(len(planes) + 1))}
            assert len(planes) == 7 or budget.cost(more) > limit, f"{name} could have another plane at {limit}"


def test_the_synthetic_inputs_of_zeroq_meet_the_statistics_of_batch_norm() -> None:
    # Inputs are also drawn to mean 0 and deviation 1, as ZeroQ takes standardized data for granted.
    allocation, net, x, _ = given("zeroq", standardized=True, synthetic_samples=64, synthetic_steps=300)
    inputs = ZeroQ(allocation).synthetic()
    assert inputs.shape == (64, 6)
    norm = net[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        reached, before = net[0](inputs), net[0](torch.randn(64, 6, generator=torch.Generator().manual_seed(0)))
    deviation = norm.running_var.sqrt()

    def distances(values: Tensor) -> tuple[float, float]:
        means = (values.mean(0) - norm.running_mean).abs() / deviation
        return float(means.mean()), float((values.std(0, correction=0) / deviation - 1).abs().mean())

    assert max(distances(reached)) < 0.01  # of a channel's standard deviation, on average
    assert max(distances(before)) > 0.1
    assert not any(torch.equal(one, other) for one in inputs for other in x)


def test_zeroq_s_harm_is_the_divergence_of_the_outputs_by_hand() -> None:
    allocation, net, _, _ = given("zeroq", synthetic_samples=8, synthetic_steps=2)
    allocator = ZeroQ(allocation)
    harms = allocator.harms()
    inputs = ZeroQ(allocation).synthetic()  # a generator of its own: the same inputs
    with torch.no_grad():
        wanted = net(inputs).softmax(-1)
        rounded = copy.deepcopy(net)
        rounded[5].weight.copy_(round_to(net[5].weight, (0, 1)))
        found = rounded(inputs).softmax(-1)
    assert harms["5.weight"][2] == pytest.approx(float((wanted * (wanted / found).log()).sum() / 8), rel=1e-3)
    assert harms["5.weight"][1] > harms["5.weight"][3] > harms["5.weight"][7]


def test_zeroq_without_batch_norm_or_class_scores_says_so() -> None:
    x = torch.randn(16, 6)
    with pytest.raises(ConfigError, match="zeroq needs BatchNorm layers"):
        csqtool.search(nn.Linear(6, 3), train=(x, torch.arange(16) % 3), test=(x, torch.arange(16) % 3), method="zeroq",
                       target_bits=2, **QUICK)  # fmt: skip
    net = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))
    with pytest.raises(ConfigError, match="zeroq compares class probabilities, and the task regression has none"):
        csqtool.search(net, train=(x, x[:, :3]), test=(x, x[:, :3]), task="regression", method="zeroq", target_bits=2,
                       **QUICK)  # fmt: skip


def test_quanos_measures_how_far_an_attack_by_hand_moves_each_layers_output() -> None:
    allocation, net, x, y = given("quanos", attack_size=0.2)
    found = Quanos(allocation).noise()
    leaf = x.clone().requires_grad_(True)
    cross_entropy(net(leaf), y).backward()
    assert leaf.grad is not None
    attacked = x + 0.2 * x.std() * leaf.grad.sign()
    with torch.no_grad():
        for index in (0, 3, 5):
            before, after = net[: index + 1](x), net[: index + 1](attacked)
            assert found[f"{index}.weight"] == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-4)


# --- searches ----------------------------------------------------------------------------------------------


def test_without_epochs_an_allocators_scheme_is_rounded_to_and_with_some_it_is_trained(tmp_path: Path) -> None:
    net, x, y = trained()
    common: dict[str, Any] = {"train": (x, y), "test": (x, y), "method": "hawq-v3", "target_bits": 3, **QUICK}
    rounded = csqtool.search(net, run=tmp_path / "a", **common)
    tuned = csqtool.search(net, run=tmp_path / "b", **{**common, "epochs": 3, "finetune_with": "csq"})
    stages = [entry.stage for entry in rounded.log], [entry.stage for entry in tuned.log]
    assert stages == (["allocate"], ["allocate", *["finetune"] * 3])
    assert rounded.scheme[0].precision == tuned.scheme[0].precision
    weight = net[0].weight.detach()
    layer = rounded.finalize().layers[0]
    q = torch.from_numpy(layer.q).float()
    best = float((q * weight).sum() / q.square().sum())  # of these integers, the scale of the least squared error
    assert float(layer.scale) == pytest.approx(best, rel=1e-3)
    assert torch.equal(q, torch.round(weight / float(layer.scale)).clamp(-q.abs().max(), q.abs().max()))


def test_a_resumed_search_keeps_the_scheme_that_was_allocated(tmp_path: Path) -> None:
    net, x, y = trained()
    common: dict[str, Any] = {"train": (x, y), "test": (x, y)}

    class Stopping(Silent):
        def step(self, stage: str, done: int, total: int, facts: Any) -> None:
            if stage == "finetune" and done == 3:
                raise KeyboardInterrupt

    settings: dict[str, Any] = {**QUICK, "method": "hawq-v3", "target_bits": 3, "epochs": 2}
    whole = csqtool.search(net, run=tmp_path / "whole", **common, **settings)
    with pytest.raises((SearchInterrupted, KeyboardInterrupt)):
        csqtool.search(net, run=tmp_path / "a", progress=Stopping(), **common, **settings)
    found = csqtool.search(net, resume=tmp_path / "a", **common)
    log = [json.loads(line)["stage"] for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert log == ["allocate", "finetune", "finetune"]
    assert found.scheme == whole.scheme
    assert found.metric == whole.metric


def test_a_size_of_the_packed_file_is_met(tmp_path: Path) -> None:
    net, x, y = trained()
    found = csqtool.search(net, train=(x, y), test=(x, y), method="hawq-v3", target_size="2200B", **QUICK)
    assert csqtool.pack(found.finalize(), tmp_path / "m.csq").size_bytes <= 2200
    assert found.summary.cost <= 2200


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "csq", "epochs": 0}, "epochs must be above 0, got 0"),
        ({"method": "lsq", "epochs": 0}, "epochs must be above 0, got 0"),
        ({"method": "hawq", "finetune_epochs": 3}, "finetune_epochs is not an option of hawq; it belongs to bsq, csq"),
        (
            {"method": "hawq", "scheme": "s.json"},
            "scheme is not an option of hawq; it belongs to apot, csq-uniform, dorefa",
        ),
        ({"method": "hawq", "strength": 0.1}, "strength is not an option of hawq; it belongs to bsq, csq"),
        ({"method": "measured", "hessian_steps": 9}, "hessian_steps is not an option of measured; it belongs to hawq"),
        ({"method": "hawq", "finetune_with": "entropy"}, "entropy trains for the packed file's bytes"),
        ({"method": "hawq-v4"}, "did you mean 'hawq-v"),
    ],
)
def test_settings_that_an_allocator_cannot_have_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SearchConfig.make(target_bits=3, **settings)


def test_finetuning_an_allocators_rounded_result_trains_for_the_usual_epochs() -> None:
    config = SearchConfig.make(target_bits=3, method="hawq", epochs=0, finetune_with="csq")
    tuned = config.for_finetuning({})
    assert (tuned.method, tuned.epochs) == ("csq-uniform", 20)
    assert math.isclose(config.for_finetuning({"epochs": 2}).epochs, 2)
