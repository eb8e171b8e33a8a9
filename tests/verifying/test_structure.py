"""Ways to fool a verifier that only samples: the structure level fails on every one, and names the place."""

from __future__ import annotations

import pytest
import torch

from tests.support.fooling_edits import DATAFLOW, EDITS, LEFT_OVER
from tests.support.structural import Branches, Sample, sample

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
