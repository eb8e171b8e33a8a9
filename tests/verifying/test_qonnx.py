"""Verify of QONNX files: good ones pass, and each way to break one fails at the level named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from csqtool.errors import ConfigError
from csqtool.model_info import ModelInfo
from csqtool.nn.finalized_net import finalized_net
from csqtool.nn.post_training import post_training_model
from csqtool.onnx_file import flattened, parse_onnx
from csqtool.verifying import backends
from csqtool.verifying.findings import VerifyReport
from csqtool.verifying.gates import Gates
from csqtool.verifying.qonnx_checks import in_standard_operators
from csqtool.verifying.structure import check_structure, expected_beside
from csqtool.verifying.subject import Subject
from csqtool.verifying.weights import onnx_activation_problems, onnx_weight_problems
from exporters.qonnx import to_qonnx
from tests.support.commands import Built, invoke, ok
from tests.support.onnx_changes import array, node, put
from tests.support.onnx_nets import ConvNet
from tests.support.structural import before, make, set_attribute

pytestmark = pytest.mark.usefixtures("one_capture")

Proto = onnx.ModelProto
Edit = Callable[[Proto], None]


class Example:
    """A network whose file is edited."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = ConvNet().eval()
        info = ModelInfo({"input_shape": [3, 6, 6]})
        self.model = post_training_model(self.module, [torch.randn(8, 3, 6, 6)], planes=2, act_bits=4, info=info)
        self.content, _ = to_qonnx(self.model, copy.deepcopy(self.module))

    def failures(self, edit: Edit | None = None) -> set[tuple[str, str | None]]:
        """Return the failed checks that need no samples: level, and layer or value."""
        proto = onnx.load_from_string(self.content)
        if edit is not None:
            edit(proto)
        report = VerifyReport.begin("file", "model", 0, 3.0)
        unused: Any = None
        subject = Subject(
            content=proto.SerializeToString(), model=self.model, finalized_sha256="",
            net=finalized_net(copy.deepcopy(self.module), self.model),
            build_net=lambda model: finalized_net(copy.deepcopy(self.module), model), source=unused, samples=None,
            report=report, tell=unused, backends=(), threads=0,
        )  # fmt: skip
        standard = in_standard_operators(subject)
        if standard is not None:
            lowered = parse_onnx(standard.content, where="file")
            flat = flattened(lowered, where="file")
            for problems in (onnx_weight_problems, onnx_activation_problems):
                standard.add_problems("weights", "values", problems(flat, standard.model), 1)
            with expected_beside(flat, standard) as expected:
                check_structure(lowered, flat, standard, expected)
        return {(check.level, check.layer) for check in report.failures}


@pytest.fixture(scope="module")
def example() -> Example:
    return Example()


def changed(name: str, change: Callable[[np.ndarray], Any]) -> Edit:
    def edit(proto: Proto) -> None:
        put(proto, name, np.asarray(change(array(proto, name)), np.float32))

    return edit


def first_weight(steps: float) -> Edit:
    def edit(proto: Proto) -> None:
        values = np.array(array(proto, "conv2.weight"))
        values.reshape(-1)[0] -= np.copysign(steps * array(proto, "conv2.weight_scale"), values.reshape(-1)[0])
        put(proto, "conv2.weight", values)

    return edit


def other_constant(output: str, position: int, number: float) -> Edit:
    def edit(proto: Proto) -> None:
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(number, np.float32), "another"))
        node(proto, output).input[position] = "another"

    return edit


def attribute(output: str, name: str, value: Any) -> Edit:
    return lambda proto: set_attribute(node(proto, output), name, value)


def operator(output: str, name: str) -> Edit:
    def edit(proto: Proto) -> None:
        node(proto, output).op_type = name

    return edit


def quantizer_bypassed(proto: Proto) -> None:
    node(proto, "conv2").input[0] = node(proto, "relu@2.output").input[0]


def batch_norm_off(proto: Proto) -> None:
    node(proto, "relu").input[0] = "conv1"


def scale_per_channel(proto: Proto) -> None:
    put(proto, "conv2.weight_scale", np.full((8, 1, 1, 1), array(proto, "conv2.weight_scale"), np.float32))


