from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from csqtool.errors import ConfigError
from csqtool.searching.config import GENERAL, SearchConfig
from csqtool.searching.declarations import Users
from csqtool.searching.options import BUILT_IN, CsqOptions, GateOptions, option_owners
from csqtool.searching.recipes import RECIPES
from csqtool.searching.settings import finetune_reference, reference
from tests.support.commands import DIGITS, invoke

SEARCH = ["search", DIGITS, "--data", "digits", "--target-bits", 3]


def made(**settings: Any) -> SearchConfig:
    """Return settings with a budget that the method can have."""
    kind = BUILT_IN.get(settings.get("method", "csq"))
    budget = {"target_size": "60KB"} if kind and kind.counts_bytes else {"target_bits": 3}
    return SearchConfig.make(model="m", data="d", **{**budget, **settings})


# --- values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_size": "60KB"}, "settings: give either target bits, a target size or target bops, and not"),
        ({"target_bops": "1M"}, "settings: give either target bits, a target size or target bops, and not several"),
        ({"target_bits": None, "target_bops": "1M", "budget_weighting": "layers"}, "target bops count operations"),
        ({"target_bits": None, "target_size": "60KB", "budget_weighting": "layers"}, "leave out the budget weighting"),
        ({"target_bits": 9}, "settings: target_bits must be 1 to 8"),
        ({"act_quantizer": "pact"}, "act_quantizer pact has nothing to quantize: give act bits"),
        ({"act_bits": 9}, "settings: act_bits must be 2 to 8, got 9"),
        ({"act_bits": "x"}, "settings: act_bits must be a whole number or float, got 'x'"),
        ({"min_bits": 4, "max_bits": 3}, "in order"),
        ({"distill": 2.0}, "settings: distill must be 0 to 1, got 2"),
        ({"epochs": 0}, "settings: epochs must be above 0, got 0"),
        ({"epochs": True}, "settings: epochs must be a number, got True"),
        ({"epochs": float("inf")}, "settings: epochs must be a finite number, got inf"),
        ({"batch_size": 0}, "settings: batch_size must be at least 1, got 0"),
        ({"batch_size": 1.5}, "settings: batch_size must be a whole number, got 1.5"),
        ({"momentum": -0.1}, "settings: momentum must not be negative, got -0.1"),
        ({"beta_max": 0.5}, "settings: beta_max must be at least 1, got 0.5"),
        ({"beta_max": "hot"}, "settings: beta_max must be a number, got 'hot'"),
        ({"optimizer": "adam"}, "settings: optimizer cannot be 'adam'; did you mean 'adamw'"),
        ({"beta_schedule": "epochs"}, "settings: beta_schedule cannot be 'epochs'; did you mean 'epoch'"),
        ({"recipe": "papr"}, "did you mean 'paper'"),
        ({"method": "csg"}, "settings: unknown method 'csg'; did you mean 'csq'"),
        ({"method": 3}, "settings: method must be text, got 3"),
        ({"pin": {"a": 9}}, "pin takes 1 to 8 bits"),
        ({"pin": {"a": "x"}}, "pin must be a table of whole numbers"),
        ({"exclude": "fc"}, "exclude must be a list of texts, got 'fc'"),
        ({"repair": 3}, "repair must be true or false, got 3"),
        ({"target_bit": 3}, "settings: unknown key 'target_bit'; did you mean 'target_bits'"),
        ({"beta_maks": 3}, "settings: unknown key 'beta_maks'; did you mean 'beta_max'"),
        ({"options": {}}, "settings: unknown key 'options'"),
    ],
)
def test_wrong_settings_are_named_with_what_they_should_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        made(**settings)


def test_paths_are_taken_as_text() -> None:
    assert made(weights=Path("a") / "b.pt").weights == str(Path("a") / "b.pt")


# --- recipes -----------------------------------------------------------------------------------------------


def test_the_paper_recipe_has_the_papers_settings() -> None:
    config = made(recipe="paper")
    options = config.options_of("csq")
    assert isinstance(options, CsqOptions)
    assert (config.epochs, config.learning_rate, options.strength, options.beta_max) == (600, 0.1, 0.01, 200)
    assert (config.weight_decay, config.momentum) == (5e-4, 0.9)
    assert (config.finetune_epochs, config.finetune_with) == (0, "csq")
    assert (config.decay_all, config.amp, config.channels_last) == (True, "no", False)
    assert made(recipe="paper", epochs=2).epochs == 2


@pytest.mark.parametrize("method", BUILT_IN)
def test_a_recipe_sets_only_what_the_method_uses(method: str) -> None:
    config = made(recipe="paper", method=method)
    assert config.epochs == 600
    kinds = [BUILT_IN[method].options, *([GateOptions] if BUILT_IN[method].allocates else [])]  # finetuned with csq
    assert config.options.keys() == {field.name for kind in kinds for field in dataclasses.fields(kind)}


