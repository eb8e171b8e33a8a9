from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from csqtool.factories import build_model
from csqtool.finalized_file import read_finalized
from csqtool.finalizing import finalize
from csqtool.nn.gates import BitGates
from csqtool.nn.state_dict import load_weights
from csqtool.nn.weights import quantizable_weights
from csqtool.progress import Silent
from csqtool.searching import SearchConfig, loop, search
from csqtool.searching.bsq import Bsq
from csqtool.searching.budget import make_budget, uniform
from csqtool.searching.csq import Csq
from csqtool.searching.method import METHODS
from csqtool.searching.scheme import LossProbe
from csqtool.searching.session import Session
from tests.support.commands import DIGITS, QUICK, Built, invoke, ok

SEARCH = ["search", DIGITS, "--data", "digits", *QUICK]


def run(output: Path, *more: object) -> dict[str, object]:
    summary: dict[str, object] = json.loads(ok(*SEARCH, "-o", output, "--json", *more).stdout)
    return summary


@pytest.mark.parametrize("method", METHODS.names())
def test_every_method_ends_within_the_budget_in_files_that_verify(method: str, tmp_path: Path) -> None:
    built = Built(tmp_path, "8", "--method", method)
    summary = json.loads((built.run / "summary.json").read_text())
    assert summary["average_precision"] <= 3
    assert read_finalized(built.model).average_precision == pytest.approx(summary["average_precision"])
    assert built.verify(built.onnx)[0] == 0
    assert built.verify(built.csq)[0] == 0


@pytest.mark.parametrize("target", [1.0, 2.5])
def test_the_budget_is_met_as_near_as_one_plane_of_the_smallest_layer(target: float, tmp_path: Path) -> None:
    summary = run(tmp_path / "run", "--target-bits", target)
    assert target - 144 / 8032 < float(str(summary["average_precision"])) <= target
    scheme = json.loads((tmp_path / "run" / "scheme.json").read_text())
    assert all(entry["precision"] >= 1 for entry in scheme)
    assert all("01" not in entry["mask"].lstrip("0") for entry in scheme)  # contiguous


def packed(run: Path) -> int:
    """Return the bytes of the packed file of a finished search."""
    ok("finalize", run, "-o", run.parent / "m.safetensors")
    ok("pack", run.parent / "m.safetensors", "-o", run.parent / "m.csq")
    return (run.parent / "m.csq").stat().st_size


@pytest.mark.parametrize("act_bits", ["float", "8"])
@pytest.mark.parametrize("method", ["csq", "bsq"])
def test_a_target_size_is_what_the_packed_file_comes_near_and_never_exceeds(
    method: str, act_bits: str, tmp_path: Path
) -> None:
    summary = run(tmp_path / "run", "--target-size", "9.0KB", "--act-bits", act_bits, "--method", method)
    whole = packed(tmp_path / "run")
    assert 0 <= float(str(summary["cost"])) - whole <= 40  # the metrics' digits
    assert 8_700 < whole <= 9_000
    assert "target 9.0KB, " in ok("inspect", tmp_path / "m.csq").stdout


def few_weights(path: Path) -> Path:
    """Write weights of the digits network of which nine tenths are zero: they pack far better than trained ones."""
    state = build_model(DIGITS, {}).state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {name: value * (torch.rand(value.shape, generator=generator) < 0.1) if value.ndim >= 2 else value
             for name, value in state.items()}  # fmt: skip
    save_file(state, path)
    return path


