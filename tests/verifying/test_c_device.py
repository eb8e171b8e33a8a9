"""The C inference on a simulated Cortex-M4: the host's bits, what it takes, limits on that, and other compilers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from csqtool.errors import ConfigError
from csqtool.factories import build_model
from csqtool.verifying import Gates
from csqtool.verifying.c_cortex import DeviceRun, check_on_device, missing_tools, run_on_device
from csqtool.verifying.c_program import WARNINGS, CFolder
from csqtool.verifying.findings import VerifyReport
from csqtool.verifying.gates import check_target
from tests.support.c_nets import CExport, export_c
from tests.support.commands import ROOT, Built, invoke, ok
from tests.support.onnx_nets import ConvNet

MISSING = missing_tools()
needs_device = pytest.mark.skipif(bool(MISSING), reason=f"{MISSING} is not installed")
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")
NETS = {"digits CNN": ("digits_cnn/model.py:digits_cnn", (1, 8, 8)),
        "keyword DS-CNN": ("keyword_ds_cnn/model.py:ds_cnn", (1, 49, 10))}  # fmt: skip


@pytest.fixture(scope="module")
def small() -> CExport:
    torch.manual_seed(0)
    return export_c(ConvNet(), (3, 8, 8))


def folder_of(export: CExport, path: Path) -> CFolder:
    path.mkdir(parents=True)
    for name, content in export.files.items():
        (path / name).write_bytes(content)
    return CFolder(path)


def on_device(export: CExport, path: Path) -> DeviceRun:
    (path / "build").mkdir()
    return run_on_device(folder_of(export, path / "source"), path / "build", export.inputs.numpy())


def edited(export: CExport, edit: Callable[[bytes], bytes]) -> CExport:
    return replace(export, files={**export.files, "model.c": edit(export.files["model.c"])})


@needs_device
@needs_compiler
@pytest.mark.long
@pytest.mark.parametrize("how", ["fixed", "float"])
@pytest.mark.parametrize("name", NETS)
def test_the_device_computes_the_bits_of_the_definition(name: str, how: str, tmp_path: Path) -> None:
    spec, shape = NETS[name]
    torch.manual_seed(0)
    export = export_c(build_model(f"{ROOT}/sample_models/{spec}", {}), shape, requantize=how)
    found = on_device(export, tmp_path)
    wanted = export.reference.run(export.inputs.numpy())
    assert found.output.tobytes() == np.ascontiguousarray(wanted.output).tobytes()
    assert found.arena < found.ram < found.arena + 4 * export.inputs[0].numel() + 2000
    weights = sum(layer.bias.size * 4 + layer.filters.size // 2 for layer in wanted.layers)
    assert weights < found.flash < weights + 12_000


@needs_device
def test_a_thousand_instructions_more_are_counted(small: CExport, tmp_path: Path) -> None:
    more = edited(small, lambda c: c.replace(b"uint8_t *arena) {\n", b'uint8_t *arena) {\n    __asm__ volatile('
                                             b'".rept 1000\\n nop\\n .endr");\n'))  # fmt: skip
    one, other = (on_device(e, tmp_path / n) for e, n in ((small, made(tmp_path, "a")), (more, made(tmp_path, "b"))))
    assert one.output.tobytes() == other.output.tobytes()
    assert abs(other.instructions - one.instructions - 1000) <= 10
    assert other.flash - one.flash == 2000


def made(path: Path, name: str) -> str:
    (path / name).mkdir()
    return name


@needs_device
@needs_compiler
def test_what_only_the_device_computes_otherwise_fails(small: CExport, tmp_path: Path) -> None:
    broken = edited(small, lambda c: c.replace(
        b"    return (int32_t)steps;", b"#ifdef __arm__\n    steps ^= 1;\n#endif\n    return (int32_t)steps;"
    ))  # fmt: skip
    for export, passes in ((small, True), (broken, False)):
        report = VerifyReport.begin("net", "model", 0, 1.0)
        program, place = export.program(WARNINGS)
        with place:
            check_on_device(report, folder_of(export, tmp_path / str(passes)), program, export.inputs.numpy())
        assert [c.passed for c in report.checks] == [passes], report.checks
        assert passes or "NOT equal" in report.checks[0].detail


@needs_device
def test_what_does_not_fit_or_crashes_on_the_device_is_said(small: CExport, tmp_path: Path) -> None:
    start = b"uint8_t *arena) {\n"
    crash = edited(small, lambda c: c.replace(start, start + b'    __asm__ volatile("udf");\n'))
    with pytest.raises(RuntimeError, match="qemu-system-arm: a fault of the processor"):
        on_device(crash, tmp_path / made(tmp_path, "crash"))
    huge = edited(small, lambda c: c + b"\nuint8_t more[1 << 25];\n")
    with pytest.raises(RuntimeError, match="overflowed"):
        on_device(huge, tmp_path / made(tmp_path, "huge"))


def test_limits_on_the_device_hold_up_to_the_byte_and_need_a_target(small: CExport) -> None:
    figures = {"flash": 64_000.0, "ram": 8000.0, "instructions": 5_000_000.0}
    limits = {"max_flash": "64KB", "max_ram": 8000, "max_instructions": 5_000_000}
    for off, passes in ((0, True), (1, False)):
        report = VerifyReport.begin("net", "model", 0, 1.0)
        report.add("outputs", "device", True, "", None, **{name: value + off for name, value in figures.items()})
        gates = Gates.from_mapping(limits, where="verify")
        gates.check(report, small.model, b"")
        assert [c.passed for c in report.checks if c.level == "gates"] == [passes] * 3
        check_target("cortex-m4", gates)
        with pytest.raises(ConfigError, match="set --target cortex-m4 as well"):
            check_target(None, gates)
    with pytest.raises(ConfigError, match="unknown target 'cortex-m7'; did you mean 'cortex-m4'"):
        check_target("cortex-m7", Gates())


@needs_compiler
@pytest.mark.long
def test_without_the_tools_a_line_says_so_and_limits_fail(
    eight_bits: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("csqtool.verifying.c_checks.missing_tools", lambda: "qemu-system-arm")
    ok("export", eight_bits.model, "--format", "c", "-o", tmp_path / "c")
    done = invoke("verify", tmp_path / "c", "--against", eight_bits.model, "--samples", 8, "--target", "cortex-m4",
                  "--max-ram", "1MB")  # fmt: skip
    assert done.stderr.count("cortex-m4: skipped, qemu-system-arm is not installed") == 1
    assert "not measured, at most 1,000,000 bytes" in done.stdout
    assert done.exit_code == 1