def dead_quantizer(proto: Proto) -> None:
    spare = make("Quant", list(node(proto, "relu.output").input), ["spare"], signed=0, narrow=0, rounding_mode="ROUND")
    spare.domain = "qonnx.custom_op.general"
    before(proto, node(proto, "conv2"), spare)


def test_a_good_file_has_no_failure(example: Example) -> None:
    assert example.failures() == set()


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (first_weight(1), ("weights", "conv2.weight")),
        (first_weight(0.25), ("weights", "conv2.weight")),  # rounds to the same integer
        (changed("conv2.weight_scale", lambda s: s * 1.001), ("weights", "conv2.weight")),
        (changed("norm1.weight", lambda g: -g), ("structure", "norm1.weight")),
        (other_constant("conv2.weight_quant", 3, 4), ("weights", "conv2.weight")),
        (other_constant("relu@2.output", 3, 5), ("weights", "relu@2.output")),
        (other_constant("relu@2.output", 2, 1), ("weights", "relu@2.output")),
        (other_constant("relu@2.output", 1, 0.03), ("weights", "relu@2.output")),
        (attribute("conv2.weight_quant", "narrow", 0), ("weights", "conv2.weight")),
        (attribute("relu@2.output", "signed", 1), ("weights", "relu@2.output")),
        (attribute("relu@2.output", "rounding_mode", "FLOOR"), ("integrity", None)),
        (attribute("relu@2.output", "narrow", 1), ("integrity", None)),
        (operator("relu@2.output", "IntQuant"), ("integrity", None)),
        (scale_per_channel, ("integrity", None)),
        (quantizer_bypassed, ("structure", "relu@2.output")),
        (batch_norm_off, ("structure", "conv1")),
        (dead_quantizer, ("structure", "spare")),
    ],
    ids=lambda value: getattr(value, "__name__", None) if callable(value) else str(value),
)
def test_a_broken_file_fails_at_its_level(edit: Edit, expected: tuple[str, str | None], example: Example) -> None:
    assert expected in example.failures(edit)


def test_a_file_passes_all_levels_and_records_its_origin(eight_bits: Built, tmp_path: Path) -> None:
    ok("export", eight_bits.model, "--format", "qonnx", "-o", tmp_path / "m.qonnx.onnx")
    code, report = eight_bits.verify(tmp_path / "m.qonnx.onnx", "--samples", 64)
    assert (code, report["passed"]) == (0, True)
    assert {check["level"] for check in report["checks"]} >= {  # type: ignore[attr-defined]
        "integrity", "structure", "weights", "layers", "outputs", "task",
    }  # fmt: skip


@pytest.mark.long
def test_the_executor_of_qonnx_agrees_on_all_levels(eight_bits: Built, tmp_path: Path) -> None:
    pytest.importorskip("qonnx", reason="the extra qonnx is not installed")
    ok("export", eight_bits.model, "--format", "qonnx", "-o", tmp_path / "m.qonnx.onnx")
    code, report = eight_bits.verify(tmp_path / "m.qonnx.onnx", "--samples", 64, "--backend", "qonnx")
    assert code == 0
    figures = {check["name"]: check["figures"] for check in report["checks"]}  # type: ignore[attr-defined]
    assert figures["cost in qonnx"]["macs"] > 0
    assert figures["qonnx"]["agreement"] == 1


def test_without_qonnx_its_backend_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"csqtool\[qonnx\]"):
        backends.load_backends(["qonnx"])


def test_gates_on_onnxruntimes_kernels_do_not_apply_to_qonnx_in_a_pipeline() -> None:
    gates = Gates(min_integer_share=0.5)
    assert gates.for_file(Path("model.onnx")).min_integer_share == 0.5
    assert gates.for_file(Path("model.qonnx.onnx")).min_integer_share is None


def test_inspect_reads_the_file(eight_bits: Built, tmp_path: Path) -> None:
    ok("export", eight_bits.model, "-o", tmp_path / "m.qonnx.onnx", "--format", "qonnx")
    assert "qonnx.custom_op.general.Quant" in invoke("inspect", tmp_path / "m.qonnx.onnx").output