@pytest.mark.parametrize("method", ["lsq", "dorefa"])
def test_weights_that_pack_worse_once_trained_lose_planes_until_the_file_is_small_enough(
    method: str, tmp_path: Path
) -> None:
    start = few_weights(tmp_path / "start.safetensors")
    arguments = ["search", DIGITS, "--data", "digits", "--method", method, "--target-size", "7.5KB",
                 "--weights", start, "--epochs", 1, "--finetune-epochs", 0]  # fmt: skip
    summary = json.loads(ok(*arguments, "-o", tmp_path / "run", "--json").stdout)
    shrunk = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert shrunk["phase"] == "shrink"
    assert shrunk["cost_found"] > 7_500 >= shrunk["cost"]
    assert packed(tmp_path / "run") <= 7_500
    # Killed while it shrank, it ends the same.
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / "checkpoints" / "last.pt").unlink()
    resumed = json.loads(ok("search", "--resume", tmp_path / "run", "--json").stdout)
    assert {**resumed, "seconds": 0} == {**summary, "seconds": 0}
    # Without repair the budget is not enforced.
    summary = json.loads(ok(*arguments, "--no-repair", "-o", tmp_path / "free", "--json").stdout)
    assert summary["cost"] > 7_500


def test_a_damaged_float_model_is_one_error_line_when_a_search_by_size_resumes(tmp_path: Path) -> None:
    run(tmp_path / "run", "--target-size", "9.0KB")
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / "checkpoints" / "last.pt").unlink()
    state = torch.load(tmp_path / "run" / "checkpoints" / "previous.pt", weights_only=True)
    torch.save({**state, "phase": "search"}, tmp_path / "run" / "checkpoints" / "last.pt")
    (tmp_path / "run" / "float.safetensors").write_bytes(b"damaged")
    result = invoke("search", "--resume", tmp_path / "run")
    assert result.exit_code == 2, result.output
    assert "float.safetensors is not a safetensors file" in result.output


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_load_whether_or_not_a_network_or_its_wrapper_is_called_module(prefix: str, tmp_path: Path) -> None:
    source, target = (nn.ModuleDict({"module": nn.Linear(3, 2)}) for _ in range(2))
    save_file({prefix + name: value for name, value in source.state_dict().items()}, tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert torch.equal(target["module"].weight, source["module"].weight)


def test_pinned_excluded_and_bounded_layers_get_what_was_asked_for(tmp_path: Path) -> None:
    run(tmp_path / "run", "--target-bits", 3, "--pin", "classifier.*=8", "--exclude", "stem.*", "--min-bits", 2,
        "--max-bits", 5)  # fmt: skip
    precision = {e["name"]: e["precision"] for e in json.loads((tmp_path / "run" / "scheme.json").read_text())}
    assert precision.pop("classifier.weight") == 8
    assert "stem.0.weight" not in precision
    assert all(2 <= bits <= 5 for bits in precision.values())
    ok("finalize", tmp_path / "run", "-o", tmp_path / "m.safetensors")
    assert "stem.0.weight" in read_finalized(tmp_path / "m.safetensors").tensors


def test_an_exclude_that_matches_nothing_is_an_error_that_lists_the_layers(tmp_path: Path) -> None:
    result = invoke(*SEARCH, "--target-bits", 3, "--exclude", "stem.*", "--exclude", "fc*", "-o", tmp_path / "run")
    assert result.exit_code == 2
    assert "exclude 'fc*' matches no quantized layer; the layers are stem.0.weight, " in result.stderr
    assert not (tmp_path / "run" / "scheme.json").exists()


@pytest.mark.parametrize("method", ["csq", "bsq"])
def test_a_scheme_is_refused_by_methods_that_search_one(method: str, tmp_path: Path) -> None:
    result = invoke(*SEARCH, "--target-bits", 3, "--method", method, "--scheme", "s.json", "-o", tmp_path / "run")
    assert result.exit_code == 2
    assert f"{method} searches a scheme of its own" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "more",
    [
        ["--recipe", "paper", "--learning-rate", "0.05"],
        ["--finetune-with", "csq", "--beta-schedule", "step", "--warmup-epochs", "1"],
        ["--optimizer", "adamw", "--distill", "0.5", "--amp", "bf16", "--channels-last"],
        ["--no-contiguous", "--budget-weighting", "layers"],
    ],
)
def test_recipes_and_options_lead_to_a_model_that_finalizes(more: list[str], tmp_path: Path) -> None:
    summary = run(tmp_path / "run", "--target-bits", 3, *more)
    ok("finalize", tmp_path / "run", "-o", tmp_path / "m.safetensors")
    model = read_finalized(tmp_path / "m.safetensors")
    assert model.average_precision == pytest.approx(summary["average_precision"])
    assert model.info["metrics"]["finalized"] == pytest.approx(summary["metric"], abs=0.01)


