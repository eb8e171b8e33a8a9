"""Every code block of README and docs runs here, in another test, or is marked with the reason why not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.commands import ROOT
from tests.support.pages import Block, blocks, pages, run_page

# Pages whose Python is run by tests of their own.
ELSEWHERE = {"README.md": "tests/test_public_api.py", "docs/architecture.md": "tests/test_architecture.py"}
LANGUAGES = {"c", "python", "console", "toml", "yaml", "text"}
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
RUN = [page for page in pages() if str(page.relative_to(ROOT)) not in ELSEWHERE]


def runnable(page: Path) -> list[Block]:
    found = blocks(page.read_text(encoding="utf-8"))
    return [block for block in found if block.language in {"python", "console"} and block.reason_not_to_run is None]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_says_what_it_is_and_why_it_is_not_run(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = blocks(text)
    assert text.count("\n```") == 2 * len(found)  # none escaped the pattern
    assert {block.language for block in found} <= LANGUAGES
    assert all(block.reason_not_to_run != "" for block in found)
    assert all("csqtool " not in block.text for block in found if block.language == "text" and "$ " in block.text)


@pytest.mark.parametrize(("page", "test"), ELSEWHERE.items())
def test_pages_that_are_run_elsewhere_have_a_test_that_names_them(page: str, test: str) -> None:
    assert Path(page).stem in (ROOT / test).read_text(encoding="utf-8")
    assert all(block.language == "python" for block in runnable(ROOT / page))


@pytest.mark.long
@pytest.mark.parametrize("page", [page for page in RUN if runnable(page)], ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_as_it_is_written(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    run_page(blocks(page.read_text(encoding="utf-8")))
    for name in {name for name in set(sys.modules) - before if (tmp_path / f"{name}.py").exists()}:
        del sys.modules[name]


def test_every_tutorial_has_code_that_is_run() -> None:
    assert len(TUTORIALS) == 8
    assert all(runnable(page) for page in TUTORIALS)


def test_a_block_that_fails_or_exits_with_another_code_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZeroDivisionError):
        run_page(blocks("```python\n1 / 0\n```\n"))
    with pytest.raises(AssertionError, match="no verb"):
        run_page(blocks("```console\n$ csqtool sarch\n```\n"))
    run_page(blocks("<!-- exits with 2 -->\n```console\n$ csqtool sarch\n```\n"))
    run_page(blocks("<!-- not run: it divides by zero -->\n```python\n1 / 0\n```\n"))
