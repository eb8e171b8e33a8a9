"""Packages of a trained model: with the ONNX graph, with float16, and what `verify` says about them."""

import json
import zlib

import numpy as np
import pytest

from csqtool.csq import graph
from csqtool.errors import ExportError
from csqtool.finalized_file import read_finalized, to_tensors
from csqtool.packing import pack
from csqtool.verifying.csq_decoder import decode
from tests.support.commands import Built, invoke, ok

pytestmark = pytest.mark.usefixtures("one_capture")


def test_a_package_with_its_graph_gives_back_the_exported_onnx_file(eight_bits: Built, tmp_path):
    ok("export", eight_bits.model, "-o", tmp_path / "exported.onnx")
    ok("pack", eight_bits.model, "--with-graph", "-o", tmp_path / "m.csq")
    ok("unpack", tmp_path / "m.csq", "-o", tmp_path / "back.onnx")
    ok("unpack", tmp_path / "m.csq", "-o", tmp_path / "back.safetensors")
    assert (tmp_path / "back.onnx").read_bytes() == (tmp_path / "exported.onnx").read_bytes()
    assert (tmp_path / "back.safetensors").read_bytes() == eight_bits.model.read_bytes()
    code, report = eight_bits.verify(tmp_path / "m.csq")
    assert code == 0
    assert "ONNX graph" in {check["name"] for check in report["checks"]}


def test_a_package_without_a_graph_says_how_to_make_one(eight_bits: Built, tmp_path):
    done = invoke("unpack", eight_bits.csq, "-o", tmp_path / "m.onnx")
    assert done.exit_code == 2
    assert "--with-graph" in done.stderr
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("weights", ["auto", "int8", "packed"])
def test_the_graph_carries_no_weights_however_the_onnx_file_stores_them(weights, eight_bits: Built, tmp_path):
    ok("export", eight_bits.model, "--weights", weights, "-o", tmp_path / "m.onnx")
    model = read_finalized(eight_bits.model)
    onnx = (tmp_path / "m.onnx").read_bytes()
    recipe = graph.cut(onnx, to_tensors(model)[0])
    integers = sum(layer.q.size for layer in model.layers)
    assert len(onnx) - len(recipe) > 0.9 * integers * (1 if weights == "int8" else 0.25)


def test_float16_halves_what_is_left_in_float_and_verify_checks_it(eight_bits: Built, tmp_path):
    done = ok("pack", eight_bits.model, "--float16", "--max-metric-change", "0.05", "--json", "-o", tmp_path / "h.csq")
    assert any("float16 changes the metric" in note for note in json.loads(done.stdout)["notes"])
    assert (tmp_path / "h.csq").stat().st_size < eight_bits.csq.stat().st_size
    code, report = eight_bits.verify(tmp_path / "h.csq")
    assert code == 0, report
    wanted, _ = to_tensors(read_finalized(eight_bits.model))
    found, metadata, _ = decode((tmp_path / "h.csq").read_bytes(), where="x")
    assert json.loads(metadata)["float16"]["finalized_sha256"]
    integers = [name for name, value in wanted.items() if value.dtype != np.float32 or name.endswith("_scale")]
    assert integers
    assert all(found[name].tobytes() == wanted[name].tobytes() for name in integers)


def test_float16_is_refused_where_the_metric_moves_too_far(eight_bits: Built, tmp_path, monkeypatch):
    measured = iter([0.95, 0.93])
    monkeypatch.setattr("csqtool.float16.evaluate", lambda *arguments: next(measured))
    with pytest.raises(ExportError, match=r"float16 changes the accuracy from 0.95.* to 0.93.* without --float16"):
        pack(eight_bits.model, tmp_path / "h.csq", float16=True, max_metric_change=0.01)
    assert not (tmp_path / "h.csq").exists()


def test_an_inference_file_is_smaller_and_verified_at_every_level(eight_bits: Built, tmp_path):
    ok("pack", eight_bits.model, "--inference", "-o", tmp_path / "i.csq")
    assert (tmp_path / "i.csq").stat().st_size < eight_bits.csq.stat().st_size - 2000
    code, report = eight_bits.verify(tmp_path / "i.csq")
    assert code == 0, report
    levels = {check["level"]: check["passed"] for check in report["checks"]}
    assert levels == dict.fromkeys(("integrity", "weights", "outputs", "task", "structure"), True)


def test_float16_rounds_the_biases_of_an_inference_file_if_the_metric_allows_it(
    eight_bits: Built, tmp_path, monkeypatch
):
    path, limit = tmp_path / "i.csq", 0.01
    for measured, fits in (([0.95, 0.955], True), ([0.95, 0.93], False)):
        values = iter(measured)
        monkeypatch.setattr("csqtool.float16.evaluate", lambda *arguments, values=values: next(values))
        path.unlink(missing_ok=True)
        if fits:
            done = pack(eight_bits.model, path, inference=True, float16=True, max_metric_change=limit)
            assert "float16 changes the metric from 0.9500 to 0.9550" in done.notes
        else:
            with pytest.raises(ExportError, match=r"float16 changes the accuracy from 0.95.* to 0.93"):
                pack(eight_bits.model, path, inference=True, float16=True, max_metric_change=limit)
        assert path.exists() == fits


def test_an_inference_file_of_another_model_fails_verification(eight_bits: Built, other_seed: Built, tmp_path):
    pack(other_seed.model, tmp_path / "i.csq", inference=True)
    code, report = eight_bits.verify(tmp_path / "i.csq")
    assert code == 1
    failed = {check["level"] for check in report["checks"] if not check["passed"]}
    assert {"integrity", "weights", "outputs"} <= failed


def test_a_changed_value_in_a_float16_package_fails_verification(eight_bits: Built, tmp_path):
    pack(eight_bits.model, tmp_path / "h.csq", float16=True, max_metric_change=0.05, encoding="dense")
    content = bytearray((tmp_path / "h.csq").read_bytes())
    from csqtool.csq import CsqFile

    entry = CsqFile(bytes(content), where="x").entries["mix.0.weight"]
    content[entry.start] ^= 1
    old = entry.crc32.to_bytes(4, "little")
    at = content.index(old)
    content[at : at + 4] = zlib.crc32(content[entry.start : entry.start + entry.length]).to_bytes(4, "little")
    size = int.from_bytes(content[16:20], "little")
    content[72:76] = zlib.crc32(content[88 : 88 + size]).to_bytes(4, "little")
    content[84:88] = zlib.crc32(content[:84]).to_bytes(4, "little")
    (tmp_path / "h.csq").write_bytes(content)
    code, report = eight_bits.verify(tmp_path / "h.csq")
    assert code == 1
    failed = {check["name"] for check in report["checks"] if not check["passed"]}
    assert "rounded model" in failed
    assert "mix.0.weight" in {check.get("layer") for check in report["checks"] if not check["passed"]}