class Steps(Silent):
    """Remembers how many steps each stage took, and what was said."""

    def __init__(self) -> None:
        self.taken: Counter[str] = Counter()
        self.said: list[str] = []

    def step(self, phase: str, done: int, total: int, facts: dict[str, float]) -> None:
        assert done <= total
        self.taken[phase] += 1

    def line(self, text: str) -> None:
        self.said.append(text)


def test_epochs_may_be_broken(tmp_path: Path) -> None:
    steps = Steps()
    config = SearchConfig.make(model=DIGITS, data="digits", target_bits=3, batch_size=64, pretrain_epochs=1,
                               epochs=0.5, finetune_epochs=1.25)  # fmt: skip
    search(config, tmp_path / "run", progress=steps)
    assert steps.taken == {"float": 22, "search": 11, "finetune": 28}  # of 22 steps an epoch
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [(e["phase"], e.get("epoch")) for e in log] == [
        ("float", 1), ("search", 1), ("settle", None), ("finetune", 1), ("finetune", 2)]  # fmt: skip


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_steps_within_the_backward_pass_are_those_behind_it(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SearchConfig.make(model=DIGITS, data="digits", target_bits=3, epochs=0.2, finetune_epochs=0.2,
                               optimizer=optimizer, pretrain_epochs=0.2)  # fmt: skip
    models = []
    for early in (1, 1 << 62):
        monkeypatch.setattr(loop, "EARLY_FROM", early)
        search(config, tmp_path / str(early))
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
    choose, calibrate = Session._choose_start, Session._calibrate

    def calibrated(self: Session) -> None:
        calibrate(self)
        scales.append([q.scale.item() for q in self.net.quantizers.values()])

    def look(self: Session, *arguments: Any) -> str:
        starts.append(self.weights[0].parameter.detach().clone())
        scales.append([q.scale.item() for q in self.net.quantizers.values()])
        chosen = choose(self, *arguments)
        scales.append([q.scale.item() for q in self.net.quantizers.values()])
        starts.append(self.weights[0].parameter.detach().clone())
        starts.append(load_file(self.output / "float.safetensors")["stem.0.weight"])
        assert chosen == best
        return chosen

    monkeypatch.setattr(Session, "_choose_start", look)
    monkeypatch.setattr(Session, "_calibrate", calibrated)
    config = SearchConfig.make(model=DIGITS, data="digits", target_bits=3, act_bits=4, pretrain_epochs=1, epochs=1,
                               finetune_epochs=0.1)  # fmt: skip
    search(config, tmp_path / "run")
    searched, chosen, plain = starts
    assert torch.equal(chosen, searched) == (best == "searched")
    assert torch.equal(chosen, plain) == (best == "float")
    at_first, behind_search, *_, at_last = scales
    assert at_first != behind_search
    assert at_last == (at_first if best == "float" else behind_search)


def test_the_paper_recipe_has_the_papers_settings() -> None:
    config = SearchConfig.make(model="m", data="d", target_bits=3, recipe="paper")
    assert (config.epochs, config.learning_rate, config.strength, config.beta_max) == (600, 0.1, 0.01, 200)
    assert (config.weight_decay, config.momentum) == (5e-4, 0.9)
    assert (config.finetune_epochs, config.finetune_with) == (0, "csq")
    assert (config.decay_all, config.amp, config.channels_last) == (True, "no", False)
    assert SearchConfig.make(model="m", data="d", target_bits=3, recipe="paper", epochs=2).epochs == 2


@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_gates_masks_scales_clips_and_norms_decay_in_the_papers_recipe_only(recipe: str, tmp_path: Path) -> None:
    config = SearchConfig.make(model=DIGITS, data="digits", target_bits=3, recipe=recipe, act_bits=4, epochs=1,
                               exclude=["classifier.*"])  # fmt: skip
    session = Session(config, tmp_path, Silent())
    session._enter("search")
    names = {id(p): name for name, p in session.phase.net.named_parameters() if p.numel() and p.requires_grad}
    groups = session.phase._optimizer.param_groups
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
        session = Session(config, tmp_path, Silent())
        session._enter("search")
        session.phase.net.register_forward_hook(lambda *_: events.append("end"))
        for module in session.phase.net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_pre_hook(lambda *_: events.append("layer"))
        events.clear()
        session.phase._step(torch.arange(32), 0, 0)
        layers = events.count("layer")
        assert layers > 2
        assert events == (["weight"] * layers + ["layer"] * layers if ahead else ["layer", "weight"] * layers) + ["end"]
        ends.append(session.phase.net.state_dict())
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
    session = Session(config, tmp_path, Silent())
    wanted = {}
    for weight in session.weights:
        q = torch.randint(-6, 7, weight.parameter.shape)  # less than the planes could hold
        wanted[weight.name] = weight.parameter.data.copy_(0.01 * q).clone()
    session.scheme = {weight.name: (2, 3, 4) for weight in session.weights}
    session._enter("finetune")
    assert session.method is not None
    session.method.set_hard(epochs == 0)
    for name, value in session._weight_values().items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("settings", [{"optimizer": "adamw"}, {"gate_weight_decay": 1e-4}])
def test_with_adamw_or_decay_logits_have_gradients_of_their_own(settings: dict[str, Any]) -> None:
    _, method = gated(3, **settings)
    assert all(gates.step is None and gates.m_p.requires_grad for gates in method.gates.values())


def test_finetune_keeps_the_scheme_and_records_the_float_metric(eight_bits: Built, tmp_path: Path) -> None:
    summary = json.loads(ok("finetune", eight_bits.run, "-o", tmp_path / "tuned", "--epochs", 2, "--json").stdout)
    before = json.loads((eight_bits.run / "summary.json").read_text())
    assert summary["metric_float"] == before["metric_float"]
    schemes = [json.loads((r / "scheme.json").read_text()) for r in (eight_bits.run, tmp_path / "tuned")]
    assert [e["mask"] for e in schemes[0]] == [e["mask"] for e in schemes[1]]
    ok("finalize", tmp_path / "tuned", "-o", tmp_path / "m.safetensors")


def test_pinned_layers_start_from_their_weights_in_the_papers_recipe_too() -> None:
    model, method = gated(3, recipe="paper", pin={"2.weight": 3})
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 2))
    assert method.gates["2.weight"].m_b is None
    wanted = plain[2].weight
    assert ((model[2].weight - wanted).norm() / wanted.norm()).item() < 0.2  # rounded to three planes


