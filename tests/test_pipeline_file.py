from __future__ import annotations

from pathlib import Path

import pytest

from csqtool.pipeline_file import read_pipeline
from tests.support.commands import invoke

LEAST = '[model]\nfactory = "model.py:net"\n[data]\nsource = "digits"\n[search]\ntarget_bits = 3\n'


def test_paths_are_relative_to_the_pipeline_file_and_settings_the_same_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project").mkdir()
    text = LEAST.replace('"digits"', '"npz:x/d.npz"').replace("[search]", '[search]\nmethod = "lsq"\nscheme = "s.json"')
    (tmp_path / "project" / "p.toml").write_text(text + "[verify]\nbaseline = 'b.json'\nmax_regression = 0\n")
    monkeypatch.chdir(tmp_path)
    found = read_pipeline(Path("project/p.toml"))
    config = found.config
    assert (config.model, config.data, config.scheme) == (
        "project/model.py:net",
        "npz:project/x/d.npz",
        "project/s.json",
    )
    assert (str(found.output), found.gates.baseline) == ("project/build", "project/b.json")
    monkeypatch.chdir(tmp_path / "project")
    again = read_pipeline(Path("p.toml"))
    assert again.config.model == "model.py:net"
    assert again.settings == found.settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model", "not valid TOML"),
        ("x = " + "[" * 100_000, "not valid TOML"),
        ("", "[model]: factory is missing"),
        ("[model]\nfactory = 1\n", "[model]: factory: expected str, got int"),
        ("[modle]\nfactory = 'x'\n", "unknown key 'modle'; did you mean 'model'?"),
        ("model = 1\n", "model: expected object, got int"),
        ("output = 1\n", "output: expected str, got int"),
        (LEAST.replace("factory", "factori"), "[model]: unknown key 'factori'; did you mean 'factory'?"),
        (LEAST.replace("source = ", "sourcs = "), "[data]: unknown key 'sourcs'; did you mean 'source'?"),
        (LEAST.replace("target_bits", "target_bit"), "[search]: unknown key 'target_bit'; did you mean 'target_bits'?"),
        (LEAST + "where = 'x'\n", "[search]: unknown key 'where'"),
        (LEAST + "model = 'x'\n", "[search] model belongs in [model] or [data]"),
        (LEAST.replace("[data]", "args = {x = 2026-01-01}\n[data]"), "[model] args: only texts"),
        (LEAST + "[export]\nformats = []\n", "[export]: formats: expected array of length >= 1"),
        (LEAST + "[export]\nformats = ['onnx', 1]\n", "[export]: formats[1]: expected str, got int"),
        (LEAST + "[export]\nformat = ['onnx']\n", "[export]: unknown key 'format'; did you mean 'formats'?"),
        (LEAST + "[export.onxx]\nweights = 'int8'\n", "[export.onxx] is no exported format; did you mean 'onnx'?"),
        (LEAST + "[verify]\nsamples = 0\n", "[verify]: samples: expected int >= 1"),
        (LEAST + "[verify]\nsamples = true\n", "[verify]: samples: expected int | null, got bool"),
        (LEAST + "[verify]\nbackends = 'onnxruntime'\n", "[verify]: backends: expected array, got str"),
        (LEAST + "[verify]\nmax_sise = 1\n", "[verify]: unknown key 'max_sise'; did you mean 'max_size'?"),
        (LEAST + "[verify]\nmax_size = 'big'\n", "'big' is no size"),
        (LEAST + "[verify]\nmax_ram = '8KB'\n", "max-ram is measured on a target; set --target cortex-m4 as well"),
        (LEAST + "[verify]\ntarget = 'cortex-m3'\n", "unknown target 'cortex-m3'; did you mean 'cortex-m4'?"),
        (LEAST + "[verify]\nmin_metric = '1'\n", "[verify]: min_metric: expected float | null, got str"),
        (LEAST + "[verify]\nmin_agreement = 2\n", "min-agreement is a share of 0 to 1"),
        (LEAST + "[verify.tolerances]\nlayer_shares = 1\n", "[verify.tolerances]: unknown tolerance 'layer_shares'"),
    ],
)
def test_what_is_wrong_in_a_pipeline_file_is_told_in_a_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.toml").write_text(text)
    result = invoke("run", tmp_path / "p.toml")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr
    assert not (tmp_path / "build").exists()
