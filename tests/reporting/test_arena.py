"""The picture of the arena: it comes from the exported folder, and what is alive at a time does not overlap."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path

import pytest

from csqtool.errors import FormatError
from csqtool.exporting import export
from csqtool.reporting import report
from csqtool.reporting.sources import gather
from tests.support.commands import Built

pytestmark = pytest.mark.usefixtures("one_capture")
BOX = re.compile(r'class="box" x="([\d.]+)" width="([\d.]+)" y="([\d.]+)" height="([\d.]+)"')


@pytest.mark.long
def test_the_plan_is_drawn_beside_its_model_and_no_two_blocks_overlap(eight_bits: Built, tmp_path: Path) -> None:
    export(eight_bits.model, tmp_path / "c", format="c")
    plan = json.loads((tmp_path / "c" / "arena.json").read_text())
    (subject,) = gather([eight_bits.model, tmp_path / "c"]).subjects
    assert list(subject.arenas) == [str(tmp_path / "c")]
    page = report([eight_bits.model, tmp_path / "c"], tmp_path / "r.html").read_text()
    boxes = [tuple(map(float, found)) for found in BOX.findall(page)]
    assert len(boxes) == len(plan["blocks"]) > 5
    for (x, w, y, h), (a, b, c, d) in combinations(boxes, 2):
        assert x + w <= a + 0.02 or a + b <= x + 0.02 or y + h <= c + 0.02 or c + d <= y + 0.02
    assert f"an arena of {plan['arena_bytes']:,} B" in page
    assert "classifier.weight" in page


def test_a_damaged_plan_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "arena.json").write_text('{"finalized_sha256": "", "arena_bytes": -1}')
    with pytest.raises(FormatError, match=r"arena\.json.*arena_bytes"):
        gather([tmp_path])
