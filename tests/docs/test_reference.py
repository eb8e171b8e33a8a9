"""The generated reference names everything that csqtool has, and the troubleshooting page quotes real messages."""

from __future__ import annotations

import inspect
import re
from importlib.metadata import entry_points

import click
import msgspec
import pytest

import csqtool
from csqtool import cli
from csqtool.searching.settings import reference as settings
from csqtool.verifying import Gates, Tolerances
from docs import reference
from tests.support.commands import ROOT, invoke
from tests.support.pages import blocks, pages

PAGES = reference.pages()


def section(page: str, title: str) -> str:
    """Return what is below a heading of the second level."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    assert found is not None, f"{page} has no section {title}"
    return found[1]


@pytest.mark.parametrize("verb", cli._VERBS)
def test_every_verb_is_there_with_every_option_of_its_help(verb: str) -> None:
    text = section("reference/commands.md", verb)
    printed = invoke(verb, "--help").output.partition("\nOptions:\n")[2]
    options = set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", printed, flags=re.MULTILINE))
    assert "--help" in options
    assert {option for option in options if f"`{option}`" not in text} == set()


def test_every_setting_is_there_with_its_default() -> None:
    lines = PAGES["reference/settings.md"].splitlines()
    for row in settings():
        (line,) = (line for line in lines if line.startswith((f"| `{row.name}` |", f"| `{row.name}` *q* |")))
        assert f"| {row.default} |" in line
        assert (row.flag if row.name != "model" else "`MODEL`") in line


@pytest.mark.parametrize("group", ["methods", "allocators", "exporters", "backends", "activations"])
def test_every_registered_name_is_there_and_described(group: str) -> None:
    lines = PAGES["reference/plugins.md"].splitlines()
    names = {entry.name for entry in entry_points(group=f"csqtool.{group}")}
    assert names
    for name in names:
        assert any(re.match(rf"\| `{name}` \|.* \S.* \|", line) for line in lines), name


def test_every_exit_code_is_there() -> None:
    codes = {name: value for name, value in vars(cli).items() if name.startswith("EXIT_")}
    assert codes.keys() == reference.EXIT_CODES.keys() - {""}
    for code in [0, *codes.values()]:
        assert f"| `{code}` |" in PAGES["reference/exit-codes.md"]


def test_every_public_name_is_there() -> None:
    text = PAGES["reference/python.md"]
    assert all(re.search(rf"^::: \S+\.{name}$", text, re.MULTILINE) for name in csqtool.__all__ if name[0] != "_")


@pytest.mark.parametrize("kind", [Gates, Tolerances])
def test_every_gate_and_tolerance_is_described(kind: type[msgspec.Struct]) -> None:
    for name in kind.__struct_fields__:
        assert re.search(rf"^\| `{name}` \| .* \| \S.* \|$", PAGES["reference/pipeline.md"], re.MULTILINE), name


def test_every_key_of_the_starter_s_pipeline_and_each_record_s_field_is_described() -> None:
    assert not re.search(r"^\| `\w+` \|[^|]*\|  \|$", PAGES["reference/pipeline.md"], re.MULTILINE)
    assert not re.search(r"^\| `\w+` \|[^|]*\|  \|$", PAGES["reference/json.md"], re.MULTILINE)
    for key in ("factory", "args", "weights", "source", "task", "output", "formats", "samples", "backends"):
        assert f"| `{key}` |" in PAGES["reference/pipeline.md"]


def test_attributes_are_read_from_a_docstring_over_several_lines() -> None:
    class Kind:
        """One.

        Attributes:
            first, second: a text
                that goes on.
            third: last.

        More.
        """

    assert inspect.getdoc(Kind)
    assert reference.attributes(Kind) == {"first": "a text that goes on.", "second": "a text that goes on.",
                                          "third": "last."}  # fmt: skip


def sources() -> str:
    """Return the texts of all messages, with every placeholder as X."""
    files = [*(ROOT / "csqtool").rglob("*.py"), *(ROOT / "exporters").rglob("*.py")]
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    text = re.sub(r'"\s*\n\s*f?"', "", text)  # a message over two lines
    return re.sub(r"\{[^{}]*\}", "X", text)


def test_every_message_of_the_troubleshooting_page_is_one_of_the_code() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^(`.*)\n:   ", page, flags=re.MULTILINE)
    messages = [message for line in quoted for message in re.findall(r"`([^`]+)`", line)]
    assert len(messages) > 20
    code = sources()
    placeholder = r"'?\b(?:PATH|NAME|SPEC|TYPE|ERROR|METHOD|PATTERN|DIR|N)\b'?"
    unknown = [message for message in messages if re.sub(placeholder, "X", message) not in code]
    assert unknown == []


def test_commands_that_are_not_run_have_options_that_exist() -> None:
    top = click.Context(cli.cli, info_name="csqtool")
    checked = 0
    for page in pages():
        for block in blocks(page.read_text(encoding="utf-8")):
            for verb, rest in re.findall(
                r"csqtool (\w+)([^\n|&;]*)", block.text if block.language == "console" else ""
            ):
                command = cli.cli.get_command(top, verb)
                assert command is not None, f"{page}: {verb}"
                known = {name for one in command.get_params(top) for name in (*one.opts, *one.secondary_opts)}
                assert set(re.findall(r"(?<= )--?[a-z][\w-]*", rest)) <= known, f"{page}: {verb}{rest}"
                checked += 1
    assert checked > 15
