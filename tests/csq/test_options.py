"""The options of packing: declared once, they are the same for `pack`, `export --format csq` and `[export.csq]`."""

import json
import math

import pytest

from csqtool.csq import CsqFile
from csqtool.csq.entry import Encoding
from csqtool.errors import ConfigError
from csqtool.exporting import load_exporter
from csqtool.finalized_file import to_bytes
from csqtool.packing import pack
from tests.support.commands import DIGITS, Built, invoke, ok
from tests.support.csq_files import golden_models

pytestmark = pytest.mark.usefixtures("one_capture")

WRONG = [
    ({"encodin": "dense"}, "unknown option 'encodin' of the format csq; did you mean 'encoding'?"),
    ({"encoding": "dens"}, "unknown encoding 'dens'; did you mean 'dense'?"),
    ({"encoding": 3}, "unknown encoding 3; known: context, dense, smallest"),
    ({"encoding": ["dense"]}, "unknown encoding ['dense']; did you mean 'dense'?"),
    ({"with_graph": "yes"}, "with-graph is true or false, got 'yes'"),
    ({"float16": 1}, "float16 is true or false, got 1"),
    ({"inference": "no"}, "inference is true or false, got 'no'"),
    ({"inference": True, "with_graph": True}, "--with-graph needs the archival profile: leave out --inference"),
    ({"float16": True, "max_metric_change": "0.1"}, "max-metric-change is a number of at least 0, got '0.1'"),
    ({"float16": True, "max_metric_change": True}, "max-metric-change is a number of at least 0, got True"),
    ({"float16": True, "max_metric_change": -0.1}, "max-metric-change is a number of at least 0, got -0.1"),
    ({"float16": True, "max_metric_change": math.nan}, "max-metric-change is a number of at least 0, got nan"),
    ({"max_metric_change": 0.1}, "--max-metric-change needs --float16"),
]


@pytest.fixture
def finalized(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(to_bytes(golden_models()["v2-ternary"][0]))
    return path


def encodings(path):
    return {e.encoding for e in CsqFile(path.read_bytes(), where="x").entries.values() if e.is_quantized}


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_an_unknown_option_or_a_wrong_value_is_refused_with_its_name(finalized, options, message):
    with pytest.raises(ConfigError) as caught:
        load_exporter("csq", options)
    assert str(caught.value) == message
    with pytest.raises(ConfigError) as caught:
        pack(finalized, finalized.with_suffix(".csq"), **options)
    assert str(caught.value) == message
    assert not finalized.with_suffix(".csq").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--encoding", "dens"], "unknown encoding 'dens'; did you mean 'dense'?"),
        (["--max-metric-change", "0.1"], "--max-metric-change needs --float16"),
        (["--max-metric-change", "much"], "'much' is not a valid float"),
        (["--data", "digits"], "--data is only used by exports that measure: --float16"),
    ],
)
def test_pack_and_export_refuse_the_same_values_in_one_line(finalized, arguments, message):
    for verb in (["pack"], ["export", "--format", "csq"]):
        done = invoke(verb[0], finalized, *verb[1:], *arguments, "-o", finalized.with_suffix(".csq"))
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.output
        assert message in done.stderr
        assert not finalized.with_suffix(".csq").exists()


def test_options_of_another_format_are_refused(finalized):
    for format_, option in (("csq", "weights"), ("onnx", "encoding")):
        done = invoke("export", finalized, "--format", format_, f"--{option}", "packed", "-o", "x")
        assert done.exit_code == 2
        assert f"unknown option '{option}' of the format {format_}" in done.stderr


def test_pack_and_export_list_the_options_with_their_defaults():
    for verb in ("pack", "export"):
        text = " ".join(ok(verb, "--help").stdout.split())
        assert all(
            f"--{option}" in text for option in ("encoding", "inference", "with-graph", "float16", "max-metric-change")
        )
        assert "[default: smallest]" in text
    assert "--strict-integer" in ok("export", "--help").stdout
    assert "--strict-integer" not in ok("pack", "--help").stdout


@pytest.mark.long
def test_export_with_options_writes_what_pack_writes(eight_bits: Built, tmp_path):
    for arguments in ([], ["--encoding", "dense"], ["--with-graph"]):
        packed = json.loads(ok("pack", eight_bits.model, *arguments, "--json", "-o", tmp_path / "a.csq").stdout)
        more = ["--format", "csq", "--json", "-o", tmp_path / "b.csq"]
        exported = json.loads(ok("export", eight_bits.model, *arguments, *more).stdout)
        assert (tmp_path / "a.csq").read_bytes() == (tmp_path / "b.csq").read_bytes()
        assert packed | {"file": ""} == exported | {"file": ""}


@pytest.mark.slow
def test_a_pipeline_packs_with_the_options_of_its_file_and_verifies(tmp_path):
    def run(options):
        text = f"""
            model = {{ factory = "{DIGITS}" }}
            data = {{ source = "digits" }}
            search = {{ target_bits = 3, act_bits = 8, epochs = 1, finetune_epochs = 0 }}
            export = {{ formats = ["csq"], csq = {{ {options} }} }}
            verify = {{ samples = 20 }}
        """
        (tmp_path / "pipeline.toml").write_text(text)
        return invoke("run", tmp_path / "pipeline.toml")

    packed = tmp_path / "build" / "model.csq"
    report = tmp_path / "build" / "verify-csq.json"
    done = run('encoding = "dense"')
    assert done.exit_code == 0, done.output
    assert encodings(packed) == {Encoding.DENSE}
    assert json.loads(report.read_text())["passed"]
    done = run("with_graph = true")
    assert done.exit_code == 0, done.output
    assert "search: unchanged" in done.stderr
    assert encodings(packed) != {Encoding.DENSE}
    assert CsqFile(packed.read_bytes(), where="x").graph is not None
    assert "ONNX graph" in {check["name"] for check in json.loads(report.read_text())["checks"]}
    old = packed.read_bytes()
    for options, message in (
        ("with_grap = true", "unknown option 'with_grap' of the format csq; did you mean 'with_graph'?"),
        ('with_graph = "yes"', "with-graph is true or false, got 'yes'"),
    ):
        done = run(options)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.output
        assert message in done.stderr
        assert packed.read_bytes() == old
