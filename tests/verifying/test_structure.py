"""Ways to fool a verifier that only samples: the structure level fails on every one, and names the place."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from csqtool.csq import pack
from csqtool.errors import FormatError
from csqtool.verifying.csq_decoder import decode
from csqtool.verifying.csq_graph import graph_verdict
from tests.support.fooling_edits import DATAFLOW, EDITS, LEFT_OVER
from tests.support.structural import Branches, Edit, Sample, sample

pytestmark = pytest.mark.usefixtures("one_capture")


@pytest.fixture(scope="module")
def branches() -> Sample:
    torch.manual_seed(0)
    return sample(Branches(), (1, 8, 8), weights="int8")


def test_the_untouched_export_is_explained(branches: Sample) -> None:
    assert [(check.name, check.passed) for check in branches.structure()] == [(LEFT_OVER, True), (DATAFLOW, True)]


@pytest.mark.parametrize("name", EDITS)
def test_an_export_made_to_fool_fails_at_its_place(branches: Sample, name: str) -> None:
    edit, check, place = EDITS[name]
    assert place in branches.failures(edit).get(check, set())


def in_a_package(made: Sample, edit: Edit) -> Sample:
    """Return what the verifier reads from a `.csq` package that holds the edited file."""
    proto = made.proto()
    edit(proto)
    content = pack(made.model, onnx=proto.SerializeToString())
    tensors, _, recorded = decode(content, where="package", damaged=[])
    verdict = graph_verdict(content, tensors, recorded, where="package")
    assert verdict is not None
    assert verdict[0], verdict[1]
    return dataclasses.replace(made, content=verdict[2])


QUICK = ("one branch used twice", "a function in the place of a standard operator")
# Not even packed: what no reader of ONNX files takes.
REFUSED = (
    "an endless Loop",
    "beyond the pixel sums of the test set",
    "branches of equal shape swapped",
    "a sparse tensor",
)


@pytest.mark.parametrize("name", [
    pytest.param(n, marks=[pytest.mark.long] * (n not in QUICK)) for n in EDITS if n not in REFUSED
])  # fmt: skip
def test_the_same_file_inside_of_a_package_fails_at_its_place(branches: Sample, name: str) -> None:
    edit, check, place = EDITS[name]
    assert place in in_a_package(branches, edit).failures(lambda _: None).get(check, set())


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_no_reader_takes_is_not_packed(branches: Sample, name: str) -> None:
    with pytest.raises(FormatError, match="is not an ONNX file that can be used"):
        in_a_package(branches, EDITS[name][0])
