from __future__ import annotations

import os
import pickle
import resource
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from csqtool.data import python_pickle
from csqtool.data.python_pickle import MAX_CONTAINERS, MAX_OPERATIONS, read_dict
from csqtool.errors import DataError


class _Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


SYSTEM = b"cos\nsystem\n"
TOUCH = b"X\x0c\x00\x00\x00touch harmed"
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
NDARRAY = b"cnumpy\nndarray\n"
DTYPE = b"cnumpy\ndtype\n"
EMPTY_ARRAY = RECONSTRUCT + NDARRAY + b"K\x00\x85U\x01b\x87R"
BYTES = DTYPE + b"U\x02u1K\x00K\x01\x87R"


def in_dict(value: bytes) -> bytes:
    return b"\x80\x02}U\x04data" + value + b"s."


HOSTILE = {
    "GLOBAL and REDUCE": in_dict(SYSTEM + TOUCH + b"\x85R"),
    "STACK_GLOBAL": b"\x80\x04}\x8c\x04data\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch harmed\x85Rs.",
    "STACK_GLOBAL of posix": b"\x80\x04}\x8c\x04data\x8c\x05posix\x8c\x06system\x93\x8c\x0ctouch harmed\x85Rs.",
    "INST": in_dict(b"(" + TOUCH + b"ios\nsystem\n"),
    "OBJ": in_dict(b"(" + SYSTEM + TOUCH + b"o"),
    "NEWOBJ": in_dict(SYSTEM + TOUCH + b"\x85\x81"),
    "NEWOBJ_EX": b"\x80\x04}\x8c\x04data" + SYSTEM + TOUCH + b"\x85}\x92s.",
    "BUILD on a function": in_dict(RECONSTRUCT + b"}U\x08__code__NsbN0"),
    "BUILD on a class with attributes to set": in_dict(NDARRAY + b"N}U\x0c__setstate__Ns\x86b"),
    "EXT1": in_dict(b"\x82\x01"),
    "PERSID": in_dict(b"Pid\n"),
    "BINPERSID": in_dict(b"U\x02idQ"),
    "a dotted name": in_dict(b"cnumpy\nndarray.__init__.__globals__\n"),
    "eval": in_dict(b"cbuiltins\neval\nU\x031+1\x85R"),
    "numpy's own loader": in_dict(b"cnumpy\nload\nU\x01x\x85R"),
    "a dtype of objects": in_dict(DTYPE + b"U\x02O8K\x00K\x01\x87R"),
    "a dtype of records": in_dict(DTYPE + b"U\x0fu1,u8,(9999,)u8K\x00K\x01\x87R"),
    "a dtype without arguments": in_dict(DTYPE + b")R"),
    "a huge array to reconstruct": in_dict(RECONSTRUCT + NDARRAY + b"J\xff\xff\xff\x7f\x85U\x01b\x87R"),
    "another kind of array": in_dict(RECONSTRUCT + DTYPE + b"K\x00\x85U\x01b\x87R"),
    "the array called as one": in_dict(NDARRAY + b"J\xff\xff\xff\x7f\x85\x85R"),
    "objects in an array": in_dict(EMPTY_ARRAY + b"(K\x01K\x01\x85" + DTYPE + b"U\x02O8K\x00K\x01\x87R\x89](NetbN0"),
    "a list for bytes": in_dict(EMPTY_ARRAY + b"(K\x01K\x01\x85" + BYTES + b"\x89](K\x00etb"),
    "a shape beyond the bytes": in_dict(
        EMPTY_ARRAY + b"(K\x01J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86" + BYTES + b"\x89U\x01xtb"
    ),
    "a negative shape": in_dict(
        EMPTY_ARRAY + b"(K\x01J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86" + BYTES + b"\x89U\x01xtb"
    ),
    "an array built a thousand times": in_dict(EMPTY_ARRAY + b"(K\x01K\x00\x85" + BYTES + b"\x89U\x00t" + b"b" * 1000),
    "a memo bomb": b"\x80\x02}r\xff\xff\xff\x7f.",
    "a memo bomb in text": b"\x80\x02}p2147483647\n.",
    "nested tuples": in_dict(b"N" + b"\x85" * 1_000_000),
    "nested tuples as a key": b"\x80\x02}N" + b"\x85" * 1_000_000 + b"Ns.",
    "nested lists": in_dict(b"](" * 500_000 + b"e" * 500_000),
    "nested lists, one opcode each": in_dict(b"]" * 500_000 + b"a" * 499_999),
    "nested dicts": in_dict(b"}N" * 500_000 + b"s" * 500_000),
    "many empty lists": in_dict(b"](" + b"]" * 40_000_000 + b"e"),
    "many numbers": in_dict(b"](" + b"K\x00" * (MAX_OPERATIONS + 1) + b"e"),
    "a long integer": in_dict(b"\x8b" + struct.pack("<i", 1 << 20) + b"\x01" * (1 << 20)),
    "a string longer than the file": in_dict(b"T" + struct.pack("<i", 2**31 - 1)),
    "a string of negative length": in_dict(b"T" + struct.pack("<i", -1)),
    "a frame longer than the file": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}.",
    "protocol 5": b"\x80\x05}.",
    "protocol 0": b"(dS'data'\nNs.",
    "marks alone": b"\x80\x02" + b"(" * 100_000 + b".",
    "a key that is no text": b"\x80\x02}K\x01K\x02s.",
    "a list": b"\x80\x02].",
    "nothing": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused_in_one_line_and_runs_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError) as caught:
        read_dict(HOSTILE[name], where="batch")
    assert str(caught.value).startswith("batch")
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024  # KiB


