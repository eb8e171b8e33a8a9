from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import Built, invoke


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", "{}", "neither a report of csqtool verify"),
        ("x.json", '{"checks": [{}], "layers": [], "size_bytes": 1, "samples": 1, "passed": true, "file": "", '
                   '"against": ""}', "is not a report of csqtool verify --json: checks[0]: level is missing"),
        ("x.json", "nothing", "not valid JSON"),
        ("x.onnx", "nothing", "not an ONNX file"),
        ("x.csq", "nothing", "not a csq file"),
        ("x.safetensors", "nothing", "x.safetensors"),
        ("x/note.txt", "", "neither a run directory"),
        ("missing.json", None, "no such file"),
    ],
)  # fmt: skip
def test_what_cannot_be_reported_is_refused_in_a_line(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    result = invoke("report", path.parent if name.startswith("x/") else path, "-o", tmp_path / "r.html")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr
    assert not (tmp_path / "r.html").exists()


def test_an_output_of_another_kind_is_refused(eight_bits: Built, tmp_path: Path) -> None:
    result = invoke("report", eight_bits.model, "-o", tmp_path / "report.pdf")
    assert result.exit_code == 2
    assert ".html" in result.stderr
