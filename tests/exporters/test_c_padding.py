"""Padding in the C inference that repeats parts of a value, on integers and in float, and padding of unequal sides."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everybody knows

import csqtool
from csqtool.errors import ExportError
from csqtool.nn.post_training import post_training_model
from csqtool.verifying.c_operators import padded
from tests.support.c_edits import Edit, changed
from tests.support.c_nets import CExport, export_c

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")


class Surrounded(nn.Module):
    """Every way of padding, in front of the input and of convolutions, and kernels of even sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.reflect, self.replicate = nn.ReflectionPad2d((1, 2, 0, 1)), nn.ReplicationPad2d((2, 0, 3, 1))
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, (2, 4), padding="same")
        self.around = nn.Conv2d(4, 4, 3, padding=(2, 1), padding_mode="circular", groups=4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(self.replicate(self.reflect(x))))
        return self.last(F.max_pool2d(torch.relu(self.around(x)), 2))


class Rows(nn.Module):
    """One dimension, and padding of a convolution's own."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.first = nn.Conv1d(3, 4, 3, padding=2, padding_mode=mode)
        self.last = nn.Conv1d(4, 4, 4, padding="same", padding_mode=mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)))


class InFloat(nn.Module):
    """Padding of what no quantizer made, and what padding below 0 cuts off."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, (2, 3), padding="same", padding_mode="reflect")
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(torch.softmax(self.first(x), 1), (2, 1, 1, 2), mode="replicate")
        y = F.pad(F.pad(y, (0, 1, 2, 0), mode="circular"), (1, -4, 0, -1))
        return self.head(y)


NETS = {
    "every way": (Surrounded, (3, 5, 6), {}),
    "every way, rounded in float": (Surrounded, (3, 5, 6), {"requantize": "float"}),
    "every way, in float": (Surrounded, (3, 5, 6), {"act_bits": None, "content": "inference"}),
    "in float": (InFloat, (3, 5, 6), {}),
    "in float alone": (InFloat, (3, 5, 6), {"act_bits": None, "content": "inference"}),
    **{f"one dimension, {mode}": (lambda mode=mode: Rows(mode), (3, 7), {})
       for mode in ("reflect", "replicate", "circular")},
}  # fmt: skip
QUICK, LONG = ("every way",), ("every way, in float", "in float")


def built(name: str) -> CExport:
    make, shape, options = NETS[name]
    torch.manual_seed(0)
    return export_c(make(), shape, **{"count": 4, **options})


@needs_compiler
@pytest.mark.parametrize("name", [
    pytest.param(n, marks=[pytest.mark.long if n in LONG else pytest.mark.slow] * (n not in QUICK)) for n in NETS
])  # fmt: skip
def test_the_code_computes_every_bit_that_the_page_defines(name: str) -> None:
    built(name).assert_faithful()


@pytest.mark.parametrize(("mode", "name"), [
    ("reflect", "reflect"), ("edge", "replicate"), ("wrap", "circular"), ("constant", "constant"),
])  # fmt: skip
def test_padding_of_the_reference_is_torch_s(mode: str, name: str) -> None:
    x = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)
    left, right, top, bottom = (1, -2, 0, 3) if mode == "constant" else (4, 2, 3, 1)
    wanted = F.pad(x, (left, right, top, bottom), mode=name)
    found = padded(x.numpy(), {"mode": mode.encode()}, [np.array([0, 0, top, left, 0, 0, bottom, right])])
    assert np.array_equal(found, wanted.numpy())


class CutAndReflected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(torch.relu(self.conv(x)), (-1, 2, 0, 0), mode="reflect")


def test_padding_that_cuts_off_and_repeats_is_named() -> None:
    with pytest.raises(ExportError, match=r"does not cover Pad .*: it cuts off, and repeats what is left"):
        export_c(CutAndReflected(), (3, 5, 6))


CODE = {
    "the border as well": changed(r"2 \* size - 2 - at", "2 * size - 1 - at"),
    "the border alone": changed(r"at < 0 \? 0 : size - 1", "0"),
    "one place further": changed(r"at < 0 \? at \+ size : at - size", "at < 0 ? at + size - 1 : at - size"),
}


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", CODE)
def test_every_way_matters(name: str) -> None:
    export = built("every way")
    broken = replace(export, files=export.files | {"model.c": CODE[name](export.files["model.c"].decode()).encode()})
    program, place = broken.program()
    with place:
        found = program.run(export.inputs.numpy()).output
    assert found.tobytes() != np.ascontiguousarray(export.reference.run(export.inputs.numpy()).output).tobytes()


def first_number(array: str, index: int, to: int) -> Edit:
    return changed(rf"({array} = {{\s+(?:-?\d+, ){{{index}}})-?\d+", rf"\g<1>{to}")


CALLS = {
    "in front of what is repeated": (first_number(r"axes_0\[16\]", 9, -6), "where it begins"),
    "behind what is repeated": (first_number(r"axes_0\[16\]", 8, 13), "where it ends"),
    "beyond the value": (first_number(r"axes_0\[16\]", 11, 400), "bytes"),
    "another way": (changed(r"(surround\([^;]*, )0(, \d+\))", r"\g<1>3\2"), "how it repeats"),
    "other bytes": (changed(r"(surround\([^;]*, )4\)", r"\g<1>40)"), "surround: bytes"),
    "once more": (changed(r"( +)surround\(arena(.*)\n", r"\g<0>\g<0>"), "surround: nothing uses"),
}


@pytest.fixture(scope="module")
def surrounded() -> CExport:
    return built("every way")


@pytest.mark.long
@pytest.mark.parametrize("name", CALLS)
def test_calls_of_a_stranger_are_named(name: str, surrounded: CExport) -> None:
    edit, words = CALLS[name]
    files = surrounded.files | {"model.c": edit(surrounded.files["model.c"].decode()).encode()}
    found = replace(surrounded, files=files).unexplained()
    assert any(words in line for line in found), found


@needs_compiler
def test_a_network_whose_input_is_padded_before_anything_quantizes_it_passes_verify(tmp_path: Path) -> None:
    # Integers are made up for six samples here: fewer than the sixteen whose layers are compared.
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)
    )
    inputs = torch.randn(20, 1, 8, 8)
    model = post_training_model(net.eval(), [inputs], act_bits=8)
    csqtool.export(model, tmp_path / "net", format="c", model=net)
    report = csqtool.verify(tmp_path / "net", model, model=net, data=[(x, 0) for x in inputs])
    assert [(c.level, c.name, c.detail) for c in report.failures] == []
    assert "bit for bit, given any integers" in {c.name for c in report.checks}
