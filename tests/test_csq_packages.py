"""Packages of a trained model: with the ONNX graph, with float16, and what `verify` says about them."""

import pytest
from conftest import Built, ok

from csqtool.finalized_file import read_finalized


@pytest.mark.parametrize("storage", [[], ["--weights", "int8"], ["--weights", "packed"]])
def test_a_package_with_its_graph_gives_back_the_exported_onnx_file(storage, eight_bits: Built, tmp_path):
    ok("export", eight_bits.model, "-o", tmp_path / "exported.onnx")
    ok("pack", eight_bits.model, "--with-graph", "-o", tmp_path / "m.csq")
    ok("unpack", tmp_path / "m.csq", "-o", tmp_path / "back.onnx")
    ok("unpack", tmp_path / "m.csq", "-o", tmp_path / "back.safetensors")
    assert (tmp_path / "back.onnx").read_bytes() == (tmp_path / "exported.onnx").read_bytes()
    assert (tmp_path / "back.safetensors").read_bytes() == eight_bits.model.read_bytes()
    code, report = eight_bits.verify(tmp_path / "m.csq")
    assert code == 0
    assert "ONNX graph" in {check["name"] for check in report["checks"]}


@pytest.mark.parametrize("weights", ["auto", "int8", "packed"])
def test_the_graph_carries_no_weights_however_the_onnx_file_stores_them(weights, eight_bits: Built, tmp_path):
    from exporters.csq import graph

    ok("export", eight_bits.model, "--weights", weights, "-o", tmp_path / "m.onnx")
    model = read_finalized(eight_bits.model)
    from csqtool.finalized_file import to_tensors

    onnx = (tmp_path / "m.onnx").read_bytes()
    recipe = graph.cut(onnx, to_tensors(model)[0])
    integers = sum(layer.q.size for layer in model.layers)
    assert len(onnx) - len(recipe) > 0.9 * integers * (1 if weights == "int8" else 0.25)
