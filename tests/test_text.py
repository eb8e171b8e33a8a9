from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csqtool.errors import ConfigError
from csqtool.text import duration, parse_size, printable, size, table


@given(st.text())
def test_no_control_character_reaches_a_terminal(text: str) -> None:
    shown = printable(text)
    assert all(unicodedata.category(c)[0] != "C" and c not in "\u2028\u2029" for c in shown)
    assert printable(shown) == shown
    if text.isprintable():
        assert shown == text


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (5399, "90 min"),
        (5400, "1.5 h"),
    ],
)
def test_times_are_in_seconds_minutes_or_hours(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("60KB", 60_000), ("60KiB", 61_440), ("60 kb", 60_000), (" 1.5MB ", 1_500_000), ("2MiB", 2 << 20), ("1GB", 10**9),
     ("1GiB", 1 << 30), ("7B", 7), ("7", 7), (7, 7), ("0.5KiB", 512)],
)  # fmt: skip
def test_sizes_are_decimal_or_binary_as_their_unit_says(text: str | int, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "KB", "-1KB", "1e3", "1 000", "5TB", "5 K B", "1.KB", "nan", "①KB x"])
def test_what_is_no_size_is_refused_with_the_units(text: str) -> None:
    with pytest.raises(ConfigError, match="is no size; write bytes, or a number with KB, KiB"):
        parse_size(text)


@given(st.integers(0, 10**15))
def test_a_shown_size_is_read_back(size_bytes: int) -> None:
    assert parse_size(size(size_bytes).replace(",", "")) == size_bytes


def test_numbers_are_aligned_at_their_end_and_texts_at_their_beginning() -> None:
    assert table(("layer", "bits"), [("a", 3), ("long", "12")]).splitlines() == [
        "layer  bits",
        "─────  ────",
        "a         3",
        "long     12",
    ]


def test_a_table_without_rows_is_its_header() -> None:
    assert table(("a", "bc"), []).splitlines() == ["a  bc", "─  ──"]


def test_a_name_in_a_table_cannot_break_its_line() -> None:
    assert table(("name",), [("a\nb\x1b",)]).splitlines()[2] == "a\\nb\\x1b"
