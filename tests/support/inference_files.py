"""Inference files of one small layer, with records of scales and biases that are given word by word."""

import numpy as np

from csqtool.csq import pack
from csqtool.csq.inference import CHANNELS
from csqtool.quantized_model import QuantizedLayer, QuantizedModel
from tests.support.csq_handmade import assemble, disassemble


def bare():
    """Return a model of one layer with two channels and a BatchNorm."""
    norm = {f"bn.{part}": np.array([0.5, 1], np.float32) for part in ("weight", "bias", "running_mean", "running_var")}
    layer = QuantizedLayer("l.weight", np.array([[1], [-1]], np.int8), np.float32(0.5), "1", None, "bn", 1e-5)
    return QuantizedModel((layer,), (), {**norm, "bn.num_batches_tracked": np.array(0, np.int64)})


def one_record(kinds, *words):
    """Return the inference file of this model, with these words as its record."""
    stored = np.array([kinds, *words], "<u2").tobytes()
    rows, metadata, digest = disassemble(pack(bare(), inference=True))
    changed = {CHANNELS: {"stored": stored, "length": len(stored), "shape": (len(stored) // 2,)}}
    return assemble([r | changed.get(r["name"].decode(), {}) for r in rows], metadata, digest)


ZEROS = [0] * 4
STREAMS = {
    "no scales": one_record(16 + 256),
    "an unknown kind of scales": one_record(2 + 256, *ZEROS, *ZEROS),
    "too many bits of exponent": one_record(22 + 256, 0, 0, 0, *ZEROS),
    "an unknown kind of biases": one_record(16 + 5 * 256, 0, 0, 0, *ZEROS),
    "scales missing": one_record(16 + 256, 0, 0),
    "biases missing": one_record(16 + 256, 0, 0, 0, 0, 0, 0),
    "a word too many": one_record(16 + 256, 0, 0, 0, *ZEROS, 0),
    "a scale beyond float32": one_record(16 + 256, 112, 0, 0, *ZEROS),
    "an exponent below float32": one_record(16 + 256, 65536 - 150, 0, 0, *ZEROS),
    "a scale of zero": one_record(1 + 256, 0, 0, 0, 0x3F80, *ZEROS),
    "a negative scale": one_record(1 + 256, 0, 0xBF80, 0, 0x3F80, *ZEROS),
    "an infinite scale": one_record(1 + 256, 0, 0x7F80, 0, 0x3F80, *ZEROS),
    "a bias that is not a number": one_record(16 + 256, 0, 0, 0, 0, 0x7FC0, 0, 0),
    "an infinite half": one_record(16 + 512, 0, 0, 0, 0x7C00, 0),
}
