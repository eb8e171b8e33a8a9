from __future__ import annotations

import io
import os
import random
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from csqtool.data import load_data
from csqtool.errors import DataError
from tests.support.commands import DIGITS, invoke

GOOD: dict[str, Any] = {
    "x_train": np.linspace(-1, 1, 6 * 4, dtype=np.float32).reshape(6, 4),
    "y_train": np.array([0, 1, 2, 0, 1, 2]),
    "x_test": np.linspace(0, 1, 3 * 4, dtype=np.float32).reshape(3, 4),
    "y_test": np.array([2, 1, 0]),
}


def saved(*, compressed: bool = False, **changes: Any) -> bytes:
    content = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(content, **{**GOOD, **changes})
    return content.getvalue()


def zipped(**members: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return content.getvalue()


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + data


def members(**changes: bytes) -> dict[str, bytes]:
    found = {}
    for name, array in GOOD.items():
        content = io.BytesIO()
        np.save(content, array)
        found[name] = content.getvalue()
    return {**found, **changes}


def error_of(content: bytes, path: Path, task: str | None = None) -> str:
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_data(f"npz:{path}", task=task)
    text = str(caught.value)
    assert path.name in text
    assert len(text.splitlines()) == 1
    return text


@pytest.mark.parametrize("compressed", [False, True])
def test_mutations_of_a_file_are_read_or_refused_in_one_line(tmp_path: Path, compressed: bool) -> None:
    path, whole = tmp_path / "data.npz", saved(compressed=compressed)
    draws = random.Random(0)
    refused: list[str] = []
    for round_number in range(300):
        content = bytearray(whole)
        kind = round_number % 4
        if kind == 0:
            del content[draws.randrange(len(content)) :]
        elif kind == 1:
            start = draws.randrange(len(content))
            del content[start : start + draws.randint(1, 40)]
        else:
            for _ in range(1 if kind == 2 else draws.randint(2, 20)):
                content[draws.randrange(len(content))] = draws.randrange(256)
        path.write_bytes(content)
        try:
            load_data(f"npz:{path}").problem()
        except DataError as error:
            refused.append(str(error))
    assert len(refused) > 200
    assert all(str(path) in text and "\n" not in text for text in refused)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "File is not a zip file"),
        (b"PK\x03\x04" + b"\0" * 50, "File is not a zip file"),
        (saved()[:-30], "not a zip file"),
        (zipped(**members(x_train=b"not an array")), "magic string"),
        (zipped(**members(x_train=npy("{'descr': '<f4'}"))), "x_train: .*correct keys"),
        (zipped(**members(x_train=npy("(" * 5000))), "x_train: "),
        (zipped(**members(x_train=npy("{'descr': '|O', 'fortran_order': False, 'shape': (3,)}", b"cos\nsystem\n."))),
         "holds object, not numbers"),
        (zipped(**members(x_train=npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 4)}"))),
         "takes 1759218604"),
        (zipped(**members(x_train=npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -4)}", b"\0" * 16))),
         r"x_train: it has \d+ bytes, an array float32\[-1, -4\]"),
        (zipped(**members(x_train=npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 4)}", b"\0" * 17))),
         "bytes, an array"),
        (zipped(**members(x_train=npy("{'descr': '<f4', 'fortran_order': False, 'shape': (True, 4)}", b"\0" * 16))),
         "x_train: "),
        (saved(x_train=np.float32(1)), r"x_train must be numbers of shape \[N, …\], got float32\[\]"),
        (saved(y_train=np.int64(1)), r"y_train must be numbers"),
        (saved(y_train=np.array([0.0, 1, 2, 0, 1, 2])), "y_train must be integer labels"),
        (saved(x_test=np.array([["a"] * 4] * 3)), "holds <U1, not numbers"),
        (saved(x_test=np.zeros((3, 4), np.complex64)), "holds complex64, not numbers"),
        (saved(x_test=np.zeros(3, "M8[s]")), "not numbers"),
        (saved(x_test=np.zeros((3, 4), [("a", "f4")])), "not numbers"),
        (saved(y_test=np.array([1])), "3 inputs but 1 targets"),
        (saved(mean=np.nan), "mean and std must be finite"),
        (saved(std=np.zeros(4), mean=np.zeros(4)), "std above 0"),
        (saved(mean=np.zeros(3), std=np.ones(3)), "3 means and stds for inputs of shape"),
        (saved(mean=np.array("x")), "not numbers"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(content: bytes, said: str, tmp_path: Path) -> None:
    assert re.search(said, error_of(content, tmp_path / "data.npz"))


def test_a_member_that_says_it_is_huge_takes_no_memory(tmp_path: Path) -> None:
    content = zipped(**members(x_train=npy(
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1)}", b"\0" * 4000)))  # fmt: skip
    # The central directory agrees with the header: 4 GB.
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        info = archive.getinfo("x_train.npy")
        size = info.file_size
    content = content.replace(size.to_bytes(4, "little"), (size + 4_000_000_000 - 4000).to_bytes(4, "little"))
    assert "cannot hold" in error_of(content, tmp_path / "data.npz")


def test_other_compressions_and_encryption_are_refused(tmp_path: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_BZIP2) as archive:
        for name, data in members().items():
            archive.writestr(f"{name}.npy", data)
    assert "method 12" in error_of(content.getvalue(), tmp_path / "data.npz")


def test_missing_arrays_are_named(tmp_path: Path) -> None:
    some = members()
    del some["y_test"], some["x_train"]
    assert "lacks x_train, y_test" in error_of(zipped(**some), tmp_path / "data.npz")


@pytest.mark.parametrize("dtype", [">f4", ">i2", "u2", "u4", "u8", "i1", "?", "f2", "f8", "longdouble"])
def test_all_kinds_of_numbers_are_read(dtype: str, tmp_path: Path) -> None:
    values = np.arange(6 * 4).reshape(6, 4) % 2
    (tmp_path / "data.npz").write_bytes(saved(x_train=values.astype(dtype), y_train=GOOD["y_train"].astype(">u2")))
    source = load_data(f"npz:{tmp_path / 'data.npz'}")
    assert source.problem() is None
    inputs, targets = source.training_batch(range(6), seed=0)
    assert np.array_equal(inputs.numpy(), values.astype(np.float32))
    assert targets.tolist() == GOOD["y_train"].tolist()


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "data.npz")
    with pytest.raises(DataError, match="is not a file"):
        load_data(f"npz:{tmp_path / 'data.npz'}")


def test_a_damaged_file_ends_a_search_with_one_error_line(tmp_path: Path) -> None:
    content = bytearray(saved(compressed=True))
    content[90] ^= 255
    (tmp_path / "data.npz").write_bytes(content)
    result = invoke(
        "search", DIGITS, "--data", f"npz:{tmp_path / 'data.npz'}", "--target-bits", 3, "-o", tmp_path / "run"
    )
    assert result.exit_code == 2
    assert [line.startswith("error:") for line in result.stderr.splitlines()].count(True) == 1
