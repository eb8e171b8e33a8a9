"""A verification's report for CI: JUnit XML, Markdown, GitHub annotations.

`csqtool.verifying.findings` has the same verdicts as JSON.
"""

from __future__ import annotations

from xml.etree import ElementTree

from csqtool.text import printable, size
from csqtool.verifying.findings import Check, VerifyReport


def junit(report: VerifyReport) -> bytes:
    """Return JUnit XML: a test suite for the file, a class name for each level, a test case for each check."""
    checks = report.checks
    failed = len(report.failures)
    suites = ElementTree.Element("testsuites", tests=str(len(checks)), failures=str(failed), errors="0")
    suite = ElementTree.SubElement(
        suites, "testsuite", name=f"csqtool verify {printable(report.file)}",
        tests=str(len(checks)), failures=str(failed), errors="0", skipped="0",
    )  # fmt: skip
    for check in checks:
        case = ElementTree.SubElement(suite, "testcase", classname=f"csqtool.verify.{check.level}", name=_name(check))
        if not check.passed:
            failure = ElementTree.SubElement(case, "failure", message=printable(check.detail), type=check.level)
            failure.text = f"{printable(report.file)} against {printable(report.against)}: {_sentence(check)}"
    ElementTree.indent(suites)
    content: bytes = ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)
    return content + b"\n"


def markdown(report: VerifyReport) -> str:
    """Return a Markdown summary: the verdict, what failed, and a folded table of all checks."""
    failed = report.failures
    verdict = "✅ PASS" if report.passed else "❌ FAIL"
    lines = [
        f"### {verdict}: {_cell(report.file)}",
        "",
        f"{size(report.size_bytes)}, compared with {_cell(report.against)} on {report.samples} samples: "
        f"{len(report.checks) - len(failed)} of {len(report.checks)} checks hold.",
        "",
        *(f"- **{_cell(check.level)}** {_cell(_sentence(check))}" for check in failed),
        *([""] if failed else []),
        "<details><summary>All checks</summary>",
        "",
        "| level | check | | detail |",
        "| --- | --- | --- | --- |",
    ]
    for check in report.checks:
        mark = "ok" if check.passed else "**FAIL**"
        lines.append(f"| {check.level} | {_cell(_name(check))} | {mark} | {_cell(check.detail)} |")
    return "\n".join([*lines, "", "</details>", ""])


def github_commands(report: VerifyReport) -> list[str]:
    """Return GitHub workflow commands: an error for each check that failed, or one notice."""
    if report.passed:
        return [_command("notice", report.file, f"all {len(report.checks)} checks hold")]
    texts = [f"{check.level}: {_sentence(check)}" for check in report.failures]
    return [_command("error", report.file, text) for text in texts]


def _command(kind: str, file: str, text: str) -> str:
    def escaped(value: str) -> str:
        for character in "%\r\n":
            value = value.replace(character, f"%{ord(character):02X}")
        return value

    title = escaped("csqtool verify").replace(":", "%3A").replace(",", "%2C")
    path = escaped(printable(file)).replace(":", "%3A").replace(",", "%2C")
    return f"::{kind} file={path},title={title}::{escaped(printable(text))}"


def _name(check: Check) -> str:
    layer = f" [{check.layer}]" if check.layer else ""
    return printable(f"{check.name}{layer}")


def _sentence(check: Check) -> str:
    return printable(f"{_name(check)}: {check.detail}")


def _cell(text: str) -> str:
    """Return text with Markdown's special characters escaped."""
    shown = printable(text)
    for character in "\\`*_{}[]<>|#":
        shown = shown.replace(character, f"\\{character}")
    return shown
