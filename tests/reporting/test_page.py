from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from csqtool.finalized_file import to_bytes
from csqtool.pipeline_file import read_pipeline
from csqtool.quantized_model import QuantizedLayer, QuantizedModel
from csqtool.reporting.page import pipeline_text, report
from csqtool.reporting.sources import Subject, gather
from csqtool.searching.config import SearchConfig
from tests.support.commands import Built, ok

SECTIONS = ["summary", "search", "accuracy", "bits", "epochs", "weights", "sizes", "parity", "latency", "gates",
            "reproduce"]  # fmt: skip
VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """Ids, texts a section, and every address; fails on tags that do not close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.texts: dict[str, str] = {}
        self.tags: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = {key: value or "" for key, value in attrs}
        if "id" in found:
            self.ids.append(found["id"])
        self.links += [found[key] for key in ("href", "src") if key in found]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        section = next((i for i in reversed(self.ids) if i in SECTIONS), "head")
        self.texts[section] = self.texts.get(section, "") + data


@pytest.fixture(scope="session")
def verification(eight_bits: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("verification") / "verify.json"
    ok(
        "verify",
        eight_bits.onnx,
        "--against",
        eight_bits.model,
        "--samples",
        64,
        "--min-agreement",
        0.9,
        "--json",
        path,
    )
    return path


@pytest.fixture(scope="session")
def full(eight_bits: Built, verification: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    bench = folder / "bench.json"
    bench.write_text(ok("bench", eight_bits.onnx, "--rounds", 2, "--json").stdout)
    output = folder / "report.html"
    sources = [eight_bits.run, eight_bits.model, eight_bits.onnx, eight_bits.csq, verification, bench]
    assert ok("report", *sources, "-o", output).stdout.strip() == str(output)
    return output


def test_every_section_is_there_with_the_figures_of_its_source(full: Path, eight_bits: Built) -> None:
    page = Page(full.read_text())
    assert [i for i in page.ids if i in SECTIONS] == SECTIONS
    found = gather([eight_bits.model, eight_bits.onnx])
    subject = found.subjects[0]
    assert subject.model is not None
    metrics = subject.model.info.metrics
    assert metrics is not None
    assert f"{metrics.finalized:.4f}" in page.texts["summary"]
    assert f"{eight_bits.onnx.stat().st_size:,} B" in page.texts["sizes"]
    for layer in subject.model.layers:
        assert layer.name in page.texts["bits"]
        assert layer.name in page.texts["weights"]
    assert "onnxruntime, optimizations on" in page.texts["parity"]
    assert "label agreement" in page.texts["gates"]
    assert "QLinearConv" in page.texts["latency"]
    assert subject.model_sha256 is not None
    assert subject.model_sha256 in page.texts["reproduce"]


def test_the_page_loads_nothing_runs_nothing_and_its_links_lead_into_it(full: Path) -> None:
    html = full.read_text()
    page = Page(html)
    assert {"script", "iframe", "img", "object"} & set(page.tags) == set()
    assert all(link == "data:," or link.removeprefix("#") in page.ids for link in page.links)
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org)", html)


def test_the_same_inputs_give_the_same_bytes(eight_bits: Built, verification: Path, tmp_path: Path) -> None:
    sources = [eight_bits.model, eight_bits.onnx, verification]
    first, second = (report(sources, tmp_path / name) for name in ("a.html", "b.html"))
    assert first.read_bytes() == second.read_bytes()


def test_a_failed_verification_stands_in_front(eight_bits: Built, verification: Path, tmp_path: Path) -> None:
    document = json.loads(verification.read_text())
    document["passed"] = document["checks"][5]["passed"] = False
    document["checks"][5] |= {"detail": "3 integers differ", "layer": "stem.0.weight"}
    (tmp_path / "v.json").write_text(json.dumps(document))
    page = Page(report([eight_bits.model, tmp_path / "v.json"], tmp_path / "r.html").read_text())
    assert "FAIL" in page.texts["head"]
    assert "stem.0.weight: 3 integers differ" in page.texts["summary"]


def test_parts_that_are_not_at_hand_are_named_with_the_way_to_get_them(verification: Path, tmp_path: Path) -> None:
    page = Page(report([verification], tmp_path / "r.html").read_text())
    assert [i for i in page.ids if i in SECTIONS] == SECTIONS
    for section, advice in (("accuracy", "finalized model"), ("epochs", "run directory"), ("latency", "csqtool bench"),
                            ("sizes", "csqtool export")):  # fmt: skip
        assert advice in page.texts[section]


def test_names_from_files_cannot_become_markup_or_escape_codes(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>\x1b[31m\u202e&\"'"
    model = QuantizedModel((QuantizedLayer(name, np.array([[1, -3], [0, 2]], np.int8), np.float32(0.5), "11"),), (), {})
    (tmp_path / "m.safetensors").write_bytes(to_bytes(model))
    html = report([tmp_path / "m.safetensors"], tmp_path / "r.html").read_text()
    assert "script" not in Page(html).tags
    assert "<script" not in html
    assert not {"\x1b", "\u202e"} & set(html)
    assert "alert(1)" in Page(html).texts["weights"]


def test_the_pipeline_shown_gives_the_settings_of_the_run_again(eight_bits: Built, tmp_path: Path) -> None:
    subject = gather([eight_bits.run]).subjects[0]
    assert subject.config is not None
    (tmp_path / "p.toml").write_text(pipeline_text(subject) or "")
    assert read_pipeline(tmp_path / "p.toml").settings == subject.config.to_json()


def test_the_pipeline_shown_can_be_read_whatever_its_texts_hold(tmp_path: Path) -> None:
    odd = 'a"b\\c\n\t\x1b\x7f\x85\xa0\u202e\U000e0001é'
    config = SearchConfig.make(
        model="m.py:net", data="digits", target_bits=3,
        model_args={odd: [odd, 1, 2.5, True, {"deep": odd}], "none": None},
        exclude=(odd,), pin={odd: 3}, act_bits=8, epochs=0.5,
    )  # fmt: skip
    shown = pipeline_text(Subject("x", config=config)) or ""
    assert all(c.isprintable() or c == "\n" for c in shown)
    (tmp_path / "p.toml").write_text(shown, encoding="utf-8")
    settings = read_pipeline(tmp_path / "p.toml").settings
    wanted = config.to_json()
    assert wanted["model_args"].pop("none", 0) is None
    assert settings == wanted


def test_the_page_draws_precision_over_epochs_and_several_runs_against_their_size(
    eight_bits: Built, other_seed: Built, tmp_path: Path
) -> None:
    html = report([eight_bits.run, other_seed.run], tmp_path / "r.html").read_text()
    epochs = html.split('id="epochs"')[1].split("</section>")[0]
    course = epochs.split('aria-label="planes a weight over the epochs"')[1].split("</svg>")[0]
    assert 'class="level"' in course
    assert ">target<" in course
    assert all(f"<title>{stage}: " in course for stage in ("search", "finetune"))
    sizes = html.split('id="accuracy"')[1].split("</svg>")[0]
    assert all(f"<title>{built.run}: " in sizes for built in (eight_bits, other_seed))
    assert "<title>float32: " in sizes


def test_a_run_without_a_model_has_no_empty_columns(eight_bits: Built, tmp_path: Path) -> None:
    heads = {}
    for source in (eight_bits.run, eight_bits.model):
        html = report([source], tmp_path / "r.html").read_text().split('id="bits"')[1].split("</table>")[0]
        heads[source] = re.findall(r"<th[^>]*>([^<]*)</th>", html.split("</thead>")[0])
        cells = html.split("<tbody>")[1].split("</tr>")[0].count("<td") + 1
        assert cells == len(heads[source])
    assert heads[eight_bits.model][-2:] == ["shape", "scale"]
    assert heads[eight_bits.run] == heads[eight_bits.model][:-2]


# --- in a real browser ---------------------------------------------------------------------------------------


def browse(page: Path, *options: str) -> tuple[str, str]:
    """Return the document as a browser holds it after loading, and what it logged."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is installed")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}",
         "--enable-logging=stderr", "--allow-file-access-from-files", "--virtual-time-budget=3000", *options,
         "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.stdout, done.stderr


