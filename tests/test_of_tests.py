"""What makes a test worthless, looked for in the tests' own source."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence, Set
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FILES = sorted(TESTS.rglob("*.py"))
CLOCKS = {"monotonic", "perf_counter", "process_time", "time"}
CODES = {"exit_code", "returncode"}
RAISING = {"raises", "warns", "fail"}


def names_called(node: ast.AST) -> set[str]:
    """Return the last names of what is called: ``c`` of ``a.b.c()``."""
    functions = [call.func for call in ast.walk(node) if isinstance(call, ast.Call)]
    return {
        f.attr if isinstance(f, ast.Attribute) else f.id for f in functions if isinstance(f, ast.Attribute | ast.Name)
    }


def is_always_true(test: ast.expr) -> bool:
    """Tell whether a condition is a text, a number or a tuple that is not empty, or an ``or`` with one of them."""
    match test:
        case ast.BoolOp(op=ast.Or(), values=values):
            return any(is_always_true(value) for value in values)
        case ast.Constant(value=value):
            return bool(value)
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return bool(items)
    return isinstance(test, ast.JoinedStr | ast.Lambda)


def leaves_the_exit_code_open(test: ast.expr) -> bool:
    """Tell whether a condition allows several exit codes."""
    return any(
        isinstance(node, ast.Compare)
        and isinstance(node.left, ast.Attribute)
        and node.left.attr in CODES
        and not all(isinstance(operator, ast.Eq | ast.Is) for operator in node.ops)
        for node in ast.walk(test)
    )


def expects_any_exception(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    return name == "raises" and bool(call.args) and ast.unparse(call.args[0]) in ("Exception", "BaseException")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def weaknesses(tree: ast.Module, checking: Set[str]) -> Iterator[tuple[int, str]]:
    """Yield line and weakness.

    Args:
        tree: a test file.
        checking: functions of other files that check something.
    """
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    tests = [function for function in functions if function.name.startswith("test_")]
    for function in tests:
        if not checks(function, checking):
            yield function.lineno, f"{function.name} checks nothing"
        for node in ast.walk(function):
            if isinstance(node, ast.Assert) and leaves_the_exit_code_open(node.test):
                yield node.lineno, "an exit code that may be several"
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            if is_always_true(node.test):
                yield node.lineno, "an assertion that always holds"
            if names_called(node.test) & CLOCKS:
                yield node.lineno, "an assertion about time"
        elif isinstance(node, ast.Call) and expects_any_exception(node):
            yield node.lineno, "any exception will do"
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module.startswith("tests.") and not module.startswith("tests.support"):
                yield node.lineno, f"imports from another test file: {module}"
            if module.startswith(("csqtool", "exporters")) and any(is_private(a.name) for a in node.names):
                yield node.lineno, "imports a private name"


def checks(function: ast.FunctionDef, checking: Set[str]) -> bool:
    """Tell whether a function asserts something, or calls what does."""
    called = names_called(function)
    return (
        any(isinstance(node, ast.Assert) for node in ast.walk(function))
        or bool(called & (checking | RAISING))
        or any(name.startswith("assert_") for name in called)
    )


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def checking_functions(files: Sequence[Path], known: Set[str] = frozenset()) -> Set[str]:
    """Return the helpers that check something, themselves or through others."""
    helpers = [
        node
        for file in files
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("test_")
    ]
    found = set(known)
    while more := {node.name for node in helpers if node.name not in found and checks(node, found)}:
        found |= more
    return found


@pytest.fixture(scope="module")
def shared() -> Set[str]:
    return checking_functions(sorted((TESTS / "support").glob("*.py")))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_is_written_so_that_it_cannot_fail(path: Path, shared: Set[str]) -> None:
    assert sorted(weaknesses(parsed(path), checking_functions([path], shared))) == []


@pytest.mark.parametrize(
    ("source", "weakness"),
    [
        ('assert found or "text"', "an assertion that always holds"),
        ("assert (found, 'text')", "an assertion that always holds"),
        ("assert f'{found}'", "an assertion that always holds"),
        ("assert time.monotonic() - start < 3", "an assertion about time"),
        ("with pytest.raises(Exception): found()", "any exception will do"),
        ("from tests.csq.test_damage import helper", "imports from another test file: tests.csq.test_damage"),
        ("from csqtool.files import _private", "imports a private name"),
        ("def test_it():\n    found()", "test_it checks nothing"),
        ("def test_it():\n    assert result.exit_code in (1, 2)", "an exit code that may be several"),
        ("def test_it():\n    assert done.returncode != 0", "an exit code that may be several"),
    ],
)
def test_each_weakness_is_found(source: str, weakness: str) -> None:
    assert [what for _, what in weaknesses(ast.parse(source), {"check"})] == [weakness]


@pytest.mark.parametrize(
    "source",
    [
        "def test_it():\n    check(found)",
        "def test_it():\n    with pytest.raises(ValueError): found()",
        "def test_it():\n    assert (result.exit_code, lines) == (2, 1)",
        "while time.monotonic() < deadline:\n    pass",
        "assert a or b",
    ],
)
def test_sound_tests_are_left_alone(source: str) -> None:
    assert list(weaknesses(ast.parse(source), {"check"})) == []
