from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from csqtool.factories import build_model
from csqtool.finalized_file import read_finalized
from tests.support.commands import DIGITS, QUICK, Built, invoke, ok

SEARCH = ["search", DIGITS, "--data", "digits", *QUICK]
# Where what is trained does not matter; given after others, these hold.
SHORT = ["--pretrain-epochs", 0.2, "--epochs", 0.2, "--finetune-epochs", 0.2]


def run(output: Path, *more: object) -> dict[str, object]:
    summary: dict[str, object] = json.loads(ok(*SEARCH, "-o", output, "--json", *more).stdout)
    return summary


@pytest.mark.parametrize("target", [1.0, 2.5])
def test_the_budget_is_met_as_near_as_one_plane_of_the_smallest_layer(target: float, tmp_path: Path) -> None:
    summary = run(tmp_path / "run", "--target-bits", target, *SHORT)
    assert target - 144 / 8032 < float(str(summary["average_precision"])) <= target
    scheme = json.loads((tmp_path / "run" / "scheme.json").read_text())
    assert all(entry["precision"] >= 1 for entry in scheme)
    assert all("01" not in entry["mask"].lstrip("0") for entry in scheme)  # contiguous


def packed(run: Path) -> int:
    """Return the bytes of the packed file of a finished search."""
    ok("finalize", run, "-o", run.parent / "m.safetensors")
    ok("pack", run.parent / "m.safetensors", "-o", run.parent / "m.csq")
    return (run.parent / "m.csq").stat().st_size


@pytest.mark.parametrize(("method", "act_bits"), [pytest.param("csq", "8", marks=pytest.mark.slow), ("bsq", "float")])
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


@pytest.mark.parametrize("method", ["lsq", pytest.param("dorefa", marks=pytest.mark.slow)])
def test_weights_that_pack_worse_once_trained_lose_planes_until_the_file_is_small_enough(
    method: str, tmp_path: Path
) -> None:
    start = few_weights(tmp_path / "start.safetensors")
    arguments = ["search", DIGITS, "--data", "digits", "--method", method, "--target-size", "7.5KB",
                 "--weights", start, "--epochs", 1]  # fmt: skip
    summary = json.loads(ok(*arguments, "-o", tmp_path / "run", "--json").stdout)
    shrunk = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert shrunk["stage"] == "shrink"
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
    run(tmp_path / "run", "--target-size", "9.0KB", *SHORT)
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / "checkpoints" / "last.pt").unlink()
    state = torch.load(tmp_path / "run" / "checkpoints" / "previous.pt", weights_only=True)
    torch.save({**state, "stage": "search"}, tmp_path / "run" / "checkpoints" / "last.pt")
    (tmp_path / "run" / "float.safetensors").write_bytes(b"damaged")
    result = invoke("search", "--resume", tmp_path / "run")
    assert result.exit_code == 2, result.output
    assert "float.safetensors is not a safetensors file" in result.output


def test_pinned_excluded_and_bounded_layers_get_what_was_asked_for(tmp_path: Path) -> None:
    run(tmp_path / "run", "--target-bits", 3, "--pin", "classifier.*=8", "--exclude", "stem.*", "--min-bits", 2,
        "--max-bits", 5, *SHORT)  # fmt: skip
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
    summary = run(tmp_path / "run", "--target-bits", 3, *SHORT, *more)
    ok("finalize", tmp_path / "run", "-o", tmp_path / "m.safetensors")
    model = read_finalized(tmp_path / "m.safetensors")
    assert model.average_precision == pytest.approx(summary["average_precision"])
    assert model.info.metrics is not None
    assert model.info.metrics.finalized == pytest.approx(summary["metric"], abs=0.01)


def test_finetune_keeps_the_scheme_and_records_the_float_metric(eight_bits: Built, tmp_path: Path) -> None:
    summary = json.loads(ok("finetune", eight_bits.run, "-o", tmp_path / "tuned", "--epochs", 2, "--json").stdout)
    before = json.loads((eight_bits.run / "summary.json").read_text())
    assert summary["metric_float"] == before["metric_float"]
    schemes = [json.loads((r / "scheme.json").read_text()) for r in (eight_bits.run, tmp_path / "tuned")]
    assert [e["mask"] for e in schemes[0]] == [e["mask"] for e in schemes[1]]
    ok("finalize", tmp_path / "tuned", "-o", tmp_path / "m.safetensors")


def test_a_run_of_the_papers_recipe_is_finetuned_from_its_weights(tmp_path: Path) -> None:
    run(tmp_path / "run", "--target-bits", 3, "--recipe", "paper", "--pretrain-epochs", 0, "--epochs", 1)
    ok("finetune", tmp_path / "run", "-o", tmp_path / "tuned", "--epochs", 0.2, "--gate-learning-rate", 1e-9,
       "--learning-rate", 1e-9)  # fmt: skip
    found = []
    for name in ("run", "tuned"):
        ok("finalize", tmp_path / name, "-o", tmp_path / f"{name}.safetensors")
        model = read_finalized(tmp_path / f"{name}.safetensors")
        found.append({layer.name: layer.q.tolist() for layer in model.layers})
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "quantizer", [pytest.param("pact", marks=pytest.mark.slow), pytest.param("dorefa", marks=pytest.mark.slow)]
)
def test_other_static_activation_quantizers_export_and_verify(quantizer: str, tmp_path: Path) -> None:
    built = Built(tmp_path, "4", "--act-quantizer", quantizer, "--pretrain-epochs", 2, "--epochs", 0.5,
                  "--finetune-epochs", 0.5)  # fmt: skip
    assert built.verify(built.onnx)[0] == 0


def test_dynamic_activations_are_refused_with_the_reason(tmp_path: Path) -> None:
    arguments = ["--target-bits", 3, "--act-bits", 4, "--act-quantizer", "dynamic", *SHORT]
    result = invoke(*SEARCH, *arguments, "-o", tmp_path / "run")
    assert result.exit_code == 2
    assert "the largest value of each batch, which no deployed model can know" in result.stderr
    assert not (tmp_path / "run").exists()
