from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csqtool.documents import Count, convert, decode, plain, read
from csqtool.errors import ConfigError, FormatError, InputError


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    size: Count
    colour: Literal["red", "green"] = "red"


class Whole(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    parts: list[Part] = []
    by_key: dict[str, float] = {}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
parts = st.builds(Part, st.integers(0, 2**63 - 1), st.sampled_from(["red", "green"]))
numbers = st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False))
wholes = st.builds(Whole, st.text(), st.lists(parts), numbers)


@given(wholes)
def test_a_record_is_read_back_from_its_json(whole: Whole) -> None:
    assert decode(Whole, json.dumps(plain(whole)), where="x") == whole
    assert convert(Whole, plain(whole), where="x") == whole


def refusal(read: Callable[[], object]) -> str | None:
    """Return the message of a document that is refused; None where it is a record."""
    try:
        assert isinstance(read(), Whole)
    except FormatError as error:
        return str(error)
    return None


@given(json_values)
def test_any_document_is_a_record_or_refused_with_its_name(document: Any) -> None:
    said = refusal(lambda: convert(Whole, document, where="x.toml"))
    assert (said or "x.toml: ").startswith("x.toml: ")


@given(st.binary())
def test_any_bytes_are_a_record_or_refused_with_their_name(content: bytes) -> None:
    assert (refusal(lambda: decode(Whole, content, where="x.json")) or "x.json").startswith("x.json")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "x: name is missing"),
        ({"name": 1}, "x: name: expected str, got int"),
        ({"nam": "a"}, "x: unknown key 'nam'; did you mean 'name'?"),
        ({"name": "a", "zzz": 1}, "x: unknown key 'zzz'; known: by_key, name, parts"),
        ({"name": "a", "parts": [{"size": 1}, {"siz": 2}]}, "x: parts[1]: unknown key 'siz'; did you mean 'size'?"),
        ({"name": "a", "parts": [{"size": -1}]}, "x: parts[0].size: expected int >= 0"),
        ({"name": "a", "parts": [{"size": 1, "colour": "rad"}]},
         "x: parts[0].colour: unknown value 'rad'; did you mean 'red'?"),
        ({"name": "a", "by_key": {"k": "v"}}, "x: by_key[...]: expected float, got str"),
        ([], "x: expected object, got array"),
    ],
)  # fmt: skip
def test_a_message_names_the_place_and_the_nearest_name(document: Any, message: str) -> None:
    assert refusal(lambda: convert(Whole, document, where="x")) == message
    assert refusal(lambda: decode(Whole, json.dumps(document), where="x")) == message


def test_the_caller_says_which_error_it_is_and_what_the_file_should_be() -> None:
    with pytest.raises(ConfigError, match=r"^x: name is missing$"):
        convert(Whole, {}, where="x", error=ConfigError)
    with pytest.raises(FormatError, match=r"^x is not a whole: name is missing$"):
        decode(Whole, b"{}", where="x", what="a whole")


def test_a_file_that_is_missing_or_nested_too_deep_is_no_bug(tmp_path: Any) -> None:
    with pytest.raises(InputError, match="no such file"):
        read(Whole, tmp_path / "x")
    (tmp_path / "x").write_bytes(b'{"zzz": ' + b"[" * 100_000)
    with pytest.raises(FormatError, match=r"not valid JSON|unknown key"):
        read(Whole, tmp_path / "x")
