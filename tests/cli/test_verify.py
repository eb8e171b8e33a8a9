from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.support.commands import Built, invoke, ok


def test_a_stale_file_after_another_search_fails_on_its_origin(
    eight_bits: Built, other_seed: Built, tmp_path: Path
) -> None:
    code, report = eight_bits.verify(other_seed.onnx, "--samples", 100)
    failed = {check["name"] for check in report["checks"] if not check["passed"]}  # type: ignore[attr-defined]
    assert code == 1
    assert {"origin", "integers, scales, biases"} <= failed
    # Not even a forged origin helps.
    proto = onnx.load(other_seed.onnx)
    own = next(p.value for p in onnx.load(eight_bits.onnx).metadata_props if p.key == "csqtool.finalized_sha256")
    next(p for p in proto.metadata_props if p.key == "csqtool.finalized_sha256").value = own
    onnx.save(proto, tmp_path / "forged.onnx")
    code, report = eight_bits.verify(tmp_path / "forged.onnx", "--samples", 100)
    assert code == 1


def test_an_empty_test_set_is_a_failure_and_not_a_pass(eight_bits: Built, tmp_path: Path) -> None:
    inputs, labels = np.zeros((4, 1, 8, 8), np.float32), np.zeros(4, np.int64)
    np.savez(tmp_path / "empty.npz", x_train=inputs, y_train=labels, x_test=inputs[:0], y_test=labels[:0])
    code, report = eight_bits.verify(eight_bits.onnx, "--data", f"npz:{tmp_path / 'empty.npz'}")
    assert code == 1
    assert any("is empty" in check["detail"] for check in report["checks"])  # type: ignore[attr-defined]


def test_a_test_set_in_a_loader_gives_the_verdicts_of_the_data_set(eight_bits: Built, tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text(
        "from torch.utils.data import DataLoader\nfrom csqtool.data import load_data\n"
        "def loaders():\n    source = load_data('digits')\n"
        "    return DataLoader(source.train, batch_size=7), DataLoader(source.test, batch_size=7)\n"
    )
    reports = [
        eight_bits.verify(eight_bits.onnx, "--data", data, "--samples", 100)
        for data in ("digits", f"{tmp_path}/data.py:loaders")
    ]
    assert reports[0] == reports[1]
    assert reports[0][0] == 0


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_truncated_file_is_bad_input_or_fails(eight_bits: Built, tmp_path: Path, keep: int) -> None:
    content = eight_bits.onnx.read_bytes()
    (tmp_path / "short.onnx").write_bytes(content[:keep])
    result = invoke("verify", tmp_path / "short.onnx", "--against", eight_bits.model)
    assert result.exit_code in (1, 2)
    assert "Traceback" not in result.output


def test_external_data_is_refused(eight_bits: Built, tmp_path: Path) -> None:
    onnx.save(onnx.load(eight_bits.onnx), tmp_path / "outside.onnx", save_as_external_data=True, size_threshold=0,
              location="weights.bin")  # fmt: skip
    os.truncate(tmp_path / "weights.bin", 10)
    result = invoke("verify", tmp_path / "outside.onnx", "--against", eight_bits.model)
    assert result.exit_code == 2
    assert "in files beside it; save it as one file" in result.stderr


def test_two_verifications_write_the_same_bytes(eight_bits: Built, tmp_path: Path) -> None:
    for name in ("one", "two"):
        ok("verify", eight_bits.onnx, "--against", eight_bits.model, "--json", tmp_path / f"{name}.json",
           "--junit", tmp_path / f"{name}.xml", "--markdown", tmp_path / f"{name}.md")  # fmt: skip
    for suffix in ("json", "xml", "md"):
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()
    assert json.loads((tmp_path / "one.json").read_text())["schema_version"] == 1