def test_a_run_of_the_papers_recipe_is_finetuned_from_its_weights(tmp_path: Path) -> None:
    run(tmp_path / "run", "--target-bits", 3, "--recipe", "paper", "--epochs", 1)
    ok("finetune", tmp_path / "run", "-o", tmp_path / "tuned", "--epochs", 1, "--gate-learning-rate", 1e-9,
       "--learning-rate", 1e-9)  # fmt: skip
    found = []
    for name in ("run", "tuned"):
        ok("finalize", tmp_path / name, "-o", tmp_path / f"{name}.safetensors")
        model = read_finalized(tmp_path / f"{name}.safetensors")
        found.append({layer.name: layer.q.tolist() for layer in model.layers})
    assert found[0] == found[1]


@pytest.mark.parametrize("quantizer", ["pact", "dorefa"])
def test_other_static_activation_quantizers_export_and_verify(quantizer: str, tmp_path: Path) -> None:
    built = Built(tmp_path, "4", "--act-quantizer", quantizer)
    assert built.verify(built.onnx)[0] == 0


def test_dynamic_activations_are_refused_with_the_reason(tmp_path: Path) -> None:
    run(tmp_path / "run", "--target-bits", 3, "--act-bits", 4, "--act-quantizer", "dynamic")
    result = invoke("finalize", tmp_path / "run", "-o", tmp_path / "m.safetensors")
    assert result.exit_code == 2
    assert "the largest value of each batch, which no deployed model can know" in result.stderr
    assert not (tmp_path / "m.safetensors").exists()


