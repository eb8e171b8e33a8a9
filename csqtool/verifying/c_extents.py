"""What each kernel of an inference in C reads and writes, from the constants of a call.

No kernel's loops depend on values, so that these are the bytes of every run. The kernels themselves are known.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

from csqtool.verifying.c_grammar import Array, Call, Place, Source, Structure

LARGEST = 2**31 - 1
VECTOR = 32  # kernels read rows of filters and windows up to a multiple of it


@dataclass(frozen=True)
class Span:
    """Bytes of a place: `rows` runs of `count`, `step` apart."""

    place: Place
    count: int
    rows: int = 1
    step: int = 0

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.place.at + (self.rows - 1) * self.step + self.count

    def meets(self, other: Span) -> bool:
        """Tell whether both may hold the same byte."""
        one, two = self.place, other.place
        return one.space == two.space and one.at < other.end and two.at < self.end


@dataclass(frozen=True)
class Uses:
    """What a call reads and writes, and the memory that is its own."""

    reads: tuple[Span, ...]
    write: Span
    room: Span | None = None


def traced(call: Call) -> Span:
    """Return the bytes that ``TRACE_VALUES`` hands out.

    Raises:
        ValueError: sizes and axes do not go together.
    """
    _, place, rank, *numbers = call.arguments
    sizes, axes = numbers[:rank], numbers[rank:]
    if rank < 0 or (numbers != [0] if rank == 0 else sorted(axes) != list(range(rank))) or min(sizes, default=1) < 1:
        raise ValueError("its axes are not those of its sizes")
    return Span(place, prod(sizes))


def _within(what: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{what} is {value}, not {low} … {high}")


def _window(numbers: Mapping[str, int]) -> None:
    for key in ("in", "out", "kernel", "stride", "dilation"):
        for axis in "hw":
            _within(f"{key}_{axis}", numbers[f"{key}_{axis}"], 1, 2**20)
    for axis in "hw":
        _within(f"pad_{axis}", numbers[f"pad_{axis}"], -(2**20), 2**20)
        reach = (
            numbers[f"out_{axis}"] * numbers[f"stride_{axis}"] + numbers[f"kernel_{axis}"] * numbers[f"dilation_{axis}"]
        )
        _within("what windows reach", reach, 1, 2**30)


def _grid(zero_point: int, low: int, high: int) -> None:
    for what, value in (("a zero point", zero_point), ("a bound", low), ("a bound", high)):
        _within(what, value, 0, 255)


def _layer(source: Source, layer: Structure, *, rows: bool = False) -> tuple[int, int, int]:
    """Check a layer; return the bytes of its input, its outputs, and the integers of a filter."""
    n = layer.numbers
    _window(n)
    for key in ("in_c", "out_c", "group_c", "filters_a_group", "row_bytes", "padded", "block"):
        _within(key, n[key], 1, 2**26)
    for key, low, high in (("spread_h", 1, 2**20), ("spread_w", 1, 2**20), ("each", 0, 1), ("wide", 0, 1),
                           ("in_zero", 0, 255), ("bits", 1, 9 if n["wide"] else 8), ("base", -512, 512),
                           ("step", -512, 512)):  # fmt: skip
        _within(key, n[key], low, high)
    _grid(n["out_zero"], n["low"], n["high"])
    channels = n["group_c"] if rows else n["in_c"]  # of an embedding, a number chooses a filter
    if n["out_c"] % n["filters_a_group"] or n["out_c"] // n["filters_a_group"] * n["group_c"] != channels:
        raise ValueError("its groups and channels do not fit")
    count = n["kernel_h"] * n["kernel_w"] * n["group_c"]
    fields = -(-count // 5) if layer.words["encoding"] == "TRITS" else -(-count * n["bits"] // 8)
    stored = count if layer.words["encoding"] == "PLAIN" else fields
    if layer.words["encoding"] == "PLAIN" and n["wide"]:
        raise ValueError("bytes have no nine bits")
    sizes = {"weights": (n["out_c"] - 1) * n["row_bytes"] + stored}
    sizes |= {key: n["out_c"] if n["each"] else 1 for key in ("multiplier", "steps") if key in layer.words}
    sizes |= {"bias": n["out_c"]} if "bias" in layer.words else {}
    if "multiplier" in layer.words:
        _within("shift", n["shift"], 1, 62)
    for key, size in sizes.items():
        array = source.arrays.get(layer.words[key])
        if array is None or array.size < size:
            raise ValueError(f"{layer.words[key]} has fewer than {size} numbers")
    return n["in_h"] * n["in_w"] * n["in_c"], n["out_h"] * n["out_w"] * n["out_c"], count


def _rounded(source: Source, layer: Structure) -> None:
    """Check that a layer has the factors that the code takes which rounds sums to a grid."""
    if not layer.words.keys() >= {"bias", "steps" if source.in_float else "multiplier"}:
        how = "in float" if source.in_float else "by integers"
        raise ValueError(f"its layer is not one of integers that ends on a grid {how}")


def _blocks(source: Source, layer: Structure, count: int, room: Place) -> Span:
    n = layer.numbers
    if "bias" in layer.words and n["block"] > source.most.get("MOST_FILTERS", 0):  # sums of floats are one at a time
        raise ValueError(f"it decodes {n['block']} filters at a time, more than MOST_FILTERS")
    if n["padded"] % VECTOR or n["padded"] < count:
        raise ValueError(f"its filters of {count} integers take {n['padded']} bytes")
    return Span(room, n["padded"] * (1 + n["block"] * (2 if n["wide"] else 1)))


def _conv(source: Source, layer: Structure, x: Place, y: Place, room: Place) -> Uses:
    bytes_in, bytes_out, count = _layer(source, layer)
    _rounded(source, layer)
    return Uses((Span(x, bytes_in),), Span(y, bytes_out), _blocks(source, layer, count, room))


def _conv_float(
    source: Source, layer: Structure, x: Place, y: Place, room: Place, next_c: int, next_at: int
) -> Uses:  # fmt: skip
    bytes_in, values, count = _layer(source, layer)
    n = layer.numbers
    if not layer.words.keys() >= {"steps", "bias"} or not n["each"]:
        raise ValueError("its layer is not one of integers that ends in floats")
    if (next_c, next_at) not in ((1, n["out_c"]), (n["out_h"] * n["out_w"], 1)):
        raise ValueError("its outputs are neither beside each other nor channel by channel")
    return Uses((Span(x, bytes_in),), Span(y, 4 * values), _blocks(source, layer, count, room))


def _layer_of_floats(
    source: Source, layer: Structure, x: Place, y: Place, room: Place, offsets: Array, distances: Array
) -> Uses:  # fmt: skip
    values_in, values, count = _layer(source, layer)
    n = layer.numbers
    if "steps" not in layer.words or "bias" in layer.words or not n["each"]:
        raise ValueError("its layer is not one of floats")
    if offsets.size != n["out_c"] or distances.size != 4:
        raise ValueError(f"it takes {n['out_c']} offsets and 4 distances")
    of_in, of_out = distances.values.reshape(2, 2).tolist()
    for side, channels, pair in (("in", n["in_c"], of_in), ("out", n["out_c"], of_out)):
        if pair not in ([n[f"{side}_h"] * n[f"{side}_w"], 1], [1, channels]):
            raise ValueError("its values are neither beside each other nor channel by channel")
    blocks = _blocks(source, layer, count, room)
    return Uses((Span(x, 4 * values_in),), Span(y, 4 * values), Span(room, blocks.count + 3 * n["padded"]))


def _embed(source: Source, layer: Structure, x: Place, y: Place, room: Place, count: int, step: str) -> Uses:
    _, _, row = _layer(source, layer, rows=True)
    n = layer.numbers
    if layer.words.keys() != {"weights", "encoding"} or n["kernel_h"] * n["kernel_w"] != 1 or count < 1:
        raise ValueError("its layer is not an embedding")
    if n["padded"] % VECTOR or n["padded"] < row:
        raise ValueError(f"its rows of {row} integers take {n['padded']} bytes")
    return Uses((Span(x, 4 * count),), Span(y, 4 * count * row), Span(room, n["padded"] * (2 if n["wide"] else 1)))


def _depthwise(source: Source, layer: Structure, x: Place, y: Place, room: Place) -> Uses:
    bytes_in, bytes_out, taps = _layer(source, layer)
    n = layer.numbers
    if any(n[key] != value for key, value in (("group_c", 1), ("filters_a_group", 1), ("wide", 0), ("spread_h", 1),
                                              ("spread_w", 1))):  # fmt: skip
        raise ValueError("its layer is not depthwise")
    _rounded(source, layer)
    if taps > source.most.get("MOST_TAPS", 0):
        raise ValueError(f"its filters have {taps} integers, more than MOST_TAPS")
    return Uses((Span(x, bytes_in),), Span(y, bytes_out), Span(room, taps * n["out_c"]))


def _combined(source: Source, a: Place, b: Place, y: Place, count: int, b_count: int, numbers: Array) -> Uses:
    if numbers.size != 8 or b_count < 1 or count % b_count:
        raise ValueError("it takes 8 numbers, and a second operand that is repeated")
    zero_a, zero_b, _, _, shift, zero, low, high = numbers.values.tolist()
    for grid in ((zero_a, 0, 0), (zero_b, 0, 0), (zero, low, high)):
        _grid(*grid)
    _within("shift", shift, 1, 62)
    return Uses((Span(a, count), Span(b, b_count)), Span(y, count))


def _scaled(
    terms: int, source: Source, a: Place, b: Place, y: Place, count: int, b_count: int, numbers: Array, factors: Array
) -> Uses:  # fmt: skip
    if numbers.size != 5 or factors.size != terms or b_count < 1 or count % b_count:
        raise ValueError(f"it takes 5 numbers, {terms} factors in float, and a second operand that is repeated")
    zero_a, zero_b, zero, low, high = numbers.values.tolist()
    for grid in ((zero_a, 0, 0), (zero_b, 0, 0), (zero, low, high)):
        _grid(*grid)
    return Uses((Span(a, count), Span(b, b_count)), Span(y, count))


def _pool(pool: Structure, x: Place, y: Place) -> Uses:
    n = pool.numbers
    _window(n)
    _within("channels", n["channels"], 1, 2**26)
    bytes_in, bytes_out = (n[f"{side}_h"] * n[f"{side}_w"] * n["channels"] for side in ("in", "out"))
    return Uses((Span(x, bytes_in),), Span(y, bytes_out))


def _pool_floats(source: Source, pool: Structure, x: Place, y: Place, is_mean: int, divisor: int) -> Uses:
    _within("the kind of pool", is_mean, 0, 1)
    _within("the divisor", divisor, 0, LARGEST)
    uses = _pool(pool, x, y)
    return Uses((Span(x, 4 * uses.reads[0].count),), Span(y, 4 * uses.write.count))


def _average(
    source: Source, pool: Structure, x: Place, y: Place, multiplier: Array, shift: Array, fixed: int, grid: Array
) -> Uses:  # fmt: skip
    count = pool.numbers["kernel_h"] * pool.numbers["kernel_w"]
    if multiplier.size != count or shift.size != count:
        raise ValueError(f"it takes a multiplier and a shift for each of {count} counts")
    _within("shift", int(shift.values.min()), 1, 62)
    _within("shift", int(shift.values.max()), 1, 62)
    return _average_scaled(source, pool, x, y, multiplier, fixed, grid)


def _average_scaled(
    source: Source, pool: Structure, x: Place, y: Place, factors: Array, fixed: int, grid: Array
) -> Uses:  # fmt: skip
    count = pool.numbers["kernel_h"] * pool.numbers["kernel_w"]
    if factors.size != count or grid.size != 4:
        raise ValueError(f"it takes a factor for each of {count} counts, and 4 numbers")
    _within("the count", fixed, 0, count)
    zero_in, zero, low, high = grid.values.tolist()
    _grid(zero_in, 0, 0)
    _grid(zero, low, high)
    return _pool(pool, x, y)


def _look_up(source: Source, x: Place, y: Place, count: int, table: Array) -> Uses:
    if table.size != 256:
        raise ValueError("a table has 256 entries")
    return Uses((Span(x, count),), Span(y, count))


def _take(source: Source, x: Place, y: Place, axes: Array, fill: int | None = None, size: int = 1) -> Uses:
    """Parts of a value; of floats (`size` 4) there is nothing outside, which `fill` stands for."""
    if axes.size != 20:
        raise ValueError("it takes 20 numbers")
    last, furthest, sizes = 0, 0, []
    for count, start, stride, length, distance in axes.values.reshape(4, 5).tolist():
        for value in (count, length):
            _within("a size", value, 1, 2**26)
        if distance < 0:
            raise ValueError("neighbours are less than nothing apart")
        ends = sorted((start, start + (count - 1) * stride))
        if fill is None and not 0 <= ends[0] <= ends[1] < length:
            raise ValueError("it takes what is outside")
        last += min(max(ends[1], 0), length - 1) * distance
        furthest += max(abs(end) for end in ends) * distance
        sizes.append(count)
    _within("what it reaches", furthest, 0, LARGEST)
    if fill is not None:
        _within("what is outside", fill, 0, 255)
    return Uses((Span(x, size * (last + 1)),), Span(y, size * prod(sizes)))


def _surround(source: Source, x: Place, y: Place, axes: Array, how: int, run: int) -> Uses:
    """A value and what padding repeats of it: no further than its size, or that of what is beside the border."""
    if axes.size != 16:
        raise ValueError("it takes 16 numbers")
    _within("how it repeats", how, 0, 2)
    _within("the bytes of a place", run, 1, 2**26)
    last, sizes = run, []
    for count, start, length, distance in axes.values.reshape(4, 4).tolist():
        for value in (count, length):
            _within("a size", value, 1, 2**26)
        most = (length - 1, 2**26, length)[how]  # places outside, on either side
        _within("where it begins", start, -most, 2**26)
        _within("where it ends", start + count, -most, length + most)
        _within("what neighbours are apart", distance, 0, 2**26)
        last += (length - 1) * distance
        sizes.append(count)
    _within("what it reaches", last, 1, LARGEST)
    return Uses((Span(x, last),), Span(y, run * prod(sizes)))


def _copy(
    source: Source, x: Place, y: Place, outer: int, count: int, run: int, table: Array | str
) -> Uses:  # fmt: skip
    if isinstance(table, Array) and table.size != 256:
        raise ValueError("a table has 256 entries")
    return Uses((Span(x, outer * count),), Span(y, count, outer, run))


def _upsample(source: Source, x: Place, y: Place, h: int, w: int, channels: int, times_h: int, times_w: int) -> Uses:
    if min(h, w, channels, times_h, times_w) < 1:
        raise ValueError("a size below 1")
    return Uses((Span(x, h * w * channels),), Span(y, h * w * channels * times_h * times_w))


def _repeat(source: Source, x: Place, y: Place, channels: int, h: int, w: int, times_h: int, times_w: int) -> Uses:
    uses = _upsample(source, x, y, h, w, channels, times_h, times_w)
    return Uses((Span(x, 4 * uses.reads[0].count),), Span(y, 4 * uses.write.count))


def _binary(source: Source, kind: str, a: Place, b: Place, y: Place, axes: Array) -> Uses:
    if axes.size != 12 or axes.values.min() < 0:
        raise ValueError("it takes 12 numbers, none of them negative")
    sizes, of_a, of_b = axes.values.reshape(4, 3).T.tolist()
    ends = [1 + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True)) for steps in (of_a, of_b)]
    return Uses((Span(a, 4 * ends[0]), Span(b, 4 * ends[1])), Span(y, 4 * prod(sizes)))


def _matrices(
    source: Source, a: Place, b: Place, y: Place, batches: int, rows: int, inner: int, columns: int, b_next: int
) -> Uses:  # fmt: skip
    if min(batches, rows, inner, columns) < 1 or b_next not in (0, inner * columns):
        raise ValueError("a size below 1, or matrices that overlap")
    of_b = (batches - 1) * b_next + inner * columns
    return Uses((Span(a, 4 * batches * rows * inner), Span(b, 4 * of_b)), Span(y, 4 * batches * rows * columns))


def _rows(rows: int, count: int) -> int:
    if min(rows, count) < 1:
        raise ValueError("a size below 1")
    return 4 * rows * count


def _normalize(
    source: Source, x: Place, y: Place, rows: int, count: int, weight: Array, bias: Array, epsilon: str
) -> Uses:  # fmt: skip
    if weight.size != count or bias.size != count:
        raise ValueError(f"it takes {count} weights and biases")
    return Uses((Span(x, _rows(rows, count)),), Span(y, _rows(rows, count)))


def _to_floats(source: Source, x: Place, y: Place, count: int, zero_point: int, scale: str) -> Uses:
    _grid(zero_point, 0, 0)
    return Uses((Span(x, count),), Span(y, 4 * count))


def _to_integers(
    source: Source, x: Place, y: Place, count: int, scale: str, zero_point: int, low: int, high: int
) -> Uses:  # fmt: skip
    _grid(zero_point, low, high)
    return Uses((Span(x, 4 * count),), Span(y, count))


def _join(source: Source, x: Place, y: Place, rows: int, count: int, total: int) -> Uses:
    return Uses((Span(x, _rows(rows, count)),), Span(y, 4 * count, rows, 4 * total))


USES: Mapping[str, Callable[..., Uses]] = {
    "conv": _conv, "conv_float": _conv_float, "depthwise": _depthwise, "add": _combined, "multiply": _combined,
    "add_scaled": functools.partial(_scaled, 2), "multiply_scaled": functools.partial(_scaled, 1),
    "average_scaled": _average_scaled,
    "max_pool": lambda source, pool, x, y: _pool(pool, x, y), "average_pool": _average, "look_up": _look_up,
    "take": _take, "surround": _surround, "copy": _copy, "upsample": _upsample, "dequantize": _to_floats,
    "binary": _binary,
    "unary": lambda source, kind, x, y, count: Uses((Span(x, 4 * count),), Span(y, 4 * count)),
    "choose": lambda source, condition, a, b, y, count: Uses(
        tuple(Span(one, 4 * count) for one in (condition, a, b)), Span(y, 4 * count)
    ),
    "matrices": _matrices,
    "softmax": lambda source, x, y, rows, count: Uses((Span(x, _rows(rows, count)),), Span(y, _rows(rows, count))),
    "normalize": _normalize,
    "mean": lambda source, x, y, rows, count: Uses((Span(x, _rows(rows, count)),), Span(y, 4 * rows)),
    "take_floats": lambda source, x, y, axes: _take(source, x, y, axes, None, 4), "join_floats": _join,
    "to_floats": _to_floats, "to_integers": _to_integers,
    "layer_of_floats": _layer_of_floats, "embed": _embed, "pool_floats": _pool_floats, "repeat_floats": _repeat,
    "blend_floats": _repeat,
    "pad_floats": lambda source, x, y, axes, fill: _take(source, x, y, axes, 0, 4),
    "memcpy": lambda source, output, x, count: Uses((Span(x, count),), Span(output, count)),
}  # fmt: skip
