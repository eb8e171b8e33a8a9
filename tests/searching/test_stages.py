from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from csqtool import finalize
from csqtool.nn.gates import BitGates
from csqtool.nn.state_dict import load_weights
from csqtool.progress import Silent
from csqtool.searching import loop
from csqtool.searching.config import SearchConfig
from csqtool.searching.network import Network
from csqtool.searching.records import Stage
from csqtool.searching.runs import begin
from csqtool.searching.scheme import LossProbe
from csqtool.searching.settling import StartingPoints
from tests.support.commands import DIGITS
from tests.support.sessions import opened


class Steps(Silent):
    """Remembers how many steps each stage took, and what was said."""

    def __init__(self) -> None:
        self.taken: Counter[str] = Counter()
        self.said: list[str] = []

    def step(self, stage: str, done: int, total: int, facts: dict[str, float]) -> None:
        assert done <= total
        self.taken[stage] += 1

    def line(self, text: str) -> None:
        self.said.append(text)


def test_epochs_may_be_fractions(tmp_path: Path) -> None:
    steps = Steps()
    config = SearchConfig.make(model=DIGITS, data="digits", target_bits=3, batch_size=64, pretrain_epochs=1,
                               epochs=0.5, finetune_epochs=1.25)  # fmt: skip
    begin(config, tmp_path / "run", progress=steps)
    assert steps.taken == {"float": 22, "search": 11, "finetune": 28}  # of 22 steps an epoch
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [(e["stage"], e.get("epoch")) for e in log] == [
        ("float", 1), ("search", 1), ("settle", None), ("finetune", 1), ("finetune", 2)]  # fmt: skip


