"""Whatever happens in the sandbox is one error here, and the next call works."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from csqtool.errors import ConfigError
from csqtool.sandbox import Limits, Sandbox, SandboxError

POSIX = pytest.mark.skipif(os.name != "posix", reason="signals and limits are POSIX's")


@pytest.fixture
def box() -> Iterator[Sandbox]:
    sandbox = Sandbox(Limits(20, 2 * 10**9))
    yield sandbox
    sandbox.close()


@pytest.mark.parametrize(
    ("function", "arguments", "said"),
    [
        pytest.param("os:abort", {}, "crashed with SIGABRT", marks=POSIX),
        pytest.param("faulthandler:_sigsegv", {}, "crashed with SIGSEGV", marks=POSIX),
        ("os:_exit", {"status": 0}, "its process ended with 0"),
        ("os:listdir", {"path": "missing"}, "FileNotFoundError"),
        ("threading:Event", {}, "TypeError"),
    ],
)
def test_a_crash_is_an_error_and_the_next_call_gets_a_new_process(
    box: Sandbox, function: str, arguments: dict[str, object], said: str
) -> None:
    with pytest.raises(SandboxError, match=said) as caught:
        box.call(function, **arguments)
    assert "\n" not in str(caught.value)
    assert box.call("os:getcwd") != os.getcwd()


def test_an_endless_call_is_ended(box: Sandbox) -> None:
    with pytest.raises(SandboxError, match="longer than the 1 seconds"):
        box.call("subprocess:check_output", 1, args=[sys.executable, "-c", "while True: pass"])


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone heeds the limit exactly")
def test_memory_is_limited(box: Sandbox) -> None:
    with pytest.raises(SandboxError, match=r"more than the 2\.0 GB of memory"):
        box.call("numpy:ones", shape=[10**9])


def test_arrays_of_every_type_come_back_as_they_were(box: Sandbox) -> None:
    import ml_dtypes

    for array in (np.arange(6, dtype=np.int16).reshape(2, 3), np.zeros((0, 4)), np.float32([[1.5]]), np.array(True),
                  np.array([1, -2], ml_dtypes.int4)):  # fmt: skip
        found = box.call("numpy:copy", a=array)
        assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_an_array_of_texts_is_an_error(box: Sandbox) -> None:
    with pytest.raises(SandboxError, match="an array of objects or texts cannot be sent"):
        box.call("numpy:array", object=["a", "b"])


def test_limits_are_set_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSQTOOL_TIME_LIMIT", "7")
    monkeypatch.setenv("CSQTOOL_MEMORY_LIMIT", "3")
    assert Limits.default() == Limits(7, 3 * 10**9)
    monkeypatch.setenv("CSQTOOL_TIME_LIMIT", "soon")
    with pytest.raises(ConfigError, match="CSQTOOL_TIME_LIMIT must be a number"):
        Limits.default()
