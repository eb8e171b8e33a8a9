"""The C inference of networks with float activations, and of embeddings: bit for bit what docs/c-inference.md says."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from csqtool import export, quantize, verify
from csqtool.verifying.c_cortex import missing_tools, run_on_device
from csqtool.verifying.c_program import WARNINGS, CFolder
from tests.support.c_edits import Edit, changed
from tests.support.c_nets import (
    Attention,
    Blended,
    Branches,
    CExport,
    Functions,
    InFloat,
    JoinedInFloat,
    OneDimension,
    SmoothFunctions,
    export_c,
)
from tests.support.onnx_nets import ConvNet

pytestmark = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")
MISSING = missing_tools()


class Windows(nn.Module):
    """Poolings, padding, repetition, parts, functions that others compute, and BatchNorm that folds into nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.grouped = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, (3, 2), 1, (1, 2), (2, 1), groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.back = nn.ConvTranspose2d(8, 6, 3, 2, 1, output_padding=1, groups=2)
        self.prelu, self.norm = nn.PReLU(8), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        f = nn.functional
        x = self.prelu(f.pad(self.first(x), [1, 0, 2, 1], value=0.5))
        x = f.hardswish(f.max_pool2d(x, 3, 2, 1, ceil_mode=True)[:, :, :4]) + f.elu(f.avg_pool2d(x, 3, 2, 1))
        one, other = f.interpolate(self.depthwise(x), scale_factor=2).chunk(2, 1)
        x = torch.cat([f.leaky_relu(one, 0.1), f.selu(other)], 1)
        x = f.avg_pool2d(self.grouped(x), 2, padding=1, count_include_pad=False)
        x = self.norm(f.hardsigmoid(self.back(x)) * 3 - 1)
        return self.head((x * torch.softmax(x, 1)).mean((2, 3)))


class Tokens(nn.Module):
    """An embedding, a convolution over its places, and a layer that runs more than once."""

    def __init__(self, runs: int = 2) -> None:
        super().__init__()
        self.runs = runs
        self.embed, self.conv = nn.Embedding(20, 8), nn.Conv1d(8, 8, 3, padding=1)
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv(self.embed(x).transpose(1, 2))).transpose(1, 2)
        for _ in range(self.runs):
            y = self.mix(y)
        return self.head(torch.tanh(y).mean(1))


NETS = {
    "windows": (Windows, (3, 9, 11), {}),
    "tokens": (Tokens, (6,), {"rows": 20}),
    "tokens, 8-bit activations": (lambda: Tokens(1), (6,), {"rows": 20, "act_bits": 8}),
    "repeated, 8-bit activations": (Tokens, (6,), {"rows": 20, "act_bits": 8}),
    "residual, nine bits": (ConvNet, (3, 5, 5), {"planes": 8}),
    "bytes": (ConvNet, (3, 8, 8), {"weights": "int8"}),
    "branches": (Branches, (3, 9, 11), {}),
    "functions": (Functions, (2, 5, 6), {}),
    "one dimension": (OneDimension, (3, 13), {"planes": 1}),
    "normalization, attention": (InFloat, (5, 8), {}),
    "joined": (JoinedInFloat, (4, 6), {"single_file": True}),
    "blended": (Blended, (3, 4, 5), {}),
    "blended, 8-bit activations": (Blended, (3, 4, 5), {"act_bits": 8}),
    "smooth functions": (SmoothFunctions, (4, 6), {}),
    "torch's attention": (Attention, (5, 8), {}),
    "torch's attention, 8-bit activations": (Attention, (5, 8), {"act_bits": 8}),
}
QUICK = ("windows",)
SLOW = (
    "blended", "blended, 8-bit activations",
    "smooth functions",
    "branches", "functions", "one dimension", "residual, nine bits", "bytes", "torch's attention, 8-bit activations",
    "repeated, 8-bit activations",
)  # fmt: skip


