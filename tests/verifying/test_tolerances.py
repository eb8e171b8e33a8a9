from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from csqtool.errors import ConfigError
from csqtool.pipeline_file import read_pipeline
from csqtool.verifying.layer_verdicts import likely_cause
from csqtool.verifying.layers import Cut
from csqtool.verifying.tolerances import Tolerances
from tests.support.commands import DIGITS, Built, invoke

pytestmark = pytest.mark.usefixtures("one_capture")


def test_a_tolerance_that_is_set_decides_and_is_told(eight_bits: Built) -> None:
    against = ["verify", eight_bits.onnx, "--against", eight_bits.model, "--samples", 64]
    assert invoke(*against).exit_code == 0
    strict = invoke(*against, "--tolerance", "layer-rounding=0")
    assert strict.exit_code == 1
    assert "tolerances set: layer_rounding = 0" in strict.stdout
    report = json.loads(invoke(*against, "--tolerance", "layer_rounding=0", "--json").stdout)
    assert report["tolerances"]["layer_rounding"] == 0
    assert {c["level"] for c in report["checks"] if not c["passed"]} == {"layers"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer_shares=1", "unknown tolerance 'layer_shares'; did you mean 'layer_share'"),
        ("layer_share", "write NAME=NUMBER"),
        ("layer_share=much", "write NAME=NUMBER"),
        ("layer_share=-1", "layer_share: expected float >= 0"),
        ("layer_share=nan", "layer_share: expected float >= 0"),
        ("layer_share=inf", "layer_share: expected float <="),
    ],
)
def test_a_wrong_tolerance_is_refused_in_a_line(eight_bits: Built, text: str, message: str) -> None:
    result = invoke("verify", eight_bits.onnx, "--against", eight_bits.model, "--tolerance", text)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr


def test_a_pipeline_sets_tolerances(tmp_path: Path) -> None:
    text = f'[model]\nfactory = "{DIGITS}"\n[data]\nsource = "digits"\n[search]\ntarget_bits = 3\n[verify.tolerances]\n'
    (tmp_path / "p.toml").write_text(text + "layer_share = 0.01\n")
    assert read_pipeline(tmp_path / "p.toml").tolerances == Tolerances(layer_share=0.01)
    (tmp_path / "p.toml").write_text(text + 'layer_share = "0.01"\n')
    with pytest.raises(ConfigError, match=r"verify.tolerances.*layer_share: expected float, got str"):
        read_pipeline(tmp_path / "p.toml")


def with_scale(source: Path, target: Path, name: str, factor: float) -> Path:
    proto = onnx.load(source)
    node = next(node for node in proto.graph.node if node.output[0] == name)
    scale = next(a for a in node.attribute if a.name == "scale")
    if scale.type == onnx.AttributeProto.FLOAT:
        scale.f *= factor
    else:
        scale.t.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(scale.t) * np.float32(factor)).astype("f4")))
    onnx.save(proto, target)
    return target


@pytest.mark.parametrize(
    ("tensor", "cause"),
    [
        ("block.conv1.0.weight", "the weights of block.conv1.0.weight are wrong"),
        ("relu.output", "its activation quantizer is wrong"),
    ],
)
def test_the_cause_of_a_wrong_layer_is_named(eight_bits: Built, tmp_path: Path, tensor: str, cause: str) -> None:
    broken = with_scale(eight_bits.onnx, tmp_path / "m.onnx", tensor, 1.5)
    code, report = eight_bits.verify(broken, "--samples", 64)
    assert code == 1
    failed = [c for c in report["checks"] if c["level"] == "layers" and not c["passed"]]  # type: ignore[attr-defined]
    assert any(cause in c["detail"] for c in failed)


@pytest.mark.parametrize(
    ("figures", "held", "cause"),
    [
        ({"steps": 3}, True, "a fusion"),
        ({"steps": 1, "share": 0.1}, False, "rounding"),
        ({"steps": 3}, False, "the graph"),
        ({"max_abs_diff": 0.5}, False, "the graph"),
    ],
)
def test_what_is_neither_weights_nor_quantizer_is_a_fusion_rounding_or_the_graph(
    figures: dict[str, float], held: bool, cause: str
) -> None:
    cut = Cut("a.output", "a.output_clipped", np.zeros(1, np.uint8))
    assert likely_cause(cut, "a.weight", figures, {"b.weight"}, held).startswith(cause)
