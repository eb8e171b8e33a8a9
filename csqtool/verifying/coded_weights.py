"""Coded weights of an ONNX file, decoded from the attributes of its nodes: bit after bit, as docs/onnx.md says.

The functions of a file compute the same with operators on whole rows, and other levels evaluate those. Here a code must
also be the one that the specification allows: nothing is left over in it, and every symbol of a table occurs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from csqtool.quantized_model import QuantizedModel
from csqtool.verifying.weights import Problem, array_differences, expected_in_onnx

DOMAIN = "csqtool"
SYMBOLS = "Symbols"
WIDEST = 8


def coded_problems(proto: onnx.ModelProto, model: QuantizedModel) -> Iterator[Problem]:
    """Yield what differs between the coded weights of a file and the finalized model, or breaks the specification.

    Args:
        proto: the file, with its functions.
        model: the finalized model.
    """
    codes: dict[str, list[int]] = {}
    layers = {layer.name: layer for layer in model.layers}
    parts: dict[str, list[tuple[int, int]]] = {}
    for node in proto.graph.node:
        if node.domain != DOMAIN or len(node.output) != 1:
            continue
        name, given = node.output[0], {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        try:
            if node.op_type == SYMBOLS:
                codes[name] = decoded_symbols(given)
            elif is_coded(node):
                parts.setdefault(node.input[0], []).append((given["begin"][0], given["end"][0]))
                found = decoded_integers(codes[node.input[0]], given)
                wanted = expected_in_onnx(model, layers[name]).q
                yield from ((name, f"coded {text}") for text in array_differences(found, wanted, "integers"))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            yield name, f"its code breaks the specification: {str(error) or type(error).__name__}"
    for name, symbols in codes.items():
        ends = [0, *(end for _, end in sorted(parts.get(name, [])))]
        begins = [*(begin for begin, _ in sorted(parts.get(name, []))), len(symbols)]
        if begins != ends:
            yield name, "its symbols are not those of the layers, one after the other"


def is_coded(node: onnx.NodeProto) -> bool:
    """Tell whether a node of a file's own function gives coded integers."""
    return node.domain == DOMAIN and len(node.input) == 1 and any(a.name == "begin" for a in node.attribute)


def decoded_symbols(given: dict[str, Any]) -> list[int]:
    """Return the symbols of a code.

    Args:
        given: its attributes: `prefix`, `suffix` and `widths`.

    Raises:
        ValueError: they are not as the specification says.
    """
    prefix, suffix = _bits(given["prefix"]), _bits(given["suffix"])
    widths = [int(width) for width in given["widths"]]
    if not all(0 <= width <= WIDEST for width in widths):
        raise ValueError(f"classes of {min(widths)} to {max(widths)} bits")
    first = [0]
    for width in widths:
        first.append(first[-1] + 2**width)
    *runs, rest = prefix.split("1")
    if "0" not in rest or len(rest) > 8:
        raise ValueError(f"the prefix ends with {len(rest)} zeros")
    symbols, place = [], 0
    for run in runs:
        if len(run) >= len(widths):
            raise ValueError(f"a symbol of the class {len(run)}, where there are {len(widths)}")
        width = widths[len(run)]
        symbols.append(first[len(run)] + int("0" + suffix[place : place + width][::-1], 2))
        place += width
    if len(suffix) != 8 * (place // 8 + 2) or "1" in suffix[place:]:
        raise ValueError(f"the suffix has {len(suffix)} bits, of which its symbols take {place}")
    return symbols


def decoded_integers(symbols: list[int], given: dict[str, Any]) -> NDArray[Any]:
    """Return a layer's integers.

    Args:
        symbols: of the code.
        given: the layer's attributes: `begin`, `end`, `levels` and `shape`.

    Raises:
        ValueError: they are not as the specification says.
    """
    begin, end = (int(given[name][0]) for name in ("begin", "end"))
    levels = onnx.numpy_helper.to_array(given["levels"])
    shape = tuple(int(size) for size in given["shape"])
    if not 0 <= begin < end <= len(symbols) or levels.ndim != 2:
        raise ValueError(f"the symbols {begin} to {end} of {len(symbols)}, a table of {levels.ndim} axes")
    own = np.array(symbols[begin:end])
    if sorted(set(own.tolist())) != list(range(len(levels))) or len(np.unique(levels, axis=0)) != len(levels):
        raise ValueError(f"a table of {len(levels)} groups, of which not each occurs, or one twice")
    flat, count = levels[own].reshape(-1), int(np.prod(shape))
    if not 0 <= flat.size - count < levels.shape[1] or flat[count:].any():
        raise ValueError(f"{flat.size} integers for the shape {list(shape)}")
    return np.asarray(flat[:count].reshape(shape))


def _bits(tensor: onnx.TensorProto) -> str:
    """Return a string of bits, lowest of the first byte first."""
    array = onnx.numpy_helper.to_array(tensor)
    if array.dtype != np.uint8 or array.ndim != 2 or array.shape[1] != 1:
        raise ValueError(f"bits in {array.dtype}{list(array.shape)}")
    return "".join(f"{byte:08b}"[::-1] for byte in array.tobytes())