def test_a_method_of_fixed_bits_trains_the_epochs_given_and_no_more(tmp_path: Path) -> None:
    steps = Steps()
    config = SearchConfig.make(model=DIGITS, data="digits", target_bits=3, method="lsq", epochs=1)
    begin(config, tmp_path / "run", progress=steps)
    assert steps.taken == {"train": 22}
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_steps_within_the_backward_pass_are_those_after_it(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SearchConfig.make(model=DIGITS, data="digits", target_bits=3, epochs=0.2, finetune_epochs=0.2,
                               optimizer=optimizer, pretrain_epochs=0.2)  # fmt: skip
    models = []
    for early in (1, 1 << 62):
        monkeypatch.setattr(loop, "EARLY_FROM", early)
        begin(config, tmp_path / str(early))
        finalize(tmp_path / str(early), tmp_path / f"{early}.safetensors")
        models.append((tmp_path / f"{early}.safetensors").read_bytes())
    assert models[0] == models[1]


@pytest.mark.parametrize("best", ["searched", "soft", "float"])
def test_finetuning_starts_from_the_weights_that_round_with_least_loss(
    best: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = iter(["searched", "soft", "float"])
    monkeypatch.setattr(LossProbe, "of_scheme", lambda *_: 0.5 if next(asked) == best else 1.0)
    starts: list[Tensor] = []
    scales: list[list[float]] = []
    choose, calibrate = StartingPoints.best, Network.calibrate

    def scales_of(network: Network) -> list[float]:
        return [q.scale.item() for q in network.net.quantizers.values()]

    def calibrated(self: Network, *arguments: Any) -> None:
        calibrate(self, *arguments)
        scales.append(scales_of(self))

    def look(self: StartingPoints, *arguments: Any) -> str:
        network = self._network
        starts.append(network.weights[0].parameter.detach().clone())
        scales.append(scales_of(network))
        chosen = choose(self, *arguments)
        self.load(chosen)
        scales.append(scales_of(network))
        starts.append(network.weights[0].parameter.detach().clone())
        starts.append(load_file(self._float_weights)["stem.0.weight"])
        assert chosen == best
        return chosen

    monkeypatch.setattr(StartingPoints, "best", look)
    monkeypatch.setattr(Network, "calibrate", calibrated)
    config = SearchConfig.make(model=DIGITS, data="digits", target_bits=3, act_bits=4, pretrain_epochs=1, epochs=1,
                               finetune_epochs=0.1)  # fmt: skip
    begin(config, tmp_path / "run")
    searched, chosen, plain = starts
    assert torch.equal(chosen, searched) == (best == "searched")
    assert torch.equal(chosen, plain) == (best == "float")
    at_first, behind_search, *_, at_last = scales
    assert at_first != behind_search
    assert at_last == (at_first if best == "float" else behind_search)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_load_whether_or_not_a_network_or_its_wrapper_is_called_module(prefix: str, tmp_path: Path) -> None:
    source, target = (nn.ModuleDict({"module": nn.Linear(3, 2)}) for _ in range(2))
    save_file({prefix + name: value for name, value in source.state_dict().items()}, tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert torch.equal(target["module"].weight, source["module"].weight)


@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_gates_masks_scales_clips_and_norms_decay_in_the_papers_recipe_only(recipe: str, tmp_path: Path) -> None:
    config = SearchConfig.make(model=DIGITS, data="digits", target_bits=3, recipe=recipe, act_bits=4, epochs=1,
                               exclude=["classifier.*"])  # fmt: skip
    session = opened(config, tmp_path)
    session._enter(Stage.SEARCH)
    names = {id(p): name for name, p in session.training.net.named_parameters() if p.numel() and p.requires_grad}
    groups = session.training._optimizer.param_groups
    decay = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert decay.keys() == set(names.values())
    kinds = Counter(name.rsplit(".", 1)[-1] for name in decay)
    gates = ("m_p", "m_n") if recipe == "paper" else ("step",)  # the logits' own, or the weight's
    assert all(kinds[kind] for kind in (*gates, "m_b", "s", "scale", "bias", "weight")), kinds
    decayed = {name for name, value in decay.items() if value == 5e-4}
    assert decayed == (set(decay) if recipe == "paper" else {"model.classifier.weight"})
    assert set(decay.values()) <= {0.0, 5e-4}


def test_small_weights_are_computed_once_and_before_the_net_to_the_same_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SearchConfig.make(model=DIGITS, data="digits", target_bits=3, batch_size=32)
    events: list[str] = []
    monkeypatch.setattr(BitGates, "forward", logged(BitGates.forward, "weight", events))
    ends: list[dict[str, Tensor]] = []
    for ahead in (True, False):
        if not ahead:
            monkeypatch.setattr(loop, "compute_small_weights", lambda _: None)
        session = opened(config, tmp_path)
        session._enter(Stage.SEARCH)
        session.training.net.register_forward_hook(lambda *_: events.append("end"))
        for module in session.training.net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_pre_hook(lambda *_: events.append("layer"))
        events.clear()
        session.training._step(session.data.training_batch(range(32), seed=0), 32, 0, 0)
        layers = events.count("layer")
        assert layers > 2
        assert events == (["weight"] * layers + ["layer"] * layers if ahead else ["layer", "weight"] * layers) + ["end"]
        ends.append(session.training.net.state_dict())
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


def logged(function: Callable[..., Any], event: str, events: list[str]) -> Callable[..., Any]:
    def wrapper(*arguments: Any) -> Any:
        events.append(event)
        return function(*arguments)

    return wrapper


@pytest.mark.parametrize("finetune_with", ["csq", "lsq"])
@pytest.mark.parametrize("recipe", ["default", "paper"])
@pytest.mark.parametrize("epochs", [0, 1])
def test_finetuning_starts_from_the_settled_weights_and_without_epochs_ends_with_them(
    epochs: int, recipe: str, finetune_with: str, tmp_path: Path
) -> None:
    config = SearchConfig.make(model=DIGITS, data="digits", target_bits=3, recipe=recipe, finetune_with=finetune_with,
                               finetune_epochs=epochs)  # fmt: skip
    session = opened(config, tmp_path)
    wanted = {}
    for weight in session.network.weights:
        q = torch.randint(-6, 7, weight.parameter.shape)  # less than the planes could hold
        wanted[weight.name] = weight.parameter.data.copy_(0.01 * q).clone()
    session.scheme = {weight.name: (2, 3, 4) for weight in session.network.weights}
    session._enter(Stage.FINETUNE)
    session.method.set_hard(epochs == 0)
    for name, value in session.network.weight_values().items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-7)
