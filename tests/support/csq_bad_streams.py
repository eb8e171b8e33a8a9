"""Rows and streams of `.csq` files that every reader has to refuse, each with words of the message."""

import struct

from tests.support.csq_files import brute_force_stream
from tests.support.csq_handmade import row

ROWS = {
    "a name longer than the table": (row("w", "U8", 0, 8, (1,), b"x", name_size=200), "table ends inside"),
    "more axes than there are": (row("w", "U8", 0, 8, (1,), b"x", rank=32), "table ends inside"),
    "33 axes": (row("w", "U8", 0, 8, (1,) * 33, b"x"), "33 axes"),
    "a dimension of zero": (row("w", "U8", 0, 8, (0,), b""), "shape"),
    "a zero that hides an overflow": (row("w", "U8", 0, 8, (0, 2**32 - 1), b""), "shape"),
    "2^64 elements": (row("w", "U8", 0, 8, (2**31, 2**31, 4), b""), "elements"),
    "2^1024 elements": (row("w", "U8", 0, 8, (2**32 - 1,) * 32, b""), "elements"),
    "an unknown dtype": (row("w", "U8", 0, 8, (1,), b"x") | {"dtype": 13}, "dtype 13"),
    "an unknown encoding": (row("w", "I8", 8, 8, (1,), b"x"), "encoding 8"),
    "raw of another width": (row("w", "F32", 0, 16, (1,), b"xx"), "bits"),
    "half of float64": (row("w", "F64", 5, 16, (1,), b"xx"), "half|F32"),
    "half of 32 bits": (row("w", "F32", 5, 32, (1,), b"xxxx"), "half|F32|16"),
    "dense float": (row("w", "F32", 1, 3, (1,), b"x"), "I8"),
    "0 bits": (row("w", "I8", 1, 0, (1,), b""), "bits"),
    "10 bits": (row("w", "I16", 1, 10, (1,), b"xx"), "bits"),
    "9 bits in a byte": (row("w", "I8", 1, 9, (1,), b"xx"), "bits"),
    "3-bit ternary": (row("w", "I8", 2, 3, (1,), b"\1"), "bits"),
    "a length below the bits": (row("w", "I8", 1, 3, (8,), b"xx"), "length"),
    "a length above the bits": (row("w", "I8", 1, 3, (8,), b"xxxx"), "length"),
    "a length past the end": (row("w", "U8", 0, 8, (2**31,), b"", length=2**31), "truncated"),
    "a length of 2^64 - 1": (row("w", "I8", 4, 3, (8,), b"", length=2**64 - 1), "truncated"),
    "a length of 2^63": (row("w", "I8", 3, 3, (8,), b"", length=2**63), "truncated"),
    "padding bits": (row("w", "I8", 1, 3, (2,), b"\x45"), "padding bits"),
    "a wrong checksum": (row("w", "I8", 1, 3, (2,), b"\x05", crc32=1), "damaged"),
    "a boolean of 2": (row("w", "BOOL", 0, 8, (2,), b"\1\2"), "neither 0 nor 1"),
    "a ternary byte of 243": (row("w", "I8", 2, 2, (5,), b"\xf3"), "242"),
    "ternary padding": (row("w", "I8", 2, 2, (2,), b"\x09"), "padding"),
    "a 1 in one bit": (row("w", "I8", 2, 1, (1,), b"\2"), "fit"),
    "a codebook without bytes": (row("w", "I8", 3, 2, (1,), b""), "length|cut|short"),
    "a codebook cut short": (row("w", "I8", 3, 2, (1,), b"\3\0\0"), "length|cut|short"),
    "a codebook with bytes left": (row("w", "I8", 3, 2, (1,), b"\0\0\0\0"), "length"),
    "levels that descend": (row("w", "I8", 3, 3, (1,), b"\1\1\0\0\0\0"), "levels"),
    "a level twice": (row("w", "I8", 3, 3, (1,), b"\1\1\0\1\0\0"), "levels"),
    "a level beyond the bits": (row("w", "I8", 3, 2, (1,), b"\0\2\0"), "levels"),
    "pruned with one axis": (row("w", "I8", 6, 3, (2,), b"\1\1\1"), "two axes"),
    "pruned without bytes": (row("w", "I8", 6, 3, (1, 1), b""), "short"),
    "pruned channels cut short": (row("w", "I8", 6, 3, (9, 1), b"\1\1\0"), "short"),
    "pruned, pruned again": (row("w", "I8", 6, 3, (1, 1), b"\6\1\1\1"), "encoding 6"),
    "pruned, raw": (row("w", "I8", 6, 3, (1, 1), b"\0\1\1\1"), "encoding 0"),
    "pruned padding of rows": (row("w", "I8", 6, 3, (1, 2), b"\1\3\1\1"), "padding"),
    "pruned padding of columns": (row("w", "I8", 6, 3, (2, 1), b"\1\1\3\1"), "padding"),
    "pruned to nothing": (row("w", "I8", 6, 3, (2, 2), b"\1\0\1"), "no channel"),
    "pruned dense too short": (row("w", "I8", 6, 8, (2, 2), b"\1\3\2\1"), "length"),
    "pruned dense too long": (row("w", "I8", 6, 8, (2, 2), b"\1\1\2\1\1"), "length"),
    "pruned ternary too long": (row("w", "I8", 6, 2, (2, 2), b"\2\1\2\1\1"), "length"),
    "pruned ternary of 3 bits": (row("w", "I8", 6, 3, (2, 2), b"\2\1\2\1"), "bits"),
    "pruned stream padding": (row("w", "I8", 6, 3, (2, 2), b"\1\1\2\x45"), "padding"),
    "pruned entropy coder cut short": (row("w", "I8", 6, 3, (2, 2), b"\4\1\2\1"), "short"),
    "an index beyond the levels": (row("w", "I8", 3, 3, (1,), b"\2\0\0\1\0\2\0\3"), "index"),
    "codebook padding": (row("w", "I8", 3, 3, (1,), b"\1\0\0\1\0\x02"), "padding"),
}


