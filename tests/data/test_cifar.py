from __future__ import annotations

import contextlib
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from csqtool.data import load_data
from csqtool.data.python_pickle import read_dict
from csqtool.errors import DataError
from tests.support.commands import DIGITS, invoke

IMAGE = 3 * 32 * 32


def text(value: str) -> bytes:
    """A string as Python 2 pickled it."""
    return b"U" + bytes([len(value)]) + value.encode("latin-1")


def python2_pickle(pixels: np.ndarray[Any, Any], labels: list[int], key: str) -> bytes:
    """The bytes of CIFAR's python layout, put together by hand as Python 2's protocol 2 wrote them."""
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    array = b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + b"K\x00\x85" + text("b") + b"\x87R"
    dtype = (
        b"cnumpy\ndtype\n"
        + text("u1")
        + b"K\x00K\x01\x87R"
        + b"(K\x03"
        + text("|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    shape = b"".join(b"M" + struct.pack("<H", n) for n in pixels.shape) + b"\x86"
    state = b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<i", pixels.size) + pixels.tobytes() + b"tb"
    return b"\x80\x02}(" + text(key) + numbers + text("data") + array + state + b"u."


def binary(labels: list[tuple[int, ...]], seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), IMAGE), np.uint8)
    return b"".join(bytes(label) + row.tobytes() for label, row in zip(labels, pixels, strict=True))


def write_cifar10(folder: Path) -> None:
    for i in range(1, 6):
        (folder / f"data_batch_{i}.bin").write_bytes(binary([(i,), (i - 1,)], seed=i))
    (folder / "test_batch.bin").write_bytes(binary([(9,), (0,), (3,)]))


def test_the_binary_layout_of_cifar10_is_read_in_order_and_normalised(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    source = load_data(f"cifar10:{tmp_path}")
    assert (len(source.train), len(source.test)) == (10, 3)
    x, label = source.test[2]
    raw = np.frombuffer(binary([(9,), (0,), (3,)])[2 * (IMAGE + 1) + 1 :], np.uint8).reshape(3, 32, 32)
    assert int(label) == 3
    wanted = (raw / 255 - np.reshape([0.485, 0.456, 0.406], (3, 1, 1))) / np.reshape([0.229, 0.224, 0.225], (3, 1, 1))
    np.testing.assert_allclose(x.numpy(), wanted, atol=1e-5)
    assert source.facts()["preprocessing"]["mean"] == [255 * 0.485, 255 * 0.456, 255 * 0.406]


def test_cifar100_takes_the_fine_label_of_the_two(tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(binary([(19, 11), (3, 99)]))
    (tmp_path / "test.bin").write_bytes(binary([(1, 42)]))
    source = load_data(f"cifar100:{tmp_path}")
    assert [int(source.train[i][1]) for i in range(2)] == [11, 99]


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_the_python_layout_holds_the_same_images_without_being_unpickled(tmp_path: Path, kind: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (2, IMAGE), np.uint8)
    key = "labels" if kind == "cifar10" else "fine_labels"
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"] if kind == "cifar10" else ["train", "test"]
    for name in names:
        (tmp_path / name).write_bytes(python2_pickle(pixels, [3, 7], key))
    source = load_data(f"{kind}:{tmp_path}")
    assert [int(source.test[i][1]) for i in range(2)] == [3, 7]
    assert np.array_equal(source.test.inputs.numpy().reshape(2, IMAGE), pixels)  # type: ignore[attr-defined]


def test_the_hand_made_pickle_is_what_pickle_itself_reads() -> None:
    pixels = np.arange(IMAGE, dtype=np.uint8).reshape(1, IMAGE)
    content = python2_pickle(pixels, [5], "labels")
    wanted = pickle.loads(content, encoding="latin-1")
    found = read_dict(content, where="made")
    assert found["labels"] == wanted["labels"] == [5]
    assert np.array_equal(found["data"], wanted["data"])


class _Harmful:
    def __reduce__(self) -> Any:
        return os.system, ("touch harmed",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="batch"):
        read_dict(pickle.dumps({"data": _Harmful()}, protocol=protocol), where="batch")
    assert not (tmp_path / "harmed").exists()


def test_a_cut_off_or_changed_pickle_is_an_error_at_every_byte() -> None:
    content = python2_pickle(np.zeros((1, IMAGE), np.uint8), [5], "labels")
    head = len(content) - IMAGE - 8
    for end in range(head):
        with pytest.raises(DataError):
            read_dict(content[:end], where="batch")
    for at in range(0, head, 3):
        changed = bytearray(content)
        changed[at] ^= 0x15
        with contextlib.suppress(DataError):  # what it still reads as is no harm; anything else raised is
            read_dict(bytes(changed), where="batch")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("data_batch_3.bin", binary([(1,)])[:-5], "are not whole CIFAR-10 records of 3073 bytes"),
        ("test_batch.bin", b"", "are not whole CIFAR-10 records"),
        ("test_batch.bin", binary([(1,), (17,)]), "image 1 has label 17, CIFAR-10 has 0 … 9"),
        ("data_batch_2.bin", None, "data_batch_2.bin"),
    ],
)
def test_a_bad_file_is_named_in_one_line(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    write_cifar10(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    result = invoke("search", DIGITS, "--data", f"cifar10:{tmp_path}", "--target-bits", 3, "-o", tmp_path / "run")
    assert result.exit_code == 2
    assert name in result.stderr
    assert said in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_folder_without_cifar_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither data_batch_1.bin .* unpack cifar-10-binary.tar.gz"):
        load_data(f"cifar10:{tmp_path}")


def test_images_that_do_not_fit_the_model_are_refused_before_training(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    result = invoke("search", DIGITS, "--data", f"cifar10:{tmp_path}", "--target-bits", 3, "-o", tmp_path / "run")
    assert result.exit_code == 2
    assert "[2, 3, 32, 32]" in result.stderr


@pytest.mark.skipif("CSQTOOL_CIFAR10" not in os.environ, reason="CSQTOOL_CIFAR10 names no folder with CIFAR-10")
def test_real_cifar10_has_its_counts() -> None:
    source = load_data(f"cifar10:{os.environ['CSQTOOL_CIFAR10']}")
    assert len(source.train) % 10_000 == 0
    assert source.problem() is None
