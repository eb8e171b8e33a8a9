"""Packing and unpacking on a real file system: what cannot be read or written, and what an interruption leaves."""

import os
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest

from csqtool.csq import open_csq, pack
from csqtool.errors import InputError
from csqtool.finalized_file import serialize, to_bytes, to_tensors
from tests.support.commands import invoke
from tests.support.csq_files import golden_models, one_layer, small_model
from tests.support.csq_handmade import SMALL


def packed_by_hand(old, new):
    """Return the finalized file of the small model with other metadata, as another writer could make it."""
    tensors, metadata = to_tensors(small_model())
    assert old in metadata
    return serialize(tensors, metadata.replace(old, new, 1))


@pytest.mark.parametrize("verb", [("pack",), ("export", "--format", "csq"), ("export", "--format", "c")])
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"bits":4', '"bits":4.7', "bits is 4.7"),
        ('"bits":4', '"bits": 4', "not those that csqtool finalize writes"),
        ('"accuracy":0.875', '"accuracy":0.8750', "not those that csqtool finalize writes"),
    ],
)
def test_what_unpack_could_not_give_back_is_not_packed(tmp_path, verb, old, new, message):
    (tmp_path / "m.safetensors").write_bytes(packed_by_hand(old, new))
    done = invoke(verb[0], tmp_path / "m.safetensors", *verb[1:], "-o", tmp_path / "m.csq")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.output
    assert message in done.stderr
    assert [f.name for f in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_pipe_named_as_output_stays_a_pipe(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(to_bytes(small_model()))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        done = invoke("pack", tmp_path / "m.safetensors", "-o", tmp_path / name)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.output
        assert "is no regular file" in done.stderr
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()
    assert sorted(f.name for f in tmp_path.iterdir()) == ["link", "m.safetensors", "pipe"]


@pytest.mark.parametrize("kind", ["fifo", "folder", "unreadable", "missing", "empty"])
def test_what_is_no_readable_file_is_one_clear_line(tmp_path, kind):
    path = tmp_path / "m.csq"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "unreadable":
        path.symlink_to(path)  # a loop: root may read any file
    elif kind == "empty":
        path.touch()
    with pytest.raises(InputError, match=str(path)):
        open_csq(path).model()
    done = invoke("unpack", path, "-o", tmp_path / "out")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert not (tmp_path / "out").exists()


def test_opening_maps_the_file_and_takes_no_memory_for_its_tensors(tmp_path):
    q = np.random.default_rng(0).integers(-4, 4, 1 << 22).astype(np.int8)
    path = tmp_path / "m.csq"
    path.write_bytes(pack(one_layer(q, other=np.arange(1 << 18, dtype=np.float32) / 3), encoding="dense"))
    tracemalloc.start()
    try:
        file = open_csq(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 18
        view = file.tensor("other")
        assert not view.flags.owndata
        assert not view.flags.writeable
        assert tracemalloc.get_traced_memory()[1] < 1 << 18
        decoded = file.tensor("w")
        assert tracemalloc.get_traced_memory()[1] < q.nbytes + (4 << 20)
    finally:
        tracemalloc.stop()
    assert (decoded == q).all()


def test_a_full_disk_leaves_the_old_file(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(to_bytes(golden_models()["v2-rans"][0]))
    (tmp_path / "m.csq").write_bytes(SMALL)
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from csqtool.cli import main; sys.argv = ['csqtool', 'pack', 'm.safetensors', '-o', 'm.csq']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "cannot write m.csq: File too large" in done.stderr
    assert {f.name for f in tmp_path.iterdir()} == {"m.safetensors", "m.csq"}
    assert (tmp_path / "m.csq").read_bytes() == SMALL


def test_a_kill_at_any_moment_leaves_the_old_file_or_the_new_one(tmp_path):
    code = (
        "import sys; from pathlib import Path; from csqtool.files import write_bytes\n"
        "print('ready', flush=True)\n"
        "i = 0\n"
        "while True: i += 1; write_bytes(Path('m.csq'), bytes([i % 256]) * 2_000_000)"
    )
    for delay in (0.0, 0.01, 0.03, 0.07, 0.11):
        writer = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE)
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        if (tmp_path / "m.csq").exists():
            content = (tmp_path / "m.csq").read_bytes()
            assert content == content[:1] * 2_000_000