def test_adamw_brings_rates_of_its_own() -> None:
    config = made(optimizer="adamw", mask_learning_rate=0.5)
    assert (config.learning_rate, config.options["gate_learning_rate"], config.options["mask_learning_rate"]) == (
        0.001, 0.1, 0.5)  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_name_settings_that_are_there(recipe: str) -> None:
    assert RECIPES[recipe].keys() <= GENERAL.keys() | option_owners().keys()


# --- which method uses what --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "lsq", "beta_max": 200.0}, "beta_max is not an option of lsq; it belongs to csq, csq-uniform"),
        ({"method": "bsq", "beta_max": 100}, "belongs to csq, csq-uniform, and to finetuning with csq"),
        ({"method": "csq-uniform", "strength": 1}, "strength is not an option of csq-uniform; it belongs to bsq, csq"),
        ({"method": "csq-uniform", "init": "csq"}, "init is not an option of csq-uniform; it belongs to csq"),
        ({"method": "lsq", "finetune_epochs": 20}, "finetune_epochs is not an option of lsq; it belongs to bsq, csq"),
        ({"method": "dorefa", "finetune_with": "lsq"}, "finetune_with is not an option of dorefa"),
        ({"method": "lsq", "contiguous": True}, "contiguous is not an option of lsq"),
        ({"method": "lsq", "repair": True}, "repair is not an option of lsq without a target size"),
        ({"method": "lsq", "repair_samples": 8}, "repair_samples is not an option of lsq without a target size"),
        (
            {"scheme": "s.json"},
            "scheme is not an option of csq; it belongs to apot, csq-uniform, dorefa, entropy, lq-nets, lsq, ",
        ),
    ],
)
def test_settings_that_the_method_does_not_use_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        made(**settings)


def test_a_method_of_fixed_bits_repairs_where_a_target_size_shrinks_it() -> None:
    assert made(method="lsq", target_bits=None, target_size="9KB", repair_samples=8).repair
    assert not made(method="lsq").repair


def test_finetuning_with_gates_takes_their_options_whatever_searches() -> None:
    config = made(method="bsq", finetune_with="csq", beta_max=100)
    options = config.options_of("csq-uniform")
    assert isinstance(options, GateOptions)
    assert options.beta_max == 100
    with pytest.raises(ConfigError, match="beta_max is not an option of bsq"):
        made(method="bsq", finetune_with="csq", finetune_epochs=0, beta_max=100)


def test_the_command_line_names_the_flag(tmp_path: Path) -> None:
    for more, message in (
        (["--method", "lsq", "--beta-max", 3], "--beta-max is not an option of lsq; it belongs to csq, csq-uniform"),
        (["--method", "lsq", "--finetune-epochs", 3], "--finetune-epochs is not an option of lsq; it belongs to bsq, "),
        (["--method", "bsq", "--scheme", "s.json"], "--scheme is not an option of bsq; it belongs to apot, "),
        (["--epochs", 0], "--epochs must be above 0, got 0"),
        (["--pin", "a=9"], "--pin takes 1 to 8 bits"),
    ):
        result = invoke(*SEARCH, *more, "-o", tmp_path / "run")
        assert result.exit_code == 2
        assert result.stderr.startswith(f"error: {message}")
        assert len(result.stderr.splitlines()) == 1
        assert not (tmp_path / "run").exists()


