"""The C inference: bit for bit what docs/c-inference.md says, compiled without warnings, clean under sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from csqtool.errors import ConfigError, ExportError
from csqtool.verifying.c_floats import evaluate
from csqtool.verifying.c_numbers import CGrid, factors
from csqtool.verifying.c_program import WARNINGS
from exporters.c.fixed_point import channel_factors, common_factors, factor
from exporters.c.memory import Block, plan
from exporters.c.options import COptions
from exporters.c.program import INPUT, Grid, Program, Table, Value
from exporters.c.storage import TRITS, store
from tests.support.c_cases import NETS
from tests.support.c_nets import CExport, export_c
from tests.support.onnx_nets import ConvNet

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")


def built(name: str) -> CExport:
    make, shape, options = NETS[name]
    torch.manual_seed(0)
    return export_c(make(), shape, **options)


QUICK = ("residual, depthwise, flipped channels", "functions")
SLOW = ("smooth functions", "smooth functions in float")


@needs_compiler
@pytest.mark.parametrize("name", [
    pytest.param(n, marks=[pytest.mark.slow if n in SLOW else pytest.mark.long]
                 * (n not in QUICK)) for n in NETS
])  # fmt: skip
def test_the_code_computes_every_bit_that_the_page_defines(name: str) -> None:
    built(name).assert_faithful()


@pytest.mark.parametrize("cc", [
    pytest.param(cc, marks=pytest.mark.skipif(shutil.which(cc) is None, reason=f"{cc} is not installed"))
    for cc in ("gcc", "clang")
])  # fmt: skip
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.long if n == "branches" else pytest.mark.slow])
                                  for n in NETS])  # fmt: skip
def test_compilers_warn_of_nothing_and_agree_at_every_level(name: str, cc: str) -> None:
    built(name).assert_same_at_every_level(cc)


@needs_compiler
def test_one_header_computes_the_same_bits() -> None:
    torch.manual_seed(0)
    export = export_c(ConvNet(), (3, 5, 5), single_file=True)
    assert set(export.files) == {"model.h", "main.c", "Makefile", "CMakeLists.txt", "arena.json"}
    export.assert_faithful()


@needs_compiler
@pytest.mark.long
def test_the_example_of_one_header_is_made(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for name, content in export_c(ConvNet(), (3, 5, 5), single_file=True).files.items():
        (tmp_path / name).write_bytes(content)
    subprocess.run(["make", f"CFLAGS={' '.join(WARNINGS)}"], cwd=tmp_path, check=True, capture_output=True)
    done = subprocess.run([tmp_path / "example"], check=True, capture_output=True, text=True)
    assert len(done.stdout.split()) == 5


def test_one_header_is_for_an_inference_only() -> None:
    with pytest.raises(ConfigError, match="--single-file is for an inference"):
        COptions(content="weights", single_file=True)
    with pytest.raises(ConfigError, match="single-file is true or false"):
        COptions(single_file="yes")


@needs_compiler
@pytest.mark.long
def test_what_the_arena_holds_before_changes_nothing() -> None:
    export = built("residual, depthwise, flipped channels")
    program, folder = export.program()
    with folder:
        outputs = [program.run(export.inputs.numpy(), fill=fill).output.tobytes() for fill in (0, 255)]
    assert outputs[0] == outputs[1]


@pytest.mark.long
def test_layers_are_stored_at_their_own_bits_unless_bytes_are_asked_for() -> None:
    planes = {"conv1.weight": 1, "depthwise.weight": 2, "conv2.weight": 3, "classifier.weight": 8}
    found = {}
    for weights in ("auto", "int8"):
        torch.manual_seed(0)
        found[weights] = export_c(ConvNet(), (3, 8, 8), planes=planes.__getitem__, weights=weights).storage
    assert found["auto"] == {
        "conv1.weight": "ternary, 1.6 bits", "depthwise.weight": "3 bits", "conv2.weight": "4 bits",
        "classifier.weight": "9 bits",
    }  # fmt: skip
    assert set(found["int8"].values()) == {"int8", "9 bits"}


class Running(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cumsum(self.embed(x), -1))


class Folded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(1, 1, 2), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x.flatten(0, 1).unsqueeze(1)).reshape(-1, 9))  # each row by itself


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(4, 8), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.one(x), self.other(x)


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (
            Running,
            (4,),
            "does not cover CumSum 'cumsum': the operator has a kernel neither for integers nor for floats",
        ),
        (Folded, (3, 4), "does not cover Conv 'conv': .* other axes are merged into the batch"),
        (TwoOutputs, (4,), "one input and one output; the outputs are"),
        (Volume, (1, 3, 3, 3), "does not cover Conv 'output': it has 3 dimensions"),
    ],
)
def test_what_is_not_covered_is_named(module: type[nn.Module], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ExportError, match=message) as error:
        export_c(module(), shape)
    assert "--content weights" in str(error.value)


@pytest.mark.parametrize(("kind", "exact"), [
    ("Exp", torch.exp), ("Erf", torch.erf), ("Tanh", torch.tanh), ("Sigmoid", torch.sigmoid),
    ("Softplus", torch.nn.functional.softplus),
])  # fmt: skip
def test_functions_in_float_are_those_of_torch_but_for_rounding(kind: str, exact: Callable[[Tensor], Tensor]) -> None:
    x = torch.linspace(-9, 9, 10_001)
    found = torch.from_numpy(evaluate(kind, [x.numpy()], {}))
    torch.testing.assert_close(found.double(), exact(x.double()), rtol=4e-7, atol=5e-7)


def test_softmax_and_layer_norm_in_float_are_those_of_torch_but_for_rounding() -> None:
    x = torch.randn(3, 4, 33, generator=torch.Generator().manual_seed(0))
    weight, bias = torch.linspace(-1, 1, 33), torch.linspace(2, 3, 33)
    norm = torch.nn.functional.layer_norm(x.double(), (33,), weight.double(), bias.double(), 1e-5)
    found = evaluate("LayerNormalization", [x.numpy(), weight.numpy(), bias.numpy()], {"epsilon": 1e-5})
    torch.testing.assert_close(torch.from_numpy(found).double(), norm, rtol=2e-6, atol=2e-6)
    found = evaluate("Softmax", [100 * x.numpy()], {"axis": -1})
    torch.testing.assert_close(torch.from_numpy(found).double(), (100 * x.double()).softmax(-1), rtol=2e-5, atol=1e-6)


numbers = st.floats(2**-70, 2**29, allow_subnormal=False)


@given(numbers, st.integers(-(2**31), 2**31 - 1))
def test_a_factor_and_its_rounding_are_those_of_the_reference(value: float, total: int) -> None:
    found = factor(value)
    multiplier, shift = factors(value)
    assert found == (int(multiplier), int(shift))
    assert abs(found.multiplier / 2**found.shift - value) <= value * 2**-31 or found.shift == 62
    grid = CGrid(np.float32(1), 100, 0, 255)
    exact = total * found.multiplier  # Python's integers have no end, and its round is half to even
    whole, rest = divmod(exact, 2**found.shift)
    whole += rest * 2 > 2**found.shift or (rest * 2 == 2**found.shift and whole % 2)
    assert int(grid.rounded(np.int64(exact), np.int64(found.shift))) == min(max(whole + 100, 0), 255) - 100


@given(st.lists(numbers, min_size=1, max_size=4))
def test_the_factors_of_channels_share_the_shift_of_the_largest(values: list[float]) -> None:
    found = channel_factors(values)
    assert {one.shift for one in found} == {factor(max(values)).shift}
    for one, value in zip(found, values, strict=True):
        assert abs(one.multiplier / 2**one.shift - value) <= 2.0**-one.shift
        assert one.multiplier < 2**31


@given(numbers, numbers)
def test_two_factors_share_a_shift_and_stay_below_31_bits(first: float, second: float) -> None:
    one, other, shift = common_factors(first, second)
    assert max(one, other) <= 2**30
    assert abs(one / 2**shift - first) <= 2**-shift
    assert abs(other / 2**shift - second) <= 2**-shift


@given(st.data())
def test_integers_are_read_from_their_fields(data: st.DataObject) -> None:
    low = data.draw(st.integers(-255, 200))
    levels = data.draw(
        st.lists(st.integers(low, min(255, low + data.draw(st.integers(0, 300)))), min_size=1, max_size=5)
    )
    q = np.array(data.draw(st.lists(st.lists(st.sampled_from(levels), min_size=7, max_size=7), min_size=1, max_size=3)))
    stored = store(q, "auto")
    for row, bytes_ in zip(q, stored.rows, strict=True):
        if stored.is_plain:
            fields = bytes_.view(np.int8).tolist()
        elif stored.encoding == TRITS:
            fields = [int(bytes_[i // 5]) // 3 ** (i % 5) % 3 for i in range(7)]
        else:
            whole = int.from_bytes(bytes_.tobytes(), "little")
            fields = [whole >> (i * stored.bits) & (2**stored.bits - 1) for i in range(7)]
        assert [stored.base + stored.step * field for field in fields] == row.tolist()
    assert stored.rows.shape[1] <= 7 * (2 if stored.is_wide else 1)


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 3)), min_size=1, max_size=8))
def test_values_that_are_alive_at_a_time_share_no_byte(given_: list[tuple[int, int]]) -> None:
    """Each step reads one of the values before it."""
    grid = Grid(np.float32(1), 0)
    values = [Value(INPUT, (7,), (0,), grid)]
    steps, sizes = [], []
    for number, (size, back) in enumerate(given_):
        source = values[max(0, len(values) - 1 - back)]
        output = Value(number, (size,), (0,), grid)
        steps.append(Table((source,), output))
        sizes.append(size)
        values.append(output)
    found = plan(Program(values[0], "input", (1,), steps, sizes))
    assert found.least <= found.size
    last = {v.buffer: max([n for n, s in enumerate(steps) if v in s.inputs], default=v.buffer) for v in values[1:]}
    for a in values[1:]:
        for b in values[a.buffer + 2 :]:
            apart = (
                found.offsets[a.buffer] + sizes[a.buffer] <= found.offsets[b.buffer]
                or found.offsets[b.buffer] + sizes[b.buffer] <= found.offsets[a.buffer]
            )
            in_place = last[a.buffer] == b.buffer and a in steps[b.buffer].inputs and sizes[a.buffer] == sizes[b.buffer]
            assert apart or last[a.buffer] < b.buffer or in_place


def test_blocks_meet_where_they_share_a_step() -> None:
    assert Block(1, 0, 2).meets(Block(1, 2, 3))
    assert not Block(1, 0, 1).meets(Block(1, 2, 3))


def random_net(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a chain of convolutions of odd sizes, and the shape of its input."""
    channels, size = draw(st.integers(1, 5)), draw(st.integers(5, 17))
    layers: list[nn.Module] = []
    shape = (channels, size, draw(st.integers(5, 9)))
    for _ in range(draw(st.integers(1, 3))):
        groups = draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0]))
        out = groups * draw(st.integers(1, 3))
        kernel, dilation = draw(st.sampled_from([1, 2, 3])), draw(st.integers(1, 2))
        padding = draw(st.integers(dilation * (kernel - 1) // 2, dilation * (kernel - 1)))
        layers.append(nn.Conv2d(channels, out, kernel, draw(st.integers(1, 2)), padding, dilation, groups))
        layers.append(draw(st.sampled_from([nn.ReLU(), nn.ReLU6(), nn.Identity(), nn.Hardswish(), nn.Sigmoid()])))
        channels = out
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3)]
    return nn.Sequential(*layers), shape


def check_random(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 99)))
    module, shape = data.draw(st.composite(random_net)())
    planes = data.draw(st.integers(1, 8))
    try:
        how = data.draw(st.sampled_from(["float", "fixed"]))
        export = export_c(module, shape, planes=planes, act_bits=data.draw(st.integers(2, 8)), count=4, requantize=how)
    except ExportError as error:  # chance may make activations of almost nothing
        reason = str(error)
    else:
        reason = ""
        export.assert_faithful()
    assert not reason or "its bias does not fit" in reason or "too far apart" in reason


@needs_compiler
@settings(max_examples=2, derandomize=True)
@given(st.data())
def test_random_networks_are_computed_bit_for_bit(data: st.DataObject) -> None:
    check_random(data)


@needs_compiler
@pytest.mark.slow
@settings(max_examples=200)
@given(st.data())
def test_many_random_networks_are_computed_bit_for_bit(data: st.DataObject) -> None:
    check_random(data)


def test_the_wheel_carries_the_kernels() -> None:
    import exporters.c
    from exporters.c.parts import KERNELS

    folder = Path(exporters.c.__file__).parent / "kernels"
    assert {f.stem for f in folder.glob("*.c")} == set(KERNELS)