def gated(target: float, **more: object) -> tuple[nn.Module, Csq]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 2))
    config = SearchConfig.make(model="m", data="d", target_bits=target, **more)
    weights = quantizable_weights(model)
    budget = make_budget(config, {w.name: w.elements for w in weights})
    return model, Csq(weights, model, config, budget, {w.name: uniform(8) for w in weights})


def test_the_budget_term_is_constant_in_the_excess_and_presses_by_elements() -> None:
    _, method = gated(3, strength=1.0)
    term = method.regularization()
    assert term is not None
    term.backward()
    gradients = {name: gates.m_b.grad for name, gates in method.gates.items() if gates.m_b is not None}
    for name, share in (("0.weight", 800 / 880), ("2.weight", 80 / 880)):
        m_b = method.gates[name].m_b
        assert m_b is not None
        sigmoid = torch.sigmoid(m_b.detach())
        # Δ_S = 8 − 3 planes; shares are of mean 1
        assert torch.allclose(gradients[name], 5 * 2 * share * sigmoid * (1 - sigmoid))


def test_the_budget_term_grows_planes_below_the_target() -> None:
    _, method = gated(7)
    for gates in method.gates.values():
        assert gates.m_b is not None
        gates.m_b.data[:4] = -1.0
    term = method.regularization()
    assert term is not None
    assert term.item() < 0


def test_setting_the_same_progress_again_changes_nothing() -> None:
    model, method = gated(3)
    method.set_progress(1.0)
    for gates in method.gates.values():
        assert gates.m_b is not None
        gates.m_b.data[0] = -9.0  # closed since, within the epoch
    before = {name: value.clone() for name, value in model.state_dict().items()}
    method.set_progress(1.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_no_layer_loses_its_last_plane() -> None:
    _, method = gated(1)
    for gates in method.gates.values():
        assert gates.m_b is not None
        gates.m_b.data.fill_(-3.0)
    method.after_step()
    assert all(len(planes) == 1 for planes in method.scheme().values())


def test_bsq_strips_empty_planes_at_both_ends_and_keeps_interior_ones() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[255.0, 0, 0, 0], [-33.0, 0, 0, 0], [2.0, 0, 0, 0]]))
    config = SearchConfig.make(model="m", data="d", target_bits=3)
    weights = quantizable_weights(model)
    method = Bsq(weights, model, config, make_budget(config, {"0.weight": 12}), {"0.weight": uniform(8)})
    bits = method._bits["0.weight"]
    with torch.no_grad():
        bits.p.zero_()
        bits.n.zero_()
        bits.p[1, 2, 0] = 1.2  # 2.4 → 2
        bits.n[5, 1, 0] = 0.9
        bits.n[0, 1, 0] = 1.6  # −30.4 → −30: plane 5 empties
    method.set_progress(0.3)
    assert method.scheme() == {"0.weight": (1, 2, 3, 4)}
    q, scale, _ = method.integers()["0.weight"]
    assert q[:, 0].tolist() == [0, -15, 1]
    assert np.array_equal(q.astype(np.float32) * scale, model[0].weight.detach().numpy())
