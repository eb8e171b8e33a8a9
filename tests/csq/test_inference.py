"""Inference files: what is folded, what both readers make of it, and what the verifier says when it was changed."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csqtool.csq import CsqFile, pack, read_csq, unpack
from csqtool.csq.channels import Record, decode_records, encode_record, rounded_scales
from csqtool.csq.inference import ACTIVATIONS, CHANNELS
from csqtool.finalized_file import to_bytes
from csqtool.folding import fold_scale, read_batch_norm
from csqtool.quantized_model import ActivationQuantizer, QuantizedLayer, QuantizedModel
from csqtool.verifying.csq_channels import stored_layers
from tests.support.csq_files import GOLDEN, inference_model
from tests.support.csq_handmade import assemble, assert_rejected, disassemble
from tests.support.csq_inference import problems

WAYS = [{}, {"half": True}, {"encoding": "context"}]


@given(st.lists(st.floats(2**-149, 2**127, width=32), min_size=1, max_size=9))
def test_a_scale_is_off_by_at_most_what_its_exponent_leaves(scales):
    scale = np.array(scales, np.float32)
    words = encode_record(Record(scale, None))
    stored, exact = rounded_scales(scale), scale.astype(np.float64)
    kind = int(words[0])
    assert (np.abs(stored / exact - 1) <= (2.0 ** (kind - 33) if kind > 1 else 0)).all()
    assert kind in (1, *range(16, 22))
    (found,), (verified,) = decode_records(words, [scale.size]), stored_layers(words.tobytes(), [scale.size])
    assert found.scale.tobytes() == stored.tobytes() == verified.scale.tobytes()
    assert (np.abs(stored - exact) <= verified.error).all()


def test_scales_within_a_factor_of_128_are_off_by_at_most_one_in_16384():
    scale = np.geomspace(0.001, 0.1279, 1000).astype(np.float32)
    assert int(encode_record(Record(scale, None))[0]) == 16 + 3
    assert np.abs(rounded_scales(scale) / scale.astype(np.float64) - 1).max() < 1 / 16384


def test_the_golden_inference_file_is_read():
    content, same = (GOLDEN / "v2-inference.csq").read_bytes(), pack(inference_model(), inference=True)
    assert problems(content, inference_model()) == []
    assert to_bytes(read_csq(content, where="x")) == to_bytes(read_csq(same, where="x"))


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_an_inference_file_holds_what_the_verifier_derives_from_the_finalized_model(way):
    model = inference_model()
    content = pack(model, inference=True, **way)
    assert problems(content, model) == []
    assert len(content) < len(pack(model, encoding=way.get("encoding", "smallest")))
    file = CsqFile(content, where="x")
    assert file.is_inference
    assert file.finalized_sha256 == CsqFile(pack(model), where="x").finalized_sha256
    assert set(file.entries) == {CHANNELS, ACTIVATIONS, "e.rest", *(layer.name for layer in model.layers)}
    assert "factory" not in file.metadata
    assert "mine" not in file.metadata


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_an_unpacked_inference_file_computes_the_same_and_packs_to_the_same_values(way):
    model = inference_model()
    content = pack(model, inference=True, **way)
    back = read_csq(content, where="x")
    assert unpack(content, where="x") == to_bytes(back)
    assert back.tensors.keys() == model.tensors.keys()
    for layer, old in zip(back.layers, model.layers, strict=True):
        assert (layer.name, layer.input_quantizer, layer.batch_norm) == (old.name, old.input_quantizer, old.batch_norm)
        if layer.batch_norm is None:
            assert (layer.scale, layer.q.tobytes()) == (old.scale, old.q.tobytes())
            continue
        ways = [(one.q.astype(np.float64).reshape(len(one.q), -1), read_batch_norm(one, m.tensors).factor * one.scale)
                for one, m in ((layer, back), (old, model))]  # fmt: skip
        new, wanted = (q * scale[:, None] for q, scale in ways)
        assert np.abs(new - wanted).max() <= 2**-12 * np.abs(wanted).max()
    assert back.activations == model.activations
    assert back.tied == model.tied
    again = pack(back, inference=True, **way)
    assert [r["stored"] for r in disassemble(again)[0]] == [r["stored"] for r in disassemble(content)[0]]
    assert disassemble(again)[1] == disassemble(content)[1]
    # What is exact without --float16: biases on the integer grid, and biases that no BatchNorm changes.
    exact = ["d.bias"] if "half" in way else ["d.bias", "b.bias", "e.rest"]
    assert all(back.tensors[name].tobytes() == model.tensors[name].tobytes() for name in exact)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_any_model_folds_to_what_the_verifier_derives(seed):
    rng = np.random.default_rng(seed)
    layers, tensors = [], {}
    for i in range(rng.integers(1, 5)):
        shape = tuple(int(d) for d in rng.integers(1, 6, rng.integers(1, 5)))
        name, largest = f"l{i}.weight", int(rng.integers(1, 128))
        layer = QuantizedLayer(name, rng.integers(-largest, largest + 1, shape).astype(np.int8),
                               np.float32(np.exp(rng.normal(-3, 3))), "1", rng.choice([None, "x"]))  # fmt: skip
        if rng.random() < 0.5:
            tensors[f"l{i}.bias"] = rng.normal(0, 1, shape[0]).astype(np.float32)
        if rng.random() < 0.7:
            gamma = rng.normal(0, 1, shape[0]) * np.exp(rng.normal(0, rng.choice([0, 3, 40]), shape[0]))
            gamma[rng.random(shape[0]) < 0.1] = 0
            gamma = gamma.clip(-1e38, 1e38)
            parts = {"weight": gamma, "bias": rng.normal(0, 1, shape[0]), "running_mean": rng.normal(0, 1, shape[0]),
                     "running_var": rng.random(shape[0])}  # fmt: skip
            tensors |= {f"bn{i}.{part}": np.asarray(value, np.float32) for part, value in parts.items()}
            tensors[f"bn{i}.num_batches_tracked"] = np.array(i, np.int64)
            layer = dataclasses.replace(layer, batch_norm=f"bn{i}", batch_norm_epsilon=float(rng.choice([0.0, 1e-5])))
        layers.append(layer)
    model = QuantizedModel(tuple(layers), (ActivationQuantizer("x", np.float32(0.1), 0, 8),), tensors)
    for way in WAYS[:2]:
        content = pack(model, inference=True, **way)
        assert problems(content, model) == []
        assert read_csq(content, where="x").tensors.keys() == model.tensors.keys()


def test_a_batch_norm_under_two_names_is_not_folded():
    model = inference_model()
    folds = [layer.name for layer in model.layers if layer.batch_norm]
    same = {f"other.{part}": model.tensors[f"abn.{part}"] for part in
            ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}  # fmt: skip
    changed = {
        "the module has a second name": dataclasses.replace(model, tensors={**model.tensors, **same}),
        "the layer has a second name": dataclasses.replace(model, tied={**model.tied, "z.weight": "a.weight"}),
        "the bias has a second name": dataclasses.replace(
            model, tensors={**model.tensors, "z.bias": model.tensors["a.bias"]}),
        "two layers have it": dataclasses.replace(model, layers=(*model.layers, dataclasses.replace(
            model.layers[1], name="z.weight"))),
        "its epsilon is not known": dataclasses.replace(model, layers=tuple(
            dataclasses.replace(layer, batch_norm_epsilon=None) for layer in model.layers)),
    }  # fmt: skip
    for why, other in changed.items():
        content = pack(other, inference=True)
        file = CsqFile(content, where="x")
        left = {name for name in file.entries if name.endswith("running_mean")}
        assert "abn.running_mean" in left, why
        assert problems(content, other) == [], why
        back = file.model()
        assert back.tensors["abn.weight"].tobytes() == model.tensors["abn.weight"].tobytes(), why
        assert back.tensors.keys() == other.tensors.keys(), why
    assert len(folds) == 3


def test_integer_biases_are_in_steps_of_the_stored_scales_and_as_narrow_as_they_fit():
    model = inference_model()
    channels = CsqFile(pack(model, inference=True), where="x").tensor(CHANNELS)
    names = sorted(layer.name for layer in model.layers)
    records = dict(zip(names, decode_records(channels, [model.layer(name).shape[0] for name in names]), strict=True))
    kinds = {name: None if r.bias is None else r.bias.dtype.name for name, r in records.items()}
    assert kinds == {"a.weight": "int32", "b.weight": "float32", "c.weight": "float32", "d.weight": "int32",
                     "g.weight": "int32", "stem.weight": None}  # fmt: skip
    assert records["d.weight"].bias.tolist() == [7, -40000, 12]
    layer = model.layer("a.weight")
    norm = read_batch_norm(layer, model.tensors)
    scale = rounded_scales(fold_scale(layer.scale, norm.factor).scale)
    wanted = norm.effective_bias(model.tensors["a.bias"]) / (np.float32(0.5) * scale).astype(np.float64)
    assert np.abs(records["a.weight"].bias - wanted).max() <= 0.5


def changed_content(name):
    """Return an inference file with one value changed, its checksums right."""
    rows, metadata, digest = disassemble(pack(inference_model(), inference=True, encoding="dense"))
    document = json.loads(metadata)
    by_name = {r["name"].decode(): r for r in rows}

    def put(tensor, at, change):
        stored = bytearray(by_name[tensor]["stored"])
        stored[at] = change(stored[at]) & 255
        by_name[tensor]["stored"] = bytes(stored)

    # The first record is that of a.weight: kinds, exponent, six codes, six biases of two bytes.
    changes = {
        "a scale by one code": lambda: put(CHANNELS, 4, lambda x: x + 1),
        "a scale by one code less": lambda: put(CHANNELS, 6, lambda x: x - 1),
        "the exponent of scales": lambda: put(CHANNELS, 2, lambda x: x + 1),
        "an integer bias by one": lambda: put(CHANNELS, 16, lambda x: x ^ 1),
        "a float bias by one bit": lambda: put(CHANNELS, 40, lambda x: x ^ 1),
        "an integer": lambda: put("a.weight", 5, lambda x: x ^ 4),
        "a tensor beside the layers": lambda: put("e.rest", 3, lambda x: x ^ 1),
        "an activation's scale": lambda: put(ACTIVATIONS, 0, lambda x: x ^ 1),
        "a zero point": lambda: put(ACTIVATIONS, 4, lambda x: x ^ 1),
        "an activation's bits": lambda: put(ACTIVATIONS, 5, lambda x: x - 1),
        "the order of activations": document["activations"].reverse,
        "the order of layers": document["layers"].reverse,
        "a layer's activation": lambda: document["layers"][1].update(input_quantizer="c.output"),
        "a layer's BatchNorm": lambda: document["layers"][1].update(batch_norm="other"),
        "an epsilon": lambda: document["layers"][1].update(epsilon=2e-5),
        "whether a layer has a bias": lambda: document["layers"][1].pop("bias"),
        "a tie": lambda: document["tied"].update({"head.weight": "b.weight"}),
        "the inputs": lambda: document["inputs"][0].update(shape=[3, 4, 5]),
        "the outputs": lambda: document.update(outputs=["z"]),
        "an unknown key": lambda: document.update(more=1),
    }  # fmt: skip
    changes[name]()
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    return assemble(rows, text, digest)


CHANGES = [
    "a scale by one code", "a scale by one code less", "the exponent of scales", "an integer bias by one",
    "a float bias by one bit", "an integer", "a tensor beside the layers", "an activation's scale", "a zero point",
    "an activation's bits", "the order of activations", "the order of layers", "a layer's activation",
    "a layer's BatchNorm", "an epsilon", "whether a layer has a bias", "a tie", "the inputs", "the outputs",
    "an unknown key",
]  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_value_is_found_although_all_checksums_are_right(name):
    assert problems(changed_content(name), inference_model()) != []


def test_a_repeated_key_in_the_metadata_is_found_by_verifier_and_reader():
    rows, metadata, digest = disassemble(pack(inference_model(), inference=True))
    repeated = metadata.replace(b'"tied":{', b'"tied":{"head.weight":"b.weight",', 1)
    content = assemble(rows, repeated, digest)
    assert_rejected(read_csq, content, "key 'head.weight' is repeated")
    ((_, problem),) = problems(content, inference_model())
    assert "not written as csqtool writes them" in problem
