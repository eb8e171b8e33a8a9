"""Commands with the options that export formats declare."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import click


class FormatCommand(click.Command):
    """A command with the options of formats besides its own; they are read from the formats when it is called.

    A field of a format's ``Options`` becomes a flag of its name and type. Its value is None if it is not given.

    Args:
        formats: the formats whose options it has; None for all installed formats.
    """

    def __init__(self, *args: Any, formats: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._formats = formats

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the command's own parameters, with the formats' options before ``--output``."""
        own = super().get_params(ctx)
        at = [parameter.name for parameter in own].index("output")
        return [*own[:at], *format_options(self._formats), *own[at:]]


def format_options(formats: Sequence[str] | None) -> list[click.Parameter]:
    """Return the options of formats; two formats may share an option of the same name.

    Raises:
        ConfigError: a format is not installed.
    """
    from csqtool.exporting import EXPORTERS

    found: dict[str, tuple[dataclasses.Field[Any], Any, list[str]]] = {}
    for name in formats or EXPORTERS.names():
        declared = EXPORTERS.load(name).Options
        hints = typing.get_type_hints(declared) if declared is not None else {}
        for option in dataclasses.fields(declared) if declared is not None else ():
            found.setdefault(option.name, (option, hints[option.name], []))[2].append(name)
    return [
        _option(option, kind, "" if formats else f" ({', '.join(takers)})") for option, kind, takers in found.values()
    ]


def _option(option: dataclasses.Field[Any], kind: Any, takers: str) -> click.Option:
    """Return the command line's option for a field of the type `kind`."""
    text = f"{option.metadata.get('help', '')}{takers}."
    if isinstance(option.default, str):
        text += f" [default: {option.default}]"
    names = [f"--{option.name.replace('_', '-')}", option.name]
    if kind is bool:
        return click.Option(names, is_flag=True, default=None, help=text)
    several = typing.get_origin(kind) is tuple
    if several or isinstance(kind, types.UnionType):
        kind = typing.get_args(kind)[0]
    return click.Option(names, type=kind, multiple=several, metavar=option.metadata.get("metavar"), help=text)


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given on the command line."""
    return {name: value for name, value in options.items() if value not in (None, ())}
