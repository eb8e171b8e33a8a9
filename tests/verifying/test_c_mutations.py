"""Ways to break an inference in C: verify fails on every one, at the level named."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from csqtool import verify
from csqtool.exporting import export
from csqtool.quantized_model import QuantizedModel
from csqtool.verifying import VerifyReport
from csqtool.verifying.c_accounting import unexplained
from csqtool.verifying.c_program import CFolder
from exporters.c import to_c
from exporters.c.options import COptions
from tests.support.c_edits import IN_FLOAT, MORE, MUTATIONS, Edit, changed
from tests.support.c_nets import CExport, Functions, InFloat, export_c
from tests.support.commands import Built, invoke
from tests.support.onnx_nets import ConvNet

pytestmark = [
    pytest.mark.usefixtures("one_capture"),
    pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler"),
]

QUICK = ("a weight", "rounding down", "an arena overlap")


@pytest.fixture(scope="module")
def folder(eight_bits: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("c") / "net"
    export(eight_bits.model, path, format="c")
    return path


def verified(path: Path, built: Built) -> VerifyReport:
    return verify(path, built.model, samples=40)


def test_an_untouched_folder_passes_at_every_level(folder: Path, eight_bits: Built) -> None:
    report = verified(folder, eight_bits)
    assert [(c.level, c.name, c.detail) for c in report.failures] == []
    assert {c.level for c in report.checks} == {"integrity", "structure", "weights", "layers", "outputs", "task"}
    assert report.samples == 40


@pytest.mark.parametrize("name", [
    *(pytest.param(n, marks=[pytest.mark.long] * (n not in QUICK)) for n in MUTATIONS),
    *(pytest.param(n, marks=pytest.mark.slow) for n in MORE),
])  # fmt: skip
def test_a_broken_inference_fails_at_its_level_even_if_its_text_is_not_looked_at(
    name: str, folder: Path, eight_bits: Built, tmp_path: Path, record_property: Callable[[str, object], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    file, edit, level = (MUTATIONS | MORE)[name]
    copy = Path(shutil.copytree(folder, tmp_path / "net"))
    (copy / file).write_text(edit((copy / file).read_text()))
    by_text = ["structure"] if unexplained(CFolder(copy)) else []
    monkeypatch.setattr("csqtool.verifying.c_checks.unexplained", lambda *_, **__: [])
    report = verified(copy, eight_bits)
    failed = list(dict.fromkeys(c.level for c in report.failures))
    record_property("caught", (f"C: {name}", ", ".join(dict.fromkeys([*by_text, *failed]))))
    assert not report.passed
    assert failed[0] == level


LONG_IN_FLOAT = ("the last bit of a factor in float", "the number that rounds", "a zero point of the addition in float")


@pytest.fixture(scope="module")
def folder_in_float(eight_bits: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("c") / "float"
    export(eight_bits.model, path, format="c", options={"requantize": "float"})
    return path


@pytest.mark.long
def test_an_untouched_folder_that_rounds_in_float_passes_at_every_level(
    folder_in_float: Path, eight_bits: Built
) -> None:
    assert "add_scaled(" in (folder_in_float / "model.c").read_text()
    report = verified(folder_in_float, eight_bits)
    assert [(c.level, c.name, c.detail) for c in report.failures] == []
    assert {c.level for c in report.checks} == {"integrity", "structure", "weights", "layers", "outputs", "task"}


@pytest.mark.parametrize("name", [
    pytest.param(n, marks=[pytest.mark.long if n in LONG_IN_FLOAT else pytest.mark.slow]) for n in IN_FLOAT
])  # fmt: skip
def test_a_broken_rounding_in_float_fails_at_its_level_even_if_its_text_is_not_looked_at(
    name: str, folder_in_float: Path, eight_bits: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    file, edit, level = IN_FLOAT[name]
    copy = Path(shutil.copytree(folder_in_float, tmp_path / "net"))
    (copy / file).write_text(edit((copy / file).read_text()))
    monkeypatch.setattr("csqtool.verifying.c_checks.unexplained", lambda *_, **__: [])
    failed = list(dict.fromkeys(c.level for c in verified(copy, eight_bits).failures))
    record_property("caught", (f"C: {name}", ", ".join(failed)))
    assert failed[:1] == [level]


def differs(export_: CExport, file: str, edit: Edit) -> bool:
    """Return whether the changed code computes something else than the reference."""
    broken = replace(export_, files={**export_.files, file: edit(export_.files[file].decode()).encode()})
    program, place = broken.program()
    with place:
        found = program.run(export_.inputs.numpy()).output
    return found.tobytes() != np.ascontiguousarray(export_.reference.run(export_.inputs.numpy()).output).tobytes()


@pytest.mark.long
def test_an_entry_of_a_table_matters() -> None:
    torch.manual_seed(0)
    built = export_c(Functions(), (2, 5, 6))
    tables = re.findall(r"model_table_(\d+)\[256\] =", built.files["weights.c"].decode())
    last = max(map(int, tables))
    middle = changed(
        rf"(model_table_{last}\[256\] = {{\n(?:[^\n]*\n){{3}}\s+)(\d+)", lambda m: f"{m[1]}{int(m[2]) ^ 8}"
    )
    assert differs(built, "weights.c", middle)


@pytest.mark.long
def test_a_coefficient_and_an_order_of_operations_in_float_matter() -> None:
    torch.manual_seed(0)
    built = export_c(InFloat(), (5, 8))
    for edit in (changed("1.5f - half", "1.499f - half"), changed("1.39819995", "9.39819995"),
                 changed(r"sum = sum \+ load\(a, k\)", "sum = 2.0f * sum + load(a, k)"),
                 changed(r"if \(load\(x, i\) > largest\)", "if (load(x, i) < largest)")):  # fmt: skip
        assert differs(built, "model.c", edit)


def with_powers_of_two(model: QuantizedModel) -> QuantizedModel:
    activations = tuple(replace(a, scale=np.float32(2.0 ** np.round(np.log2(a.scale)))) for a in model.activations)
    layers = tuple(replace(q, scale=np.float32(2.0 ** np.round(np.log2(q.scale)))) for q in model.layers)
    steps = {a.name: a.scale for a in activations}
    tensors = dict(model.tensors)
    for layer in layers:
        name, step = f"{layer.name.removesuffix('weight')}bias", layer.scale * steps[layer.input_quantizer]
        if name in tensors:  # as finalize does: on the grid of the sums
            tensors[name] = (np.rint(tensors[name] / step) * step).astype(np.float32)
    return replace(model, activations=activations, layers=layers, tensors=tensors)


@pytest.mark.long
def test_ties_are_rounded_to_even_where_scales_are_powers_of_two() -> None:
    torch.manual_seed(0)
    module = ConvNet()
    module.norm1 = torch.nn.Identity()
    built = export_c(module, (3, 8, 8), prepare=with_powers_of_two)
    built.assert_faithful()
    assert differs(built, "model.c", changed(r"below_half \+ is_odd", "below_half + 1 + 0 * is_odd"))


def test_a_folder_of_something_else_is_no_inference(eight_bits: Built, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = invoke("verify", tmp_path / "empty", "--against", eight_bits.model)
    assert (done.exit_code, done.stderr.count("error:")) == (2, 1)
    assert "no model.h" in done.stderr


def test_without_a_compiler_verify_says_so(folder: Path, eight_bits: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csqtool.verifying.c_program.shutil.which", lambda name: None)
    done = invoke("verify", folder, "--against", eight_bits.model, "--samples", 2)
    assert done.exit_code == 2
    assert "needs a C compiler" in done.stderr


def test_the_command_exports_verifies_and_gates(eight_bits: Built, tmp_path: Path) -> None:
    done = invoke("export", eight_bits.model, "--format", "c", "--weights", "int8", "-o", tmp_path / "c")
    assert done.exit_code == 0
    assert "arena: " in done.output
    done = invoke("verify", tmp_path / "c", "--against", eight_bits.model, "--samples", 20, "--min-agreement", 1,
                  "--max-size", "10KB")  # fmt: skip
    assert done.exit_code == 1  # the source text is larger
    assert "file size" in done.output


def test_the_same_model_gives_the_same_files(eight_bits: Built) -> None:
    from csqtool.finalized_file import read_finalized
    from csqtool.rebuild import rebuilt_module

    model = read_finalized(eight_bits.model)
    one, other = (to_c(model, rebuilt_module(model, factory=None, near=eight_bits.model), COptions()) for _ in range(2))
    assert one[0] == other[0]
