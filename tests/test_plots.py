from __future__ import annotations

import importlib.util
from pathlib import Path
from xml.etree import ElementTree

import pytest

from csqtool.searching.runs import draw
from tests.support.commands import Built, invoke, ok

needs_matplotlib = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is an extra")


@needs_matplotlib
def test_plots_of_a_run_name_its_layers_and_its_stages(eight_bits: Built) -> None:
    ok("plot", eight_bits.run)
    pictures = {path.name: path.read_text() for path in (eight_bits.run / "plots").iterdir()}
    assert set(pictures) == {"precision.svg", "layers.svg"}
    for picture in pictures.values():
        assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert "<!-- block.conv1.0 -->" in pictures["layers.svg"]
    assert all(f"<!-- {word} -->" in pictures["precision.svg"] for word in ("search", "finetune", "target"))


@needs_matplotlib
def test_runs_are_drawn_against_each_other_by_method(eight_bits: Built, other_seed: Built, tmp_path: Path) -> None:
    ok("plot", eight_bits.run, other_seed.run, "-o", tmp_path / "all.svg")
    assert "<!-- csq -->" in (tmp_path / "all.svg").read_text()
    assert invoke("plot", eight_bits.run, "-o", tmp_path / "all.gif").exit_code == 2


def test_a_search_ends_without_plots_where_matplotlib_is_missing(
    eight_bits: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("csqtool.plots.available", lambda: False)
    said: list[str] = []
    draw(eight_bits.run, said.append)
    assert said == ["no plots: they need matplotlib, pip install 'csqtool[plots]'"]
    assert "pip install" in invoke("plot", eight_bits.run).stderr
