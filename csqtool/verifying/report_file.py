"""Reading the reports of ``csqtool verify --json``, which may have been edited, cut or forged since."""

from __future__ import annotations

from pathlib import Path

from csqtool import documents
from csqtool.files import read_bytes
from csqtool.verifying.findings import VerifyReport

REPORT = "a report of csqtool verify --json"


def read_report(path: Path) -> VerifyReport:
    """Return the report in a file.

    Raises:
        InputError: the file is missing.
        FormatError: it is not a report; the message says where it differs.
    """
    return parse_report(read_bytes(path), where=str(path))


def parse_report(content: bytes, *, where: str) -> VerifyReport:
    """Return the report in a file's content; `where` names it in messages.

    Raises:
        FormatError: it is not a report; the message says where it differs.
    """
    return documents.decode(VerifyReport, content, where=where, what=REPORT)
