"""Every relative link of the Markdown leads to a file, and every anchor to a heading."""

from __future__ import annotations

import posixpath
import re

import pytest

from docs.hooks import OUTSIDE, relinked
from docs.reference import pages as generated
from tests.support.commands import ROOT

MARKDOWN = [
    *sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "benchmarks").rglob("*.md")),
]  # fmt: skip
GENERATED = {f"docs/{name}": text for name, text in generated().items()}


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", without_code(text))


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and mkdocs make them."""
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    found = set()
    for heading in re.findall(r"^#+ (.*)$", plain, flags=re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.add(re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", words).strip()))
    return found


def problem(source: str, address: str) -> str | None:
    """Return what is wrong with a link of a file; both from the repository's root."""
    if re.match(r"[a-z]+:", address):
        return None
    path, _, anchor = address.partition("#")
    name = posixpath.normpath(posixpath.join(posixpath.dirname(source), path)) if path else source
    target = ROOT / name
    if name not in GENERATED and not target.exists():
        return f"{source}: no {name}"
    text = GENERATED.get(name) or (target.read_text(encoding="utf-8") if name.endswith(".md") else "")
    return f"{source}: no heading {anchor} in {name}" if anchor and anchor not in anchors(text) else None


@pytest.mark.parametrize("source", [str(path.relative_to(ROOT)) for path in MARKDOWN])
def test_links_lead_somewhere(source: str) -> None:
    text = (ROOT / source).read_text(encoding="utf-8")
    assert [found for address in links(text) if (found := problem(source, address))] == []


@pytest.mark.parametrize("source", GENERATED)
def test_links_of_generated_pages_lead_somewhere(source: str) -> None:
    assert [found for address in links(GENERATED[source]) if (found := problem(source, address))] == []


def test_a_missing_file_and_a_missing_heading_are_found() -> None:
    assert problem("README.md", "docs/no-such.md") is not None
    assert problem("README.md", "docs/search.md#no-such") is not None
    assert problem("README.md", "docs/search.md#budget") is None
    assert problem("docs/search.md", "../README.md") is None


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    listed = set(re.findall(r": ([\w/.-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    written = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert listed - OUTSIDE == written | generated().keys()


def test_links_in_the_site_lead_to_the_places_in_the_site() -> None:
    assert "benchmarks/results/onnx.md" in OUTSIDE
    text = "[a](../benchmarks/results/onnx.md#x), [b](../csqtool/cli) and [c](search.md)"
    assert relinked(text, "docs/onnx.md") == "[a](benchmarks/results/onnx.md#x), b and [c](search.md)"
    assert relinked("[a](../concepts.md)", "docs/tutorials/x.md") == "[a](../concepts.md)"
    assert relinked("[a](accuracy.svg)", "benchmarks/results/accuracy.md") == "[a](accuracy.svg)"
