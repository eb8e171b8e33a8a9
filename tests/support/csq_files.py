"""Models and byte builders that several tests of the `.csq` format share."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np

from csqtool.model_info import ModelInfo
from csqtool.quantized_model import ActivationQuantizer, QuantizedLayer, QuantizedModel

TESTS = Path(__file__).parents[1]
GOLDEN = TESTS / "golden"
SPECIFICATION = TESTS.parent / "docs" / "csq-format.md"
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
        info=ModelInfo({"model": "net.py:größe", "metrics": {"accuracy": 0.875}}),
    )


def one_layer(q, **more):
    return QuantizedModel((QuantizedLayer("w", np.asarray(q), np.float32(0.5), "11"),), (), more)


def brute_force_stream(values, bits):
    """The specification, word for word, in Python's long integers."""
    number = sum((int(v) % 2**bits) << (i * bits) for i, v in enumerate(values))
    return number.to_bytes(math.ceil(len(values) * bits / 8), "little")


def spread(count, low, high, terms=1):
    """Return `count` integers of low … high that look random, from arithmetic that no library can change."""
    i = np.arange(count, dtype=np.int64)
    total = sum((i * i * (7919 + 2 * t) + i * 104729 + t * 31) // 64 % (high - low + 1) for t in range(terms))
    return total // terms + low


def pruned(q, rows, columns):
    """Return `q` with these indices of the first and second axis all zero."""
    q = q.copy()
    q[rows], q[:, columns] = 0, 0
    return q


def layers_of(*integers):
    """Return a model with these arrays as layers `w0`, `w1`, ….

    The masks are those of eight planes: wide enough for every value that there can be.
    """
    layers = tuple(
        QuantizedLayer(f"w{i}", np.asarray(q), np.float32(0.5 + i), "11111111") for i, q in enumerate(integers)
    )
    return QuantizedModel(layers, (), {})


def correlated(shape, high, kind=np.int8, noise=0):
    """Return integers up to ±high whose kernels are smooth, as those of trained convolutions are."""
    depth = math.prod(shape[2:])
    amplitude = spread(shape[0] * shape[1], -high, high, 2)[:, None]  # (kernel, 1)
    inside = 8 - np.arange(depth) * 5 // depth  # falls along the kernel
    return (
        ((amplitude * inside + spread(amplitude.size * depth, -noise, noise).reshape(-1, depth)) // 8)
        .astype(kind)
        .reshape(shape)
    )


def golden_models():
    """Return name to (model, encoding) of the golden files: between them, every encoding and dtype."""
    widths = [spread(61, -(1 << (b - 1)), (1 << (b - 1)) - 1) for b in range(1, 10)]
    typed = [q.astype(np.int8 if b < 9 else np.int16).reshape(61, 1) for b, q in enumerate(widths, 1)]
    raw = {
        kind: (np.arange(7) * 3 % 5).astype(kind)
        for kind in ("?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f8", "c8")
    }
    halves = np.array([0.0, -0.0, 1.5, -65504, 2**-24, 2**-14, np.inf, -np.inf], np.float32).reshape(2, 4)
    return {
        "v2-small": (small_model(), "smallest"),
        "v2-dense": (layers_of(*typed), "dense"),
        "v2-ternary": (layers_of(
            spread(198, -1, 1).astype(np.int8).reshape(3, 66), np.array([1, 0, -1], np.int8),
        ), "smallest"),
        "v2-codebook": (layers_of(
            np.array([-100, -3, 0, 5, 90], np.int8)[spread(120, 0, 4)].reshape(2, 60),
            np.full((4, 4), -7, np.int8),
            np.array([-255, 255], np.int16)[spread(64, 0, 1)],
        ), "smallest"),
        "v2-rans": (layers_of(
            spread(5000, -7, 7, 3).astype(np.int8).reshape(50, 100), spread(4001, -100, 155, 6).astype(np.int16),
            (spread(700, 0, 40) == 0).astype(np.int8),
        ), "smallest"),
        "v2-pruned": (layers_of(*(
            pruned(spread(6 * 11 * 9, low, high, terms).astype(kind).reshape(6, 11, 3, 3), rows, columns)
            for kind, low, high, terms, rows, columns in (
                (np.int8, -1, 1, 1, [1, 2], [0, 8, 10]),  # ternary
                (np.int8, -7, 7, 5, [3], [4]),  # entropy-coded
                (np.int16, -255, 255, 1, [], [0, 1, 2, 3]),  # dense
                (np.int16, 200, 200, 1, [0, 5], []),  # one level
            )
        )), "smallest"),
        "v3-context": (layers_of(
            correlated((8, 6, 3, 3), 3, noise=5),
            pruned(correlated((9, 10, 5, 5), 2, noise=7), [0, 4, 8], [1, 9]),
            correlated((2, 2, 3, 130), 1, noise=8),  # rows too long for a neighbour above
            correlated((3, 2, 2, 40), 250, np.int16, 20),
            correlated((6, 7, 9), 15, noise=3),
            correlated((3, 3, 4, 4, 4), 14, noise=2),
            (spread(640, 0, 40) == 0).astype(np.int8).reshape(20, 32),
            spread(300, -4, 3).astype(np.int8),  # stays dense
        ), "context"),
        "v2-raw": (one_layer(np.zeros((2, 3), np.int8), **{**{f"t_{k.replace('?', 'b')}": a for k, a in raw.items()},
                                          "float": np.array([0.1, -np.pi], np.float32), "half": halves,
                                          "scalar": np.array(3.25, np.float32)}), "smallest"),
    }  # fmt: skip


# A change of the small model's metadata, and what the error says of it.
WRONG_METADATA = [
    ('"format_version":1', '"format_version":3', "format version 3"),
    ('"format_version":1', '"format_version":2', "a layer has an unknown key 'shape'"),  # an inference file's
    ('"format_version":1', '"format_version":true', "format version True"),
    ('"format_version":1', '"format_version":1.0', "format version 1.0"),
    ('"format_version":1', '"format_version":1,"x":' + "[" * 10_000 + "]" * 10_000, "not JSON"),
    ('"format_version":1', '"format_version":1,"x":' + "[" * 500 + "]" * 500, "more than 500 objects and lists"),
    ('"format_version":1', '"format_version":1,"x":NaN', "not finite"),
    ('"format_version":1', '"format_version":1,"x":[-Infinity]', "not finite"),
    ('"format_version":1', '"format_version":1,"x":1e999', "not finite"),
    ('"format_version":1', '"format_version":1,"x":"\\ud800"', "surrogates not allowed"),
    ('"format_version":1', '"format_version":1,"\\udc00":1', "surrogates not allowed"),
    ('"format_version":1', '"format_version":1,"format_version":1', "key 'format_version' is repeated"),
    ('"bit_width":3', '"bit_width":3,"bit_width":3', "key 'bit_width' is repeated"),
    ('"bits":4', '"bits":4,"bits":4', "key 'bits' is repeated"),
    ('"tied":{"head.weight"', '"tied":{"head.weight":"fc.weight","head.weight"', "key 'head.weight' is repeated"),
    ('"bit_width":3', '"bit_width":4', "bit_width is 3, the metadata say 4"),
    ('"bit_width":3', '"bit_width":3.0', "bit_width is 3.0, expected int"),
    ('"bit_width":3', '"bit_width":"3"', "bit_width is '3', expected int"),
    ('"bit_width":3', '"bit_width":3,"colour":1', "unknown key 'colour'"),
    ('"bit_width":3,', "", "'bit_width' is missing"),
    ('"elements":7', '"elements":7.0', "elements is 7.0, expected int"),
    ('"precision":3', '"precision":2', "precision is 3, the metadata say 2"),
    ('"shape":[7,1,1]', '"shape":[7,true,1]', r"shape is \[7, 1, 1\], the metadata say \[7, True, 1\]"),
    ('"shape":[7,1,1]', '"shape":[7]', "shape is"),
    ('"scale":0.125', '"scale":0.25', "scale is 0.125, the metadata say 0.25"),
    ('"scale":0.125', '"scale":"0.125"', "scale is '0.125', expected float"),
    ('"mask":"00000111"', '"mask":"2"', "mask must be zeros and ones"),
    ('"mask":"00000111"', '"mask":7', "mask is 7, expected str"),
    ('"bits":4', '"bits":4.7', "bits is 4.7, expected int"),
    ('"bits":4', '"bits":true', "bits is True, expected int"),
    ('"bits":4', '"bits":1e999', "not finite"),
    ('"bits":4', '"bits":99', "activation bits must be 2 to 8, got 99"),
    ('"bits":4', '"bits":' + "9" * 5000, "not JSON"),
    ('"name":"conv.weight"', '"name":"nowhere"', "there is no tensor 'nowhere'"),
    ('"name":"conv.weight"', '"name":"x\\ny"', r"there is no tensor 'x\\ny'"),
    ('"name":"conv.weight"', '"name":[]', r"name is \[\], expected str"),
    ('"layers":[', '"layers":[1,', "a layer is 1, expected an object"),
    ('"activations":[', '"activations":{},"x":[', r"activations is \{\}, expected a list"),
    ('"tied":{"head.weight":"fc.weight"}', '"tied":{"head.weight":"gone"}', "tied to layers that do not exist: gone"),
    ('"tied":{"head.weight":"fc.weight"}', '"tied":[]', r"tied is \[\], expected an object"),
    ('"tied":{"head.weight":"fc.weight"}', '"tied":{"head.weight":[]}', "tied is"),
    ("{", "", "not JSON"),
    ("{", "[{", "not JSON"),
]


def inference_model():
    """Return a model with what an inference file treats in its own way: BatchNorms, biases, quantized inputs, ties."""

    def floats(count, seed, low=0.1, high=1.0):
        return (low + (high - low) * spread(count + seed, 0, 999)[seed:] / 999).astype(np.float32)

    def batch_norm(name, channels, seed, gamma):
        return {
            f"{name}.weight": np.asarray(gamma, np.float32), f"{name}.bias": floats(channels, seed, -1),
            f"{name}.running_mean": floats(channels, seed + 1, -1), f"{name}.running_var": floats(channels, seed + 2),
            f"{name}.num_batches_tracked": np.array(seed, np.int64),
        }  # fmt: skip

    def layer(name, shape, high, scale, **more):
        q = spread(math.prod(shape), -high, high, 2).astype(np.int8).reshape(shape)
        return QuantizedLayer(name, q, np.float32(scale), "00001111", **more)

    step = np.float32(0.03) * np.float32(0.25)
    tensors = {
        "a.bias": floats(6, 3, -1), "b.bias": np.array([0.75, -0.125, 3.0, 1 / 3], np.float32),
        "d.bias": np.array([7, -40000, 12], np.int32).astype(np.float32) * step, "e.rest": floats(4, 5),
        **batch_norm("abn", 6, 10, [0.5, -0.7, 0, 1.25, -0.01, 2]),
        **batch_norm("cbn", 5, 20, [1, 1e-4, -300, 0.5, 0.25]),
        **batch_norm("gbn", 2, 30, [0.5, -0.5]),
    }  # fmt: skip
    return QuantizedModel(
        layers=(
            layer("stem.weight", (3, 2), 7, 0.25),
            layer("a.weight", (6, 3, 3, 3), 3, 0.05, input_quantizer="a.input", batch_norm="abn",
                  batch_norm_epsilon=1e-5),
            layer("c.weight", (5, 6, 1, 1), 15, 0.02, batch_norm="cbn", batch_norm_epsilon=1e-3),
            layer("d.weight", (3, 5), 1, 0.25, input_quantizer="c.output"),
            layer("b.weight", (4, 6), 7, 0.125),
            layer("g.weight", (2, 4), 3, 0.5, input_quantizer="a.input", batch_norm="gbn", batch_norm_epsilon=1e-5),
        ),
        activations=(ActivationQuantizer("a.input", np.float32(0.5), 3, 4),
                     ActivationQuantizer("c.output", np.float32(0.03), 0, 8)),
        tensors=tensors,
        tied={"head.weight": "stem.weight"},
        info=ModelInfo({"model": {"factory": "net.py:net"}, "input_shape": [3, 4, 4], "outputs": ["y"],
                        "inputs": [{"name": "x", "shape": [3, 4, 4], "dtype": "float32"}], "mine": [1]}),
    )  # fmt: skip


def golden_onnx():
    """Return an ONNX file of bytes that no library chooses; its weight is the small model's `conv.weight`."""
    weight = small_model().layers[0].q.tobytes()
    tensor = bytes([0x08, 7, 0x10, 3, 0x42, 1, ord("w"), 0x4A, len(weight)]) + weight  # dims, INT8, name, raw data
    graph = bytes([0x2A, len(tensor)]) + tensor
    return bytes([0x08, 13, 0x3A, len(graph)]) + graph  # IR version, graph


def with_right_checksums(content):
    """Repair the checksums, where the file's parts lie inside it, so that deeper rules are reached."""
    content = bytearray(content)
    if content[8:12] not in (b"\2\0\0\0", b"\3\0\0\0") or len(content) < 88:
        return bytes(content)
    sizes = [int.from_bytes(content[i : i + 4], "little") for i in (16, 20, 24)]
    starts = [88]
    for size in sizes:
        starts.append(starts[-1] + -(-size // 8) * 8)
    row, at = 88, starts[3]
    for _ in range(int.from_bytes(content[12:16], "little")):
        if row + 17 > min(88 + sizes[0], len(content)):
            break
        size = int.from_bytes(content[row + 8 : row + 16], "little")
        if at + size <= len(content):
            content[row + 4 : row + 8] = zlib.crc32(content[at : at + size]).to_bytes(4, "little")
        at += -(-size // 8) * 8
        row += 16 + 4 * content[row + 3]
        row += 1 + (content[row] if row < len(content) else 0)
    for i, (start, size) in enumerate(zip(starts, sizes, strict=False)):
        content[72 + 4 * i : 76 + 4 * i] = zlib.crc32(content[start : start + size]).to_bytes(4, "little")
    content[84:88] = zlib.crc32(content[:84]).to_bytes(4, "little")
    return bytes(content)