# Opens the report in a frame of a phone's width, and writes down what is wider than that outside of scrolled areas.
PROBE = """<!doctype html><iframe src="report.html" style="border:0;width:%dpx;height:800px"></iframe><script>
document.querySelector("iframe").onload = event => {
  const page = event.target.contentDocument, all = [...page.querySelectorAll("*")];
  const inside = element => element.closest(".scroll, nav, pre, .skip");
  const box = element => element.getBoundingClientRect(), screen = page.documentElement;
  const wide = all.filter(e => !inside(e) && box(e).right > screen.clientWidth + 1).map(e => e.outerHTML.slice(0, 80));
  const seen = [...page.querySelectorAll("section")].filter(e => box(e).height > 40).map(e => e.id);
  const tab = [...page.querySelectorAll(".scroll, pre")].filter(e => e.tabIndex < 0).length;
  const scrolls = screen.scrollWidth - screen.clientWidth;
  document.body.dataset.found = JSON.stringify({wide, seen, tab, scrolls});
};
</script>"""


@pytest.mark.parametrize("width", [360, 1200])
def test_a_browser_shows_every_section_within_its_width_and_logs_no_error(
    full: Path, tmp_path: Path, width: int
) -> None:
    shutil.copy(full, tmp_path / "report.html")
    (tmp_path / "probe.html").write_text(PROBE % width)
    dom, log = browse(tmp_path / "probe.html", f"--window-size={width + 100},900")
    match = re.search(r'data-found="(.*?)"', dom)
    assert match, log[-2000:]
    found = json.loads(match[1].replace("&quot;", '"').replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert found == {"wide": [], "seen": SECTIONS, "tab": 0, "scrolls": 0}
    assert "CONSOLE" not in log


def test_the_page_follows_the_light_and_the_dark_theme(full: Path, tmp_path: Path) -> None:
    shutil.copy(full, tmp_path / "report.html")
    probe = tmp_path / "probe.html"
    probe.write_text("""<!doctype html><iframe src="report.html"></iframe><script>
document.querySelector("iframe").onload = event => {
  const style = getComputedStyle(event.target.contentDocument.body);
  document.body.dataset.found = style.color + " on " + style.backgroundColor;
};</script>""")
    found = {}
    for theme, options in {"light": ["--blink-settings=preferredColorScheme=1"], "dark": ["--force-dark-mode"]}.items():
        match = re.search(r'data-found="(.*?)"', browse(probe, *options)[0])
        assert match
        found[theme] = match[1]
    assert found == {
        "light": "rgb(28, 32, 36) on rgb(251, 251, 250)",
        "dark": "rgb(232, 234, 237) on rgb(20, 23, 26)",
    }
