"""``docs/reliability.md`` promises something for every command, and every test that it names exists."""

from __future__ import annotations

import ast
import re

from csqtool.cli import cli
from tests.support.commands import ROOT

TEXT = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def rows() -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line.startswith("|")]


def test_every_command_is_in_the_table_of_faults_once() -> None:
    first = rows()[: [row[0] for row in rows()].index("fault")]
    named = [name for row in first for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(named) == sorted(cli.list_commands(None))  # type: ignore[arg-type]


def test_every_promise_of_the_table_of_faults_names_tests_that_exist() -> None:
    second = rows()[[row[0] for row in rows()].index("fault") + 2 :]
    assert len(second) > 10
    for fault, _, tests in second:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", tests)
        assert named, fault
        for path, name in named:
            tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
            assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, (fault, name)