@pytest.mark.parametrize("name", [name for name, content in HOSTILE.items() if b"harmed" in content])
def test_names_are_refused_also_where_the_look_at_the_operations_lets_them_pass(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(python_pickle, "_check_operations", lambda content: None)
    with pytest.raises(DataError, match="refused, it holds the name"):
        read_dict(HOSTILE[name], where="batch")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("function", [os.system, os.popen, eval, exec, __import__, open])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_function_but_numpy_s_own_is_called_at_any_protocol(
    function: Any, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError):
        read_dict(pickle.dumps({"data": _Calls(function, "touch harmed")}, protocol=protocol), where="batch")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_copy_that_python_3_pickled_is_read(protocol: int, old: bool, order: Any) -> None:
    pixels = np.asarray(np.arange(24, dtype=np.uint8).reshape(4, 6), order=order)
    content = pickle.dumps({"data": pixels, "labels": [1, 300, 70_000, 0], "batch_label": "ü"}, protocol=protocol)
    if old:  # numpy 1 called the module of its function numpy.core
        assert b"numpy._core.multiarray" in content
        content = content.replace(b"\x16numpy._core.multiarray", b"\x15numpy.core.multiarray")
        content = content.replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray")
        if protocol == 4:  # the frame is one byte shorter
            content = content[:3] + struct.pack("<Q", struct.unpack("<Q", content[3:11])[0] - 1) + content[11:]
    found = read_dict(content, where="batch")
    assert np.array_equal(found["data"], pixels)
    assert found["labels"] == [1, 300, 70_000, 0]
    assert found["batch_label"] == "ü"


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.bool_, object])
def test_an_array_of_something_else_than_bytes_is_refused(dtype: Any) -> None:
    with pytest.raises(DataError, match="refused"):
        read_dict(pickle.dumps({"data": np.zeros(3, dtype)}, protocol=4), where="batch")


def test_as_many_operations_as_the_largest_real_file_are_read() -> None:
    names = [f"picture_s_{i:06d}.png" for i in range(50_000)]
    labels = [i % 100 for i in range(50_000)]
    content = {"filenames": names, "fine_labels": labels, "coarse_labels": labels, "data": np.zeros((2, 3), np.uint8)}
    assert read_dict(pickle.dumps(content, protocol=4), where="train")["filenames"] == names
    assert MAX_CONTAINERS < 1000  # Python's hash of a tuple recurses in C
