"""Models and byte builders that several tests of the `.csq` format share."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from csqtool.quantized_model import ActivationQuantizer, QuantizedLayer, QuantizedModel

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
SPECIFICATION = HERE.parent / "docs" / "csq-format.md"
MAGIC = b"\x89CSQ\r\n\x1a\n"


def small_model():
    return QuantizedModel(
        layers=(
            QuantizedLayer(
                "conv.weight",
                np.array([-4, 3, 0, -1, 2, 1, -3], np.int8).reshape(7, 1, 1),
                np.float32(0.125),
                "00000111",
                input_quantizer="conv.input",
                batch_norm="bn",
            ),
            QuantizedLayer("fc.weight", np.array([[-255, 255, 17]], np.int16), np.float32(0.1), "11111111"),
        ),
        activations=(ActivationQuantizer("conv.input", np.float32(0.5), 3, 4),),
        tensors={
            "fc.bias": np.array([1.5, -0.25, 3.0], np.float32),
            "bn.num_batches_tracked": np.array(42, np.int64),
            "keep": np.array([True, False, True]),
        },
        tied={"head.weight": "fc.weight"},
        info={"model": "net.py:größe", "metrics": {"accuracy": 0.875}},
    )


def one_layer(q, **more):
    return QuantizedModel((QuantizedLayer("w", np.asarray(q), np.float32(0.5), "11"),), (), more)


def brute_force_stream(values, bits):
    """The specification, word for word, in Python's long integers."""
    number = sum((int(v) % 2**bits) << (i * bits) for i, v in enumerate(values))
    return number.to_bytes(math.ceil(len(values) * bits / 8), "little")
