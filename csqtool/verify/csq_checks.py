"""All levels for a `.csq` file, read by a decoder of its own."""

from __future__ import annotations

import numpy as np

from csqtool.errors import FormatError, ModelError
from csqtool.finalized_file import from_tensors
from csqtool.verify.csq_decoder import decode
from csqtool.verify.outputs import agreement, compare_task, reference_outputs
from csqtool.verify.subject import Subject
from csqtool.verify.weights import csq_problems


def verify_csq(subject: Subject) -> None:
    """Check a `.csq` file.

    Raises:
        FormatError: it is no `.csq` file.
    """
    report = subject.report
    damaged: list[str] = []
    tensors, metadata, recorded = decode(subject.content, where=report.file, damaged=damaged)
    for name in damaged:
        report.add("integrity", "checksum", False, "the tensor's checksum differs", name)
    if not damaged:
        report.add("integrity", "checksums", True, f"{len(tensors)} tensors")
    subject.check_origin(recorded)
    subject.add_problems("weights", "all tensors", csq_problems(tensors, metadata, subject.model), len(tensors))
    test = subject.test_set()
    if test is None:
        return
    inputs, targets = test
    try:
        unpacked = subject.build_net(from_tensors(tensors, metadata, where=report.file))
    except (FormatError, ModelError) as error:
        report.add("outputs", "unpacked model", False, str(error))
        return
    wanted, found = reference_outputs(subject.net, inputs), reference_outputs(unpacked, inputs)
    equal = found.shape == wanted.shape and bool(np.array_equal(found, wanted))
    difference = float(np.abs(found - wanted).max()) if found.shape == wanted.shape else float("inf")
    report.add("outputs", "unpacked model in PyTorch", equal, f"max difference {difference:g}, must be 0",
               None, max_abs_diff=difference, agreement=agreement(found, wanted))  # fmt: skip
    compare_task(found, wanted, targets, subject.source.task, report)
