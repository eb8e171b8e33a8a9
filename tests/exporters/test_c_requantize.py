"""The C inference that rounds in float32 (--requantize float): bit for bit what docs/c-inference.md says."""

from __future__ import annotations

import math
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from csqtool.errors import ConfigError
from csqtool.exporting import Origin
from csqtool.nn.post_training import post_training_model
from csqtool.verifying.c_numbers import CGrid
from csqtool.verifying.c_program import WARNINGS
from exporters.c import CExporter
from exporters.c.fixed_point import float_factors
from exporters.c.options import COptions
from exporters.c.text import kernel
from tests.support.c_cases import NETS
from tests.support.c_nets import CExport, export_c

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")
# Those that round sums, additions, products and averages.
ROUNDED = (
    "residual, depthwise, flipped channels", "4-bit activations", "nine-bit weights", "bytes", "branches", "products",
    "one dimension", "vision transformer",
)  # fmt: skip
QUICK, LONG = ROUNDED[:1], ("nine-bit weights", "branches", "products")


def built(name: str, **options: object) -> CExport:
    make, shape, more = NETS[name]
    torch.manual_seed(0)
    return export_c(make(), shape, **more, **options, requantize="float")


@needs_compiler
@pytest.mark.parametrize("name", [
    pytest.param(n, marks=[pytest.mark.long if n in LONG else pytest.mark.slow] * (n not in QUICK)) for n in ROUNDED
])  # fmt: skip
def test_the_code_computes_every_bit_that_the_page_defines(name: str) -> None:
    export = built(name)
    assert "to_grid" not in export.files["model.c"].decode()  # nor any product of 64 bits
    export.assert_faithful()


@needs_compiler
@pytest.mark.slow
def test_one_header_computes_the_same_bits() -> None:
    built("bytes", single_file=True).assert_faithful()


@pytest.mark.parametrize("cc", [
    pytest.param(cc, marks=pytest.mark.skipif(shutil.which(cc) is None, reason=f"{cc} is not installed"))
    for cc in ("gcc", "clang")
])  # fmt: skip
@pytest.mark.parametrize("name", [
    pytest.param(n, marks=[pytest.mark.long if n == "products" else pytest.mark.slow]) for n in ROUNDED
])  # fmt: skip
def test_compilers_warn_of_nothing_and_agree_at_every_level(name: str, cc: str) -> None:
    built(name).assert_same_at_every_level(cc)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
@pytest.mark.long
def test_the_compiler_finds_vectors_for_the_rounding(tmp_path: Path) -> None:
    for name, content in built(ROUNDED[0]).files.items():
        (tmp_path / name).write_bytes(content)
    command = ["gcc", "-std=c99", "-O3", "-c", "model.c", "-fopt-info-vec"]
    told = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stderr
    lines = (tmp_path / "model.c").read_text().splitlines()
    found = {lines[int(line.split(":")[1]) - 1].strip() for line in told.splitlines() if "loop vectorized" in line}
    assert any("whole[i] = on_grid((float)sums[i] * factor[i]" in line for line in found), found
    assert any("j < b_count" in line for line in found), found


ROUNDING = """#include <float.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
%s
int main(void) {
    struct { float steps; int32_t zero, low, high; } x;
    while (fread(&x, sizeof x, 1, stdin) == 1) {
        const int32_t found = on_grid(x.steps, x.zero, x.low, x.high);
        fwrite(&found, sizeof found, 1, stdout);
    }
    return 0;
}
"""


def steps_to_round() -> np.ndarray:
    """Return floats around every half step, those next to them, large ones, and the smallest."""
    halves = np.arange(-700, 700, dtype=np.float32) / np.float32(2)
    large = np.ldexp(np.float32(1), np.arange(-149, 62)).astype(np.float32)
    values = np.concatenate([halves, large, -large, 3 * large[:-2], np.float32([0.0, -0.0, 12582912.0, -12582912.0])])
    beside = [np.nextafter(values, np.float32(way)) for way in (-np.inf, np.inf)]
    return np.concatenate([values, *beside]).astype(np.float32)


@needs_compiler
def test_rounding_in_float_is_exact_for_every_size_of_a_number(tmp_path: Path) -> None:
    (tmp_path / "one.c").write_text(ROUNDING % (kernel("precision") + kernel("on_grid")))
    flags = [*WARNINGS, "-O2", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
    subprocess.run(["cc", *flags, "one.c", "-o", "one"], cwd=tmp_path, check=True)
    steps = steps_to_round()
    for zero, low, high in ((0, 0, 255), (255, 0, 255), (3, 1, 200), (128, 128, 128)):
        rows = np.zeros(len(steps), [("steps", "f4"), ("zero", "i4"), ("low", "i4"), ("high", "i4")])
        rows["steps"], rows["zero"], rows["low"], rows["high"] = steps, zero, low, high
        done = subprocess.run([tmp_path / "one"], input=rows.tobytes(), check=True, capture_output=True)
        found = np.frombuffer(done.stdout, np.int32)
        wanted = [min(max(round(float(one)) + zero, low), high) for one in steps]  # Python's round is half to even
        assert found.tolist() == wanted
        grid = CGrid(np.float32(1), zero, low, high, in_float=True)
        assert (grid.nearest(steps) + zero).tolist() == wanted


@given(st.floats(2**-60, 2**29, allow_subnormal=False), st.integers(-(2**31), 2**31 - 1))
def test_sums_in_float_are_rounded_before_and_after_their_factor(value: float, total: int) -> None:
    def float32(exact: Fraction) -> Fraction:
        """Round to 24 bits, half to even."""
        if not exact:
            return exact
        scale = Fraction(2) ** (24 - math.frexp(float(abs(exact)))[1])
        step = scale if round(abs(exact) * scale) < 2**25 else scale / 2
        return round(exact * step) / step

    factor_in_float = float_factors([value])[0]
    assert Fraction(float(factor_in_float)) == float32(Fraction(value))
    exact = float32(float32(Fraction(total)) * Fraction(float(factor_in_float)))
    grid = CGrid(np.float32(1), 100, 0, 255, in_float=True)
    found = int(grid.scaled(np.array([total]), np.array([value]))[0])
    assert found == min(max(round(exact) + 100, 0), 255) - 100


def test_rounding_in_float_is_for_an_inference_of_quantized_activations(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown requantize 'floats'; did you mean 'float'"):
        COptions(requantize="floats")
    with pytest.raises(ConfigError, match="--requantize is for an inference"):
        COptions(content="weights", requantize="fixed")
    module = nn.Linear(4, 2)
    model = post_training_model(module, [torch.randn(4, 4)], planes=3, act_bits=None)
    for content in ("auto", "inference"):
        exporter = CExporter(COptions(content=content, requantize="float"))
        with pytest.raises(ConfigError, match=r"--requantize is for quantized activations \(--act-bits\)"):
            exporter.export(model, tmp_path / "c", origin=Origin(factory=module))
    assert not (tmp_path / "c").exists()