def built(name: str) -> CExport:
    make, shape, options = NETS[name]
    torch.manual_seed(0)
    return export_c(make(), shape, **{"act_bits": None, "content": "inference", "count": 4, **options})


@pytest.mark.parametrize("name", [
    pytest.param(n, marks=[pytest.mark.slow if n in SLOW else pytest.mark.long]
                 * (n not in QUICK)) for n in NETS
])  # fmt: skip
def test_the_code_computes_every_bit_that_the_page_defines(name: str) -> None:
    built(name).assert_faithful()


@pytest.mark.slow
@pytest.mark.parametrize("cc", [
    pytest.param(cc, marks=pytest.mark.skipif(shutil.which(cc) is None, reason=f"{cc} is not installed"))
    for cc in ("gcc", "clang")
])  # fmt: skip
@pytest.mark.parametrize("name", NETS)
def test_compilers_warn_of_nothing_and_agree_at_every_level(name: str, cc: str) -> None:
    built(name).assert_same_at_every_level(cc)


@pytest.mark.long
def test_numbers_of_rows_that_do_not_exist_stand_for_the_nearest() -> None:
    export_ = built("tokens")
    program, folder = export_.program()
    with folder:
        found = program.run(np.array([[-3, 0, 19, 20, 1000, -(2**24)], [0, 0, 19, 19, 19, 0]], np.float32)).output
    assert found[0].tobytes() == found[1].tobytes()


def differs(export_: CExport, file: str, edit: Edit) -> bool:
    broken = replace(export_, files={**export_.files, file: edit(export_.files[file].decode()).encode()})
    program, place = broken.program((*WARNINGS, "-O1"))
    with place:
        found = program.run(export_.inputs.numpy(), traced=False).output
    return found.tobytes() != np.ascontiguousarray(export_.reference.run(export_.inputs.numpy()).output).tobytes()


@pytest.mark.slow
def test_a_sum_a_scale_a_bias_and_a_window_in_float_matter() -> None:
    export_ = built("windows")
    for file, edit in (
        ("model.c", changed(r"i < 8; i\+\+\) sums", "i < 7; i++) sums")),
        ("model.c", changed(r"sum \* l->steps\[c \+ i\] \+", "sum * (l->steps[c + i] + 1e-6f) +")),
        ("model.c", changed("inside == 0 \\|\\| value > found", "value > found")),
        ("model.c", changed("load\\(x, from\\) : fill", "load(x, from) : 0.0f * fill")),
        ("model.c", changed(r"oy / times_h \* w", "(oy + 1) / times_h % h * w")),
        ("weights.c", changed(r"(model_floats_0\[\d+\] = {\n\s+-?)0x1\.", r"\g<1>0x1.8")),
        ("weights.c", changed(r"(model_steps_0\[\d+\] = {\n\s+)0x1\.", r"\g<1>0x1.8")),
    ):
        assert differs(export_, file, edit), edit
    other_order = changed(r"sums\[2\]\) \+ \(sums\[1\]", "sums[1]) + (sums[2]")
    assert differs(built("residual, nine bits"), "model.c", other_order)


