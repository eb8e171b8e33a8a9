"""``verify --bisect``: the smallest set of nodes that make a file differ, and what is said where there is none."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from csqtool.cli.output import bisection_text
from csqtool.nn.finalized_net import finalized_net
from csqtool.reporting.page import report as write_page
from csqtool.verifying import bisection
from csqtool.verifying.bisection import bisect
from csqtool.verifying.expected_graph import NotCapturedError
from csqtool.verifying.findings import Bisection, VerifyReport
from csqtool.verifying.subject import Subject
from tests.support.commands import Built, invoke
from tests.support.fooling_edits import batch_trigger
from tests.support.structural import Branches, Edit, Sample, add_tensor, before, make, node, put, sample, values

pytestmark = pytest.mark.usefixtures("one_capture")


@pytest.fixture(scope="module", params=[8, None], ids=["A8", "float"])
def branches(request: pytest.FixtureRequest) -> Sample:
    torch.manual_seed(0)
    return sample(Branches(), (1, 8, 8), act_bits=request.param, weights="int8")


def bisected(made: Sample, *edits: Edit) -> Bisection:
    proto = made.proto()
    for edit in edits:
        edit(proto)
    generator = torch.Generator().manual_seed(1)
    test = [(torch.randn(1, 8, 8, generator=generator), 0) for _ in range(20)]
    source: Any = SimpleNamespace(task=SimpleNamespace(labels=True), test=test)

    def build(model: Any) -> Any:
        return finalized_net(copy.deepcopy(made.module), model)

    return bisect(
        Subject(
            content=proto.SerializeToString(), model=made.model, finalized_sha256="", net=build(made.model),
            build_net=build, source=source, samples=None, report=VerifyReport.begin("file", "model", 0, 4.0),
            tell=lambda _: None, backends=(), threads=0,
        )
    )  # fmt: skip


def conv(proto: onnx.ModelProto, layer: str) -> onnx.NodeProto:
    """Return the convolution of a layer: after its weight has been dequantized, by one node or by two."""
    name = f"{layer}.weight"
    while True:
        reads = next(n for n in proto.graph.node if name in n.input)
        if reads.op_type == "Conv":
            return reads
        name = reads.output[0]


def weight_changed(layer: str) -> Edit:
    def edit(proto: onnx.ModelProto) -> None:
        q = values(proto, f"{layer}.weight")
        put(proto, f"{layer}.weight", np.roll(q, 1, 0))

    return edit


def negated(layer: str) -> Edit:
    """Negate a convolution's result."""

    def edit(proto: onnx.ModelProto) -> None:
        place = conv(proto, layer)
        name = place.output[0]
        place.output[0] = f"{name}_honest"
        position = list(proto.graph.node).index(place)
        before(proto, proto.graph.node[position + 1], make("Neg", [f"{name}_honest"], [name]))

    return edit


def bias_added(proto: onnx.ModelProto) -> None:
    name = conv(proto, "left.0").input[2]
    put(proto, name, values(proto, name) + np.float32(0.5))


def test_an_untouched_file_agrees(branches: Sample) -> None:
    found = bisected(branches)
    assert (found.verdict, found.nodes, found.restored) == ("agrees", [], False)


def test_a_node_in_a_branch_that_can_go_is_named(branches: Sample) -> None:
    found = bisected(branches, negated("right.0"))
    (culprit,) = found.nodes
    assert (culprit.operator, culprit.action, culprit.behind) == ("Neg", "remove", [])
    assert found.restored


def test_a_wrong_bias_in_a_branch_is_named_by_its_convolution(branches: Sample) -> None:
    found = bisected(branches, bias_added)
    assert [n.name for n in found.nodes] == [conv(branches.proto(), "left.0").output[0]]
    assert (found.nodes[0].action, found.restored) == ("replace", True)


def test_two_places_in_parallel_branches_are_both_named_and_nothing_else(branches: Sample) -> None:
    found = bisected(branches, negated("left.0"), weight_changed("right.0"))
    assert [n.operator for n in found.nodes if n.action == "remove"] == ["Neg"]
    assert [n.name for n in found.nodes if n.action == "replace"] == [conv(branches.proto(), "right.0").input[1]]
    assert found.restored


def test_two_places_one_after_the_other_do_not_hide_each_other(branches: Sample) -> None:
    found = bisected(branches, negated("stem.0"), weight_changed("classifier"))
    assert {n.operator for n in found.nodes} >= {"Neg"}
    assert len(found.nodes) == 2
    assert found.restored


def test_a_branch_added_to_itself_is_named_by_the_addition(branches: Sample) -> None:
    def edit(proto: onnx.ModelProto) -> None:
        place = next(n for n in proto.graph.node if n.op_type == "Add")
        place.input[1] = place.input[0]

    (culprit,) = bisected(branches, edit).nodes
    assert (culprit.operator, culprit.action) == ("Add", "replace")


def test_an_answer_that_only_small_batches_get_is_found(branches: Sample) -> None:
    (culprit,) = bisected(branches, batch_trigger).nodes
    assert (culprit.name, culprit.operator, culprit.action) == ("output", "Where", "remove")


def test_without_a_capture_the_place_is_named(branches: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NotCapturedError("no")

    monkeypatch.setattr(bisection, "expected_graph", refuse)
    found = bisected(branches, bias_added)
    assert len(found.nodes) == 1
    assert found.restored


def test_a_file_that_does_not_run_is_said_to_be_one(branches: Sample) -> None:
    def edit(proto: onnx.ModelProto) -> None:
        node(proto, "output").input[0] = add_tensor(proto, "small", np.zeros((1, 3), np.float32))

    found = bisected(branches, edit)
    assert found.verdict == "not found"
    assert found.detail.startswith("onnxruntime cannot run the file: ")


def test_verify_bisect_prints_and_writes_it_and_the_verdict_stays(eight_bits: Built, tmp_path: Path) -> None:
    proto = onnx.load(eight_bits.onnx)
    place = next(n for n in proto.graph.node if n.op_type == "Conv")
    del place.input[2]
    onnx.save(proto, tmp_path / "broken.onnx")
    result = invoke("verify", tmp_path / "broken.onnx", "--against", eight_bits.model, "--samples", 50, "--bisect",
                    "--json", tmp_path / "report.json")  # fmt: skip
    assert result.exit_code == 1
    text = " ".join(result.stdout.split())
    assert f"replace {place.output[0]} Conv" in text
    page = write_page([tmp_path / "report.json"], tmp_path / "page.html").read_text()
    assert f'<th scope="row">{place.output[0]}</th><td>Conv</td><td>replace</td>' in page


def test_bisect_of_a_package_is_refused(eight_bits: Built) -> None:
    result = invoke("verify", eight_bits.csq, "--against", eight_bits.model, "--bisect")
    assert result.exit_code == 2
    assert "bisect looks for nodes of an ONNX file" in result.stderr


def test_many_values_behind_a_node_are_cut_short() -> None:
    culprit = bisection.BisectedNode("x", "Add", "replace", "layer", [f"v{i}" for i in range(9)])
    text = bisection_text(Bisection("found", "on some inputs", [culprit], True))
    assert "v3 and 5 more" in text
    assert "v4" not in text