def rans_stream(lowest=-1, frequencies=(1024, 2048, 1024), lanes=0, states=(1 << 16,), words=b"", count=None):
    packed = brute_force_stream(frequencies, 12)
    head = struct.pack("<hHB", lowest, len(frequencies) if count is None else count, lanes) + packed
    return head + struct.pack(f"<{len(states)}I", *states) + words


RANS = {
    "no bytes": (b"", "short"),
    "one symbol": (rans_stream(frequencies=(4095,)), "symbols"),
    "513 symbols": (rans_stream(count=513), "symbols"),
    "values beyond the bits": (rans_stream(lowest=1), "fit"),
    "values below the bits": (rans_stream(lowest=-3), "fit"),
    "2^11 lanes": (rans_stream(lanes=11), "lanes"),
    "2^255 lanes": (rans_stream(lanes=255), "lanes"),
    "more lanes than the elements have": (rans_stream(lanes=1, states=(1 << 16,) * 2), "lanes"),
    "states cut short": (rans_stream()[:-2], "short"),
    "a sum below 2^12": (rans_stream(frequencies=(1024, 2047, 1024)), "sum"),
    "a sum above 2^12": (rans_stream(frequencies=(1024, 2049, 1024)), "sum"),
    "a zero first": (rans_stream(frequencies=(0, 3072, 1024)), "zero"),
    "a zero last": (rans_stream(frequencies=(3072, 1024, 0)), "zero"),
    "a state too small": (rans_stream(states=(65535,)), "state"),
    "half a word": (rans_stream(words=b"x"), "half a word"),
    "words missing": (rans_stream(), "too early"),
    "table padding": (rans_stream()[:9] + b"\xf0" + rans_stream()[10:], "padding"),
}


def context_stream(*answers):
    """Return the context-coded stream of answers, each (context, yes); the context None does not learn."""
    learned, numbers = {}, []
    for name, yes in answers:
        p, n = learned.get(name, (32768, 0))
        f = 2048 if name is None else p // 16
        numbers.append((f, 0) if yes else (4096 - f, f))
        n = min(n + 1, 255)
        s = next(s for s in (8, 7, 6, 5, 4, 3, 2, 1) if n + 1 >= 2**s)
        learned[name] = (p + (65535 - p) // 2**s if yes else p - p // 2**s), n
    x, words = 1 << 16, b""
    for number, first in reversed(numbers):
        if x >= number << 20:
            words = struct.pack("<H", x % 65536) + words
            x //= 65536
        x = x // number * 4096 + x % number + first
    return struct.pack("<I", x) + words


def of_value(magnitude, *, longest=7):
    """Return the answers of an element without neighbours that is above zero and at least 15."""
    rest = magnitude - 14
    length = rest.bit_length() - 1
    answers = [("zero", 1)] + [(f"above {m}", 1) for m in range(1, 15)]
    answers += [(f"longer {i}", i < length) for i in range(min(length, longest) + 1)]
    return [*answers, *((None, rest >> i & 1) for i in reversed(range(length))), ("sign", 1)]


# Of shape 1 × 1 × 2 × 2 in three bits; the right stream is that of 1, 1, -2, 0.
CONTEXTS = {
    "no bytes": (b"", "short"),
    "half a state": (b"\0\0", "short"),
    "half a word": (bytes.fromhex("e890a81500"), "half a word|words of two"),
    "a state too small": (b"\xff\xff\0\0", "below 2\\^16"),
    "words missing": (b"\0\0\1\0", "too early"),
    "words left": (bytes.fromhex("e890a8150000"), "left"),
    "another state": (bytes.fromhex("e890a814"), "left|too early"),
    "a value of 15": (context_stream(*of_value(15)), "fit"),
    "a value of 269": (context_stream(*of_value(269)), "fit"),
    "a magnitude without an end": (context_stream(*of_value(14 + 256)), "no end|longer than 7"),
    "a value of 4": (context_stream(
        ("zero", 1), *((f"above {m}", m < 4) for m in range(1, 5)), ("sign", 1)), "fit"),
    "a value of -5": (context_stream(
        ("zero", 1), *((f"above {m}", m < 5) for m in range(1, 6)), ("sign", 0)), "fit"),
}  # fmt: skip


def one_value(count, lanes=None):
    """Return a stream of `count` times −1, of as many lanes as the specification says or of others."""
    wanted = max(1, min(count // 1024, 32), min(count // 4096, 1024))
    lanes = 1 << (wanted.bit_length() - 1) if lanes is None else lanes
    states, words = [1 << 16] * lanes, []
    for i in reversed(range(count)):
        x = states[i % lanes]
        if x >= 4095 << 20:
            words.append((x & 0xFFFF).to_bytes(2, "little"))
            x >>= 16
        states[i % lanes] = (x // 4095 << 12) + x % 4095
    return rans_stream(-1, (4095, 1), lanes.bit_length() - 1, states, b"".join(reversed(words)))