@pytest.mark.long
def test_verify_passes_at_every_level_and_fails_where_a_layer_of_floats_is_wrong(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = ConvNet().eval(), torch.randn(64, 3, 8, 8)
    with torch.no_grad():
        data = [(x, module(x).argmax(-1))]
    model = quantize(module, data, target_bits=3)
    export(model, tmp_path / "c", format="c", model=module, content="inference")
    report = verify(tmp_path / "c", model, model=module, data=data)
    assert [(c.level, c.name, c.detail) for c in report.failures] == []
    assert {c.level for c in report.checks} == {"integrity", "structure", "weights", "layers", "outputs", "task"}
    assert {layer.name for layer in report.layers} == {"conv1.weight", "depthwise.weight", "conv2.weight"}
    weights = tmp_path / "c" / "weights.c"
    weights.write_text(changed(r"(model_steps_0\[\d+\] = {\n\s+)0x1\.", r"\g<1>0x1.f")(weights.read_text()))
    broken = verify(tmp_path / "c", model, model=module, data=data)
    assert {c.layer for c in broken.failures if c.level == "layers"} == {"conv1.weight"}


@pytest.mark.skipif(bool(MISSING), reason=f"{MISSING} is not installed")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual, nine bits", "tokens", "torch's attention", "smooth functions", "blended"])
def test_the_device_computes_the_bits_of_the_definition(name: str, tmp_path: Path) -> None:
    export_ = built(name)
    for part in ("source", "build"):
        (tmp_path / part).mkdir()
    for file, content in export_.files.items():
        (tmp_path / "source" / file).write_bytes(content)
    found = run_on_device(CFolder(tmp_path / "source"), tmp_path / "build", export_.inputs.numpy())
    wanted = export_.reference.run(export_.inputs.numpy())
    assert found.output.tobytes() == np.ascontiguousarray(wanted.output).tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("act_bits", [None, 8])
def test_verify_passes_where_the_batch_is_moved_and_fails_where_a_projection_is_wrong(
    act_bits: int | None, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module, x = Attention().eval(), torch.randn(64, 5, 8)
    with torch.no_grad():
        data = [(x, module(x).argmax(-1))]
    model = quantize(module, data, target_bits=4, act_bits=act_bits)
    export(model, tmp_path / "c", format="c", model=module, content="inference")
    report = verify(tmp_path / "c", model, model=module, data=data)
    assert [(c.level, c.name, c.detail) for c in report.failures] == []
    weights = tmp_path / "c" / "weights.c"
    weights.write_text(changed(r"(model_steps_\d+\[\d+\] = {\n\s+)0x1\.", r"\g<1>0x1.f")(weights.read_text()))
    broken = verify(tmp_path / "c", model, model=module, data=data)
    assert any(c.level == "layers" for c in broken.failures)


OF_A_STRANGER = {
    "padding of what is not there": (changed(r"pad_floats\(arena \+ \d+, ", "pad_floats(arena + 6908, "), "pad_floats"),
    "another distance": (changed(r"(distances_0\[4\] = \{\n +)99", r"\g<1>9"), "layer_of_floats"),
    "another layer's name": (
        changed(r'TRACE_VALUES\("first\.weight"', 'TRACE_VALUES("grouped.weight"'), "grouped.weight is unknown",
    ),
    "one function more": (
        changed(r"    memcpy\(output, arena \+ (\d+)", r"    unary(NEGATIVE, arena + \1, arena + \1, 4);\n\g<0>"),
        "unary NEGATIVE",
    ),
    "a condition": (changed(r"    memcpy\(output", r"    if (input[0] == 1.5f) \g<0>"), "if"),
    "a divisor below zero": (changed(r"(pool_floats\(&pool_13, [^;]*, 1, )9", r"\1-9"), "pool_floats"),
    "a call left out": (changed(r"    repeat_floats\([^\n]*\n", ""), "nothing that was computed"),
}  # fmt: skip


@pytest.fixture(scope="module")
def of_floats() -> CExport:
    return built("windows")


@pytest.mark.long
@pytest.mark.parametrize("name", [*OF_A_STRANGER, "an integer input", "another type of input"])
def test_code_of_a_stranger_is_named(name: str, of_floats: CExport) -> None:
    headers = {"an integer input": changed("#define MODEL_INPUT_TYPE float\n", ""),
               "another type of input": changed("MODEL_INPUT_TYPE float", "MODEL_INPUT_TYPE double")}  # fmt: skip
    file, (edit, text) = (
        ("model.h", (headers[name], "model.h")) if name in headers else ("model.c", OF_A_STRANGER[name])
    )
    broken = replace(of_floats, files={**of_floats.files, file: edit(of_floats.files[file].decode()).encode()})
    found = broken.unexplained()
    assert found, name
    assert any(text in one for one in found), found
