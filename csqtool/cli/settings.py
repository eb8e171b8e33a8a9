"""Options of the command line, made from the declarations of settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args, get_origin

import click

from csqtool.errors import ConfigError
from csqtool.searching.config import GENERAL
from csqtool.searching.declarations import SettingError
from csqtool.searching.options import option_owners
from csqtool.searching.settings import Row


class SettingsCommand(click.Command):
    """A command whose last options are settings; they are looked up when it is run, because plug-ins may add some."""

    rows: Callable[[], list[Row]]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the command's own parameters, the settings, and ``--help``."""
        *own, help_option = super().get_params(ctx)
        taken = {name for parameter in (*own, help_option) for name in parameter.opts}
        settings = []
        for row in self.rows():
            if row.flag in taken:
                raise ConfigError(f"{row.methods}: {row.flag} is an option of the command; rename the method's option")
            if row.name not in taken:  # otherwise it is an argument
                settings.append(option(row))
        return [*own, *settings, help_option]


def settings_command(rows: Callable[[], list[Row]]) -> type[SettingsCommand]:
    """Return the class of a command with these settings."""
    return type("SettingsCommand", (SettingsCommand,), {"rows": staticmethod(rows)})


class WordOr(click.ParamType[Any]):
    """A whole number, or the word for None."""

    def __init__(self, word: str) -> None:
        self.name = f"integer or {word}"
        self.word = word

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, or the word."""
        if value == self.word:
            return value
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a whole number nor {self.word}", param, ctx)


def option(row: Row) -> click.Option:
    """Return the option of a setting. It is None if it is not given, so that the library's defaults apply."""
    declared, flag = row.declared, row.flag
    kind: Any = declared.kind
    text = row.help
    if row.methods and row.methods != "all methods":
        text += f" ({row.methods})"
    if row.default:
        text += f" [default: {row.default}]"
    if kind is bool:
        return click.Option([f"{flag}/--no-{flag[2:]}", row.name], default=None, help=text)
    if get_origin(kind) is not None and not declared.choices:  # tables and lists
        return click.Option([flag, row.name], multiple=True, metavar=declared.setting.metavar, help=text)
    if declared.choices:
        kind = click.Choice(list(declared.choices))
    elif kind is int and declared.optional and declared.setting.none:
        kind = WordOr(declared.setting.none)
    metavar = f"INTEGER|{kind.word}" if isinstance(kind, WordOr) else None
    return click.Option([flag, row.name], type=kind, default=None, metavar=metavar, help=text)


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that were given, by the library's names and with its values.

    Raises:
        ConfigError: an entry of a table is wrong.
    """
    from csqtool.factories import parse_arguments

    found: dict[str, Any] = {}
    for name, value in values.items():
        if value is None or value == ():
            continue
        kind: Any = GENERAL[name].kind if name in GENERAL else None
        if get_origin(kind) is not None and get_args(kind)[-1] is int:
            found[name] = whole_numbers(value, GENERAL[name].flag)
        elif name == "model_args":
            found[name] = parse_arguments(value)
        else:
            none = name in GENERAL and GENERAL[name].optional and value == GENERAL[name].setting.none
            found[name] = None if none else value
    return found


def whole_numbers(entries: tuple[str, ...], flag: str) -> dict[str, int]:
    """Parse ``PATTERN=BITS`` entries.

    Raises:
        ConfigError: an entry is not of this form.
    """
    found = {}
    for entry in entries:
        pattern, equals, bits = entry.rpartition("=")
        if not equals or not bits.isdigit():
            raise ConfigError(f"{flag} {entry!r}: write PATTERN=BITS, such as classifier.weight=8")
        found[pattern] = int(bits)
    return found


@contextmanager
def flags_named() -> Iterator[None]:
    """Make messages about settings name the options of the command line."""
    try:
        yield
    except SettingError as error:
        one = GENERAL.get(error.key) or next(iter(option_owners()[error.key].values()))
        raise ConfigError(f"{one.flag} {error.problem}") from error
