"""The verification of one file, level by level.

What checks C and .csq files is imported with the first of them: an ONNX file needs none of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from csqtool import sandbox
from csqtool.data import DataSource
from csqtool.errors import ConfigError
from csqtool.files import read_bytes
from csqtool.finalized_file import parse_finalized, to_bytes
from csqtool.nn.finalized_net import finalized_net
from csqtool.quantized_model import QuantizedModel
from csqtool.rebuild import rebuilt_data, rebuilt_module, rebuilt_net
from csqtool.verifying.backends import load_backends
from csqtool.verifying.bisection import bisect as find_nodes
from csqtool.verifying.findings import VerifyReport
from csqtool.verifying.gates import Gates, check_target
from csqtool.verifying.onnx_checks import verify_onnx
from csqtool.verifying.qonnx_checks import check_datatypes, in_standard_operators
from csqtool.verifying.subject import Subject
from csqtool.verifying.tolerances import Tolerances

if TYPE_CHECKING:
    from csqtool.verifying.c_program import CFolder


def verify_file(
    file: Path,
    against: QuantizedModel | Path,
    *,
    data: str | DataSource | None = None,
    model: str | nn.Module | None = None,
    gates: Gates | None = None,
    samples: int | None = None,
    backends: Sequence[str] = ("onnxruntime",),
    tolerances: Tolerances | None = None,
    threads: int = 0,
    allow_unaccounted: Sequence[str] = (),
    save_inputs: Path | None = None,
    cc: str | None = None,
    target: str | None = None,
    bisect: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> VerifyReport:
    """Compare an exported file with the finalized model it was made from.

    Args:
        file: an ``.onnx`` file (QONNX as well) or ``.csq`` file, or a folder with an inference or a packed model in C.
        against: the finalized model, or its ``.safetensors`` file.
        data: data whose test set is used; None takes those that the finalized model records.
        model: the PyTorch module or its factory, instead of the recorded one.
        gates: limits on what is measured.
        samples: compare this many test samples, None all.
        backends: what runs ONNX files: ``onnxruntime``, ``onnxruntime:PROVIDER``, ``openvino``, ``qonnx``,
            ``reference``, or another package's.
        tolerances: what is still rounding.
        threads: threads of one operator in the backends, 0 their own choice.
        allow_unaccounted: parts of an ONNX graph, by name, that need not be explained by PyTorch's graph.
        save_inputs: folder that inputs are written to on which the two sides disagree.
        cc: the compiler for a folder of C; None takes the first of cc, gcc and clang that is installed.
        target: a device that a folder of C runs on as well, in a simulator: ``cortex-m4``.
        bisect: name the smallest set of nodes that make an ONNX file differ.
        tell: told what is being checked, a line each.

    Returns:
        The report; `passed` says whether every check holds.

    Raises:
        InputError: a file is missing or no file of its kind, or the model or data cannot be built.
    """
    gates = gates or Gates()
    check_target(target, gates)
    if bisect and (file.is_dir() or file.suffix == ".csq"):
        raise ConfigError(f"{file}: bisect looks for nodes of an ONNX file; export one, and bisect that")
    content, folder, faults = _opened(file)
    if folder is None and (cc, target) != (None, None):
        raise ConfigError(f"{file} is no inference in C: --cc and --target are for what export --format c writes")
    sandbox.warm_up()  # while this process builds the module
    if isinstance(against, QuantizedModel):
        reference, finalized, near, name = to_bytes(against), against, None, "the finalized model"
    else:
        reference, near, name = read_bytes(against), against, str(against)
        finalized = parse_finalized(reference, where=name)
    report = VerifyReport.begin(str(file), name, len(content), finalized.average_bit_width, tolerances)
    if samples is not None and samples < 1:
        raise ConfigError(f"samples must be at least 1, got {samples}")
    if threads < 0:
        raise ConfigError(f"threads must not be negative, got {threads}")
    net = rebuilt_net(finalized, factory=model, near=near)
    subject = Subject(
        content=content,
        model=finalized,
        finalized_sha256=hashlib.sha256(reference).hexdigest(),
        net=net,
        # The trusted model's module: never one that the file under verification names.
        build_net=lambda other: finalized_net(rebuilt_module(finalized, factory=model, near=near), other),
        source=rebuilt_data(finalized, data=data, near=near).for_model(net.model),
        samples=samples,
        report=report,
        tell=tell,
        backends=load_backends(backends, threads),
        threads=threads,
        allow_unaccounted=frozenset(allow_unaccounted),
        save_inputs=save_inputs,
    )
    packed = faults is not None or file.suffix == ".csq"
    if folder is not None and tuple(backends) != ("onnxruntime",):
        raise ConfigError(f"{file} is compiled and run by itself; backends are for ONNX files")
    if packed and tuple(backends) != ("onnxruntime",):
        raise ConfigError(
            f"{file} is unpacked and run in PyTorch; backends are for ONNX files. Verify the one that "
            "csqtool unpack -o model.onnx writes, or export one"
        )
    standard: Subject | None = None
    if folder is not None:
        from csqtool.verifying.c_checks import verify_c

        verify_c(subject, folder, cc=cc, target=target)
    elif faults is None or _explained(report, faults):
        standard = _verify_single(subject, packed=packed, datatypes="qonnx" in backends)
    for level in report.missing():
        report.add(level, "reached", False, "nothing was compared at this level")
    gates.check(report, finalized, content)
    if bisect and standard is not None:
        report.bisection = find_nodes(standard)
    return report


def _opened(file: Path) -> tuple[bytes, CFolder | None, list[str] | None]:
    """Return what is verified, the folder of an inference, and what is not explained beside a packed model."""
    if not file.is_dir():
        return read_bytes(file), None, None
    from csqtool.verifying.c_package import is_package, read_package
    from csqtool.verifying.c_program import CFolder

    if is_package(file):
        content, faults = read_package(file)
        return content, None, faults
    folder = CFolder(file)
    return folder.content, folder, None


def _explained(report: VerifyReport, faults: list[str]) -> bool:
    """Add the check of what is beside a packed model in C, and return whether it holds."""
    from csqtool.verifying.c_checks import every_line

    return every_line(report, faults)


def _verify_single(subject: Subject, *, packed: bool, datatypes: bool) -> Subject | None:
    """Check a single file, and return it, a QONNX one in standard operators; None if that cannot be read."""
    if packed:
        from csqtool.verifying.csq_checks import verify_csq

        verify_csq(subject)
        return subject
    standard = in_standard_operators(subject)
    if standard is not None:
        verify_onnx(standard)
        if standard.qonnx is not None and datatypes:
            check_datatypes(standard)
    return standard
