from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from csqtool.csq import CsqFile
from csqtool.finalized_file import read_finalized, serialize, to_tensors
from csqtool.onnx_file import stored_tensors
from csqtool.packing import pack
from tests.support.commands import Built, invoke, ok

pytestmark = pytest.mark.usefixtures("one_capture")


@pytest.mark.parametrize("kind", ["onnx", "csq"])
def test_verify_passes_an_untouched_export(eight_bits: Built, kind: str) -> None:
    code, report = eight_bits.verify(getattr(eight_bits, kind))
    assert code == 0
    assert report["passed"] is True


def test_verify_passes_float_and_four_bit_activations(other_bits: Built) -> None:
    assert other_bits.verify(other_bits.onnx)[0] == 0
    assert other_bits.verify(other_bits.csq)[0] == 0


def change_a_number(proto: onnx.ModelProto, name: str) -> None:
    """Change the first number of a tensor, or the float attribute NODE.ATTRIBUTE."""
    # Weights are packed or coded, those of eight bits are plain tensors.
    names = {name, f"{name}.stream", f"{name}.levels", name.replace(".scale", "_scale")}
    for found, tensor in stored_tensors(proto):
        if found in names:
            array = onnx.numpy_helper.to_array(tensor).copy()
            array.reshape(-1)[0] = array.reshape(-1)[0] * 1.01 if array.dtype.kind == "f" else array.reshape(-1)[0] + 1
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
            return
    place, _, attribute = name.rpartition(".")
    node = next(node for node in proto.graph.node if node.output[0] == place)
    next(a for a in node.attribute if a.name == attribute).f *= 1.01


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("stem.0.weight", "stem.0.weight"),
        ("mix.0.weight", "mix.0.weight"),
        ("stem.0.weight.scale", "stem.0.weight"),
        ("classifier.bias", "classifier.weight"),
        ("relu.output.scale", "relu.output"),
    ],
)
def test_one_changed_number_in_the_onnx_file_fails_and_names_the_layer(
    eight_bits: Built, tmp_path: Path, name: str, layer: str
) -> None:
    proto = onnx.load(eight_bits.onnx)
    change_a_number(proto, name)
    onnx.save(proto, tmp_path / "changed.onnx")
    code, report = eight_bits.verify(tmp_path / "changed.onnx")
    assert code == 1
    blamed = {c["layer"] for c in report["checks"] if not c["passed"] and c["level"] == "weights"}
    assert blamed == {layer}


def test_one_flipped_weight_in_the_csq_file_fails_and_names_the_layer(eight_bits: Built, tmp_path: Path) -> None:
    content = bytearray(eight_bits.csq.read_bytes())
    entry = CsqFile(bytes(content), where="x").entries["mix.0.weight"]
    content[entry.start + entry.length // 2] ^= 1
    (tmp_path / "changed.csq").write_bytes(content)
    code, report = eight_bits.verify(tmp_path / "changed.csq")
    assert code == 1
    assert {c["layer"] for c in report["checks"] if c["level"] in ("integrity", "weights") and not c["passed"]} == {
        "mix.0.weight"
    }


def test_one_changed_scale_in_the_csq_file_fails_and_names_the_layer(eight_bits: Built, tmp_path: Path) -> None:
    changed = tmp_path / "changed.safetensors"
    tensors, metadata = to_tensors(read_finalized(eight_bits.model))
    document = json.loads(metadata)
    scale = np.asarray(tensors["mix.0.weight_scale"] * np.float32(1.01))
    tensors["mix.0.weight_scale"] = scale
    next(entry for entry in document["layers"] if entry["name"] == "mix.0.weight")["scale"] = float(scale)
    changed.write_bytes(serialize(tensors, json.dumps(document, ensure_ascii=False, separators=(",", ":"))))
    pack(changed, tmp_path / "changed.csq")
    code, report = eight_bits.verify(tmp_path / "changed.csq")
    assert code == 1
    blamed = {c["layer"] for c in report["checks"] if c["level"] == "weights" and not c["passed"]}
    assert blamed == {"mix.0.weight_scale", "metadata"}


def test_a_file_in_which_everything_is_wrong_fits_on_a_screen(eight_bits: Built, other_seed: Built) -> None:
    result = invoke("verify", other_seed.onnx, "--against", eight_bits.model, "--samples", 50)
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) <= 45
    assert "more, all of them in --json" in result.stdout
    packed = ["--baseline", eight_bits.run / "packed.json", "--max-regression", 0]
    eight_bits.verify(eight_bits.csq, "--samples", 50)
    ok("verify", eight_bits.csq, "--against", eight_bits.model, "--json", eight_bits.run / "packed.json")
    result = invoke("verify", eight_bits.onnx, "--against", eight_bits.model, "--samples", 50, *packed)
    assert (result.exit_code, "a file of another kind" in result.stderr) == (2, True)


@pytest.mark.parametrize("kind", ["onnx", "csq"])
def test_another_models_file_fails_and_names_its_layers(eight_bits: Built, other_seed: Built, kind: str) -> None:
    code, report = eight_bits.verify(getattr(other_seed, kind))
    assert code == 1
    failures = [c for c in report["checks"] if not c["passed"]]
    assert "made from another finalized model" in {c["detail"] for c in failures}
    layers = {layer.name for layer in read_finalized(eight_bits.model).layers}
    assert layers <= {c["layer"] for c in failures if c["level"] == "weights"}


@pytest.mark.parametrize("kind", ["empty", "nan"])
def test_verify_fails_on_empty_and_on_nan_data(eight_bits: Built, tmp_path: Path, kind: str) -> None:
    count = 0 if kind == "empty" else 4
    x = np.full((count, 1, 8, 8), np.nan, np.float32)
    y = np.zeros(count, np.int64)
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    assert eight_bits.verify(eight_bits.onnx, "--data", f"npz:{tmp_path}/d.npz")[0] == 1


def test_gates_that_do_not_hold_exit_with_1(eight_bits: Built) -> None:
    assert eight_bits.verify(eight_bits.onnx, "--max-size", "1KB")[0] == 1
    assert eight_bits.verify(eight_bits.onnx, "--min-metric", "1.01")[0] == 1


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


@pytest.mark.parametrize("keep", [0, 1, 100, -200, -1])
def test_a_truncated_file_is_bad_input(eight_bits: Built, tmp_path: Path, keep: int) -> None:
    content = eight_bits.onnx.read_bytes()
    (tmp_path / "short.onnx").write_bytes(content[:keep])
    result = invoke("verify", tmp_path / "short.onnx", "--against", eight_bits.model)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert f"error: {tmp_path / 'short.onnx'} is not an ONNX file" in result.stderr


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
