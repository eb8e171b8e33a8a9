"""What notebooks show of results, and the notebook of the examples."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

import csqtool
from csqtool.finalized_file import read_finalized
from csqtool.searching.records import SchemeEntry, Summary
from csqtool.searching.result import SearchResult
from csqtool.verifying import VerifyReport
from tests.support.commands import ROOT, Built

HOSTILE = '<script>alert("1")</script>&'


class Page(HTMLParser):
    """Collects elements and texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.elements.append(tag)
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def shown(value: object) -> Page:
    page = Page(value._repr_html_())  # type: ignore[attr-defined]
    assert page.open == []
    return page


def result(name: str) -> SearchResult:
    summary = Summary(
        method="csq", target_bits=3, target_size=None, budget_unit="elements", budget=3, cost=2.5,
        average_precision=2.5, average_bit_width=3.5, act_bits=8, metric_name="accuracy", metric_float=0.75,
        metric_soft=0.7, metric_hard=0.7, metric=0.7125, seconds=1.0,
    )  # fmt: skip
    return SearchResult(summary, (SchemeEntry(name, 3, "00000111", 4, 99),), (), None, session=None)  # type: ignore[arg-type]


def test_a_search_shows_its_metrics_averages_and_layers() -> None:
    texts = shown(result("conv.weight")).texts
    assert "accuracy 0.7125 (float 0.7500)" in texts
    assert "2.500 planes and 3.500 bits a weight on average" in texts
    assert texts[-5:] == ["conv.weight", "3", "00000111", "4", "99"]


def test_a_quantized_model_shows_a_row_a_layer(eight_bits: Built) -> None:
    model = read_finalized(eight_bits.model)
    page = shown(model)
    assert page.elements.count("tr") == len(model.layers) + 1
    assert {layer.name for layer in model.layers} <= set(page.texts)


def test_a_report_shows_its_verdict_and_every_check() -> None:
    report = VerifyReport.begin("m.onnx", "m.safetensors", 1234, 3.0)
    report.add("weights", "integers", True, "equal")
    report.add("gates", "file size", False, "1234, at most 1000")
    page = shown(report)
    assert page.texts[0] == "FAIL"
    assert page.elements.count("tr") == 3
    assert page.texts[-4:] == ["FAIL", "gates", "file size", "1234, at most 1000"]


def test_names_from_files_are_text_and_no_markup(eight_bits: Built) -> None:
    model = read_finalized(eight_bits.model)
    layer = dataclasses.replace(model.layers[0], name=HOSTILE)
    report = VerifyReport.begin(HOSTILE, HOSTILE, 1, 3.0)
    report.add("weights", HOSTILE, False, HOSTILE)
    hostile = [dataclasses.replace(model, layers=(layer, *model.layers[1:])), result(HOSTILE), report]
    hostile.append(
        dataclasses.replace(result("x"), summary=msgspec.structs.replace(result("x").summary, method=HOSTILE))
    )
    for value in hostile:
        page = shown(value)
        assert "script" not in page.elements
        assert any(HOSTILE in text for text in page.texts)


@pytest.mark.long
def test_the_notebook_of_the_examples_runs(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    tables = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert any("Search with csq" in html for html in tables)
    assert any("<strong>PASS</strong>" in html for html in tables)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert csqtool.load(tmp_path / "model.safetensors").elements > 0
