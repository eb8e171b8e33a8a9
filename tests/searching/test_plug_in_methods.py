"""A method of another package, and its options."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from csqtool import registry
from csqtool.errors import ConfigError
from csqtool.nn.latent import LsqWeight
from csqtool.nn.weights import Weight
from csqtool.pipeline_file import read_pipeline
from csqtool.searching.config import SearchConfig
from csqtool.searching.declarations import Setting
from csqtool.searching.method import BaseMethod
from csqtool.searching.options import Options
from tests.support.commands import DIGITS, invoke, ok

SEARCH = ["search", DIGITS, "--data", "digits", "--target-bits", 3]


def made(**settings: Any) -> SearchConfig:
    return SearchConfig.make(model="m", data="d", **{"target_bits": 3, **settings})


@dataclass(frozen=True)
class SignOptions(Options):
    step_rate: Annotated[float, Setting("Learning rate of the step sizes.", minimum=0)] = 0.001
    strength: Annotated[float, Setting("Of nothing.", minimum=0)] = 7.0
    shape: Annotated[Literal["round", "square"], Setting("A shape.")] = "round"


class Sign(BaseMethod[LsqWeight]):
    """LSQ with a rate of its own for the step sizes."""

    description = "latent weights with step sizes at a rate of their own"
    Options = SignOptions
    options: SignOptions
    seen: SignOptions | None = None

    def make_source(self, weight: Weight, exponents: tuple[int, ...]) -> LsqWeight:
        type(self).seen = self.options
        return LsqWeight(weight.parameter, exponents, n_planes=self.config.planes)

    def parameter_groups(self) -> list[dict[str, Any]]:
        sources = self.sources.values()
        return [
            {"params": [s.latent for s in sources], "lr": self.config.learning_rate, "weight_decay": 0.0},
            {"params": [s.scale for s in sources], "lr": self.options.step_rate, "weight_decay": 0.0},
        ]


class Clashing(Sign):
    @dataclass(frozen=True)
    class Options(Options):
        epochs: Annotated[float, Setting("Taken.")] = 1.0


class Disagreeing(Sign):
    @dataclass(frozen=True)
    class Options(Options):
        beta_max: Annotated[str, Setting("Otherwise.")] = "hot"


class Overlapping(Sign):
    @dataclass(frozen=True)
    class Options(Options):
        output: Annotated[str, Setting("Where to.")] = ""


def install(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """Let a package with the method ``sign`` be installed."""
    before = registry.entry_points
    added = EntryPoint("sign", value, "csqtool.methods")

    def entry_points(*, group: str) -> EntryPoints:
        return EntryPoints([*before(group=group), *([added] if group == added.group else [])])

    monkeypatch.setattr(registry, "entry_points", entry_points)


@pytest.fixture
def sign(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, f"{__name__}:Sign")


@pytest.mark.usefixtures("sign")
def test_options_of_a_plug_in_are_flags_keys_and_keywords(tmp_path: Path) -> None:
    text = " ".join(ok("search", "--help").stdout.split())
    assert "--step-rate FLOAT Learning rate of the step sizes. (sign) [default: 0.001]" in text
    assert "(bsq, csq, sign) [default: 0.01; sign 7" in text
    assert made(method="sign", step_rate=0.5).options == {"step_rate": 0.5, "strength": 7.0, "shape": "round"}
    path = tmp_path / "p.toml"
    start = f'[model]\nfactory = "{DIGITS}"\n[data]\nsource = "digits"\n[search]\ntarget_bits = 3\n'
    path.write_text(f'{start}method = "sign"\nstep_rate = 0.25\n')
    assert read_pipeline(path).config.options["step_rate"] == 0.25
    assert "--step-rate" in ok("methods").stdout


@pytest.mark.usefixtures("sign")
def test_options_of_a_plug_in_are_checked_and_refused_elsewhere() -> None:
    for settings, message in (
        ({"method": "sign", "step_rate": -1}, "step_rate must not be negative, got -1"),
        ({"method": "sign", "shape": "rond"}, "shape cannot be 'rond'; did you mean 'round'"),
        ({"method": "csq", "step_rate": 1}, "step_rate is not an option of csq; it belongs to sign"),
        ({"method": "sign", "beta_max": 1}, "beta_max is not an option of sign; it belongs to csq, csq-uniform"),
        ({"method": "sing"}, "unknown method 'sing'; did you mean 'sign'"),
        ({"step_rat": 1}, "unknown key 'step_rat'; did you mean 'step_rate'"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            made(**settings)


@pytest.mark.usefixtures("sign")
def test_a_plug_in_searches_with_its_options_as_a_record(tmp_path: Path) -> None:
    ok(*SEARCH, "--method", "sign", "--epochs", 0.2, "--step-rate", 0.5, "--shape", "square", "-o", tmp_path / "run")
    assert SignOptions(step_rate=0.5, shape="square") == Sign.seen
    assert json.loads((tmp_path / "run" / "config.json").read_text())["step_rate"] == 0.5
    ok("finalize", tmp_path / "run", "-o", tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("tests.nowhere:Sign", "the method sign of another package cannot be imported: ModuleNotFoundError"),
        (f"{__name__}:Clashing", "the method sign has an option epochs, which is the name of a general setting"),
        (f"{__name__}:Disagreeing", "the methods csq, csq-uniform, sign disagree on the type of their option beta_max"),
        (f"{__name__}:Overlapping", "sign: --output is an option of the command"),
    ],
)
def test_a_plug_in_that_cannot_be_used_is_one_error_line(
    value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, value)
    result = invoke("search", "--help")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {message}")
    assert len(result.stderr.splitlines()) == 1
