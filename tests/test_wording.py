"""Plain English: idioms that a newcomer cannot read do not come back into what users and newcomers read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import ROOT

# The idiom, and what to write instead.
IDIOMS = {
    r"\bone behind (?:the other|another)\b": "consecutively, one after the other",
    r"\bstands? (?:twice|once)\b": "is repeated, is there once",
    r"\bstands? (?:directly |right )?(?:before|behind|beside|under|in)\b": "is",
    r"\bas (?:it|they) stands?\b|\bwhere it stands\b": "unchanged, at present",
    r"\bbroken (?:numbers?|epochs?|bits?)\b|\bmay be broken\b": "a fraction, fractional",
    r"\bbehind (?:it|them|this|that|the|every|each|a|an|--\w+)\b(?! scenes)": "after, or: of",
    r"\b(?:and|or) the like\b": "and so on",
    r"\bat hand\b": "given, present",
    r"\b(?-i:in words)\b": "as text",
    r"\bworth as\b|\bis worth (?:one|most|more|less)\b": "the benefit of",
    r"\bmakes? of (?:it|them|the|PyTorch|each|seven|an?)\b": "does with, computes from",
    r"\bgives? back\b|\bgiven back\b": "return, restore",
    r"\bno number any more\b|\bis no number\b": "is not finite, is not a number",
    r"\btrains? (?:\w+ )*on, |\btrained on,? (?:into|for|with)\b": "finetune, train further",
    r"\bphases?\b": "stage",
    r"\bWhat (?:it|the bars) says?\b": "What the results say",
}
READ = ("*.md", "csqtool/**/*.py", "exporters/**/*.py", "sample_models/**/*.py", "sample_models/**/*.toml",
        "csqtool/starter/*", "docs/**/*.md", "docs/*.py", "docs/*.json", "benchmarks/**/*.py", "benchmarks/**/*.md",
        "csqtool/reporting/*.html")  # fmt: skip
EXCEPT = {"CHANGELOG.md"}


def files() -> list[Path]:
    found = {path for pattern in READ for path in ROOT.glob(pattern) if path.is_file()}
    return sorted(path for path in found if path.name not in EXCEPT)


def idioms_in(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the idiom as it is written, and what to write instead; an idiom may run over a line's end."""
    for pattern, instead in IDIOMS.items():
        for match in re.finditer(pattern.replace(" ", r"(?:[ ]|\s*\n\s*(?:# )?)"), text, flags=re.IGNORECASE):
            yield text.count("\n", 0, match.start()) + 1, " ".join(match[0].split()), instead


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_idiom_is_used(path: Path) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {idiom!r}; write: {instead}"
        for line, idiom, instead in idioms_in(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("computed one behind the other", 1),
        ("The key\nstands twice.", 2),
        ("a\nb\n# weights are computed one\n# behind the other", 3),
        ("evaluated behind every epoch", 1),
        ("the loss is no number any more", 1),
        ("its length, may be broken", 1),
    ],
)
def test_an_idiom_is_found_with_its_line(text: str, line: int) -> None:
    assert line in {number for number, _, _ in idioms_in(text)}


def test_plain_sentences_are_not_rejected() -> None:
    text = "It understands twice as much. Values are given. A broken file is an error. Trained on the first samples."
    assert list(idioms_in(text)) == []