def test_a_pipeline_names_its_key(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    start = f'[model]\nfactory = "{DIGITS}"\n[data]\nsource = "digits"\n[search]\ntarget_bits = 3\nmethod = "lsq"\n'
    path.write_text(start + "beta_max = 100\n")
    result = invoke("run", path)
    assert result.exit_code == 2
    assert f"error: {path}: [search]: beta_max is not an option of lsq; it belongs to csq, csq-uniform" in result.stderr


# --- records -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", BUILT_IN)
def test_what_is_recorded_is_flat_and_read_back_the_same(method: str) -> None:
    config = made(method=method, exclude=["a.*"], pin={"b.*": 2}, model_args={"width": 8})
    document = json.loads(json.dumps(config.to_json()))
    assert SearchConfig.from_json(document, where="config.json") == config
    assert document.keys() >= {"epochs", *config.options}
    assert "options" not in document


def test_a_record_with_settings_of_other_methods_is_read() -> None:
    everything = {name: one.default for name, one in GENERAL.items() if name not in ("model", "data")}
    everything |= {name: next(iter(owners.values())).default for name, owners in option_owners().items()}
    recorded = {**everything, "model": "m", "data": "d", "target_bits": 3, "method": "lsq", "epochs": 2,
                "finetune_epochs": 3}  # fmt: skip
    config = SearchConfig.from_json(recorded, where="config.json")
    own = {"power_of_two_scales": False}
    assert (config.method, config.epochs, config.options) == ("lsq", 5, own)  # it trained for the sum of both
    assert SearchConfig.from_json({**recorded, "method": "csq"}, where="config.json").finetune_epochs == 3
    with pytest.raises(ConfigError, match=r"config.json: unknown key 'epoch'; did you mean 'epochs'"):
        SearchConfig.from_json({**recorded, "epoch": 1}, where="config.json")


# --- finetuning --------------------------------------------------------------------------------------------


def tuned(config: SearchConfig, **changes: Any) -> SearchConfig:
    return config.for_finetuning(changes)


def test_finetuning_goes_on_with_the_settings_of_the_search() -> None:
    config = tuned(made(finetune_epochs=7, beta_max=50, batch_size=8, repair=False))
    own = {"power_of_two_scales": False}
    assert (config.method, config.epochs, config.batch_size, config.options) == ("lsq", 7, 8, own)
    assert (config.scheme, config.weights, config.pretrain_epochs) == (None, None, 0)
    again = tuned(made(beta_max=50), finetune_with="csq", epochs=2)
    assert (again.method, again.epochs, again.options["beta_max"]) == ("csq-uniform", 2, 50)
    assert tuned(made(method="lsq", epochs=3)).epochs == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta_max": 3}, "finetune: beta_max is not an option of lsq"),
        ({"finetune_with": "csg"}, "finetune: finetune_with cannot be 'csg'; did you mean 'csq'"),
        ({"finetune_epochs": 3}, "finetune: finetune_epochs is not an option of lsq"),
        ({"epoch": 3}, "finetune: unknown key 'epoch'"),
    ],
)
def test_finetuning_refuses_what_it_does_not_use(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        tuned(made(), **changes)


# --- the reference and the command's help -------------------------------------------------------------------


def params(command: str) -> dict[str, click.Parameter]:
    from csqtool.cli import cli

    found = cli.get_command(click.Context(cli), command)
    assert found is not None
    return {p.name or "": p for p in found.get_params(click.Context(found))[:-1]}  # the last is --help


def test_every_setting_is_an_option_with_its_help_and_the_default_that_is_taken() -> None:
    options = params("search")
    base = {name: value for name, value in made(target_bits=1).to_json().items() if name != "target_bits"}
    paper = made(recipe="paper").to_json()
    for row in reference():
        option = options[row.name]
        if row.name == "model":
            continue
        assert isinstance(option, click.Option)
        assert option.multiple or option.default is None  # so that only what was given is passed on
        assert (option.help or "").startswith(row.help)
        assert row.flag in option.opts
        taken = base.get(row.name)
        words = {True: "yes", False: "no"}.get(taken) if isinstance(taken, bool) else None
        shown = words or (f"{taken:g}" if isinstance(taken, int | float) else taken)
        if shown and row.name != "data":
            assert row.default.split("; ")[0] == shown, row.name
            assert f"[default: {row.default}]" in (option.help or "")
        if row.name in base and row.name in paper and row.name != "recipe":  # what both use
            assert ("; paper " in row.default) == (paper.get(row.name) != taken), row.name


def test_the_reference_says_which_methods_use_a_setting() -> None:
    rows = {row.name: row for row in reference()}
    assert rows["beta_max"].methods == "csq, csq-uniform"
    assert rows["finetune_epochs"].methods == "bsq, csq, msq"
    assert rows["scheme"].methods == "apot, csq-uniform, dorefa, entropy, lq-nets, lsq, ste-uniform, zaq"
    assert rows["epochs"].methods == "all methods"
    assert rows["repair"].methods == Users.SHRINKING
    assert rows["optimizer"].type == "one of sgd, adamw"
    assert rows["gate_learning_rate"].default == "3; paper 0.1; adamw 0.1"


def test_every_setting_is_described() -> None:
    assert all(row.help.endswith(".") and row.help[0] != " " for row in reference())


def test_finetune_has_the_settings_of_training_and_no_others() -> None:
    options = params("finetune")
    own = {"run", "output", "overwrite", "as_json", "trust_factory"}
    assert options.keys() == own | {row.name for row in finetune_reference()}
    assert {"epochs", "finetune_with", "beta_max", "learning_rate"} <= options.keys()
    assert not {"mask_init", "strength", "target_bits", "init"} & options.keys()


@pytest.mark.parametrize("arguments", [["--help"], ["search", "--help"], ["finetune", "--help"]])
def test_help_imports_no_torch(arguments: list[str]) -> None:
    code = ("import sys, contextlib\nfrom csqtool.cli import cli\n"
            "with contextlib.suppress(SystemExit): cli(sys.argv[1:])\n"
            "print({'torch', 'numpy', 'onnx', 'onnxruntime'} & set(sys.modules))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_the_methods_that_there_are_are_listed_once_each() -> None:
    with pytest.raises(ConfigError) as refused:
        SearchConfig.make("", model="m", data="digits", target_bits=3.0, method="nope")
    listed = str(refused.value).partition("known: ")[2].split(", ")
    assert {"csq", "hawq-v3"} <= set(listed)
    assert len(listed) == len(set(listed))
