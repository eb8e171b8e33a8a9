"""The reference of all settings: what each is called, its type, default and meaning, and which methods use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Any

from csqtool.errors import ConfigError
from csqtool.searching.config import GENERAL, name_taken
from csqtool.searching.declarations import Declared, Users, declared
from csqtool.searching.options import FINETUNE_METHODS, method_kind, method_kinds, option_owners
from csqtool.searching.recipes import RECIPES, recipe_defaults


@dataclass(frozen=True)
class Row:
    """A setting in the reference.

    Attributes:
        declared: its declaration.
        default: its default in words, with those of other recipes and of the other optimizer; empty without any.
        methods: who uses it: methods by name, or ``all methods``.
    """

    declared: Declared
    default: str
    methods: str

    @property
    def name(self) -> str:
        """The key in pipeline files, and the keyword in Python."""
        return self.declared.name

    @property
    def flag(self) -> str:
        """The option of the command line."""
        return self.declared.flag

    @property
    def type(self) -> str:
        """What a value is, in words."""
        return self.declared.words

    @property
    def help(self) -> str:
        """What it is for."""
        return self.declared.setting.help


def reference() -> list[Row]:
    """Return all settings, the general ones first; methods of other packages are imported for theirs.

    Raises:
        ConfigError: a method of another package cannot be imported, or declares an option otherwise than another
            method that has it, too.
    """
    searching = [name for name, kind in method_kinds().items() if kind.searches]
    fixed = [name for name, kind in method_kinds().items() if not kind.searches]
    who = {Users.SEARCHING: ", ".join(searching), Users.FIXED: ", ".join(fixed)}
    rows = [
        Row(one, default_text({"": one}), who.get(one.setting.users, one.setting.users)) for one in GENERAL.values()
    ]
    for methods in option_owners().values():
        first = next(iter(methods.values()))
        if first.name in GENERAL:
            raise name_taken(first.name, next(iter(methods)))
        if any(one.kind != first.kind for one in methods.values()):
            raise ConfigError(f"the methods {', '.join(methods)} disagree on the type of their option {first.name}")
        rows.append(Row(first, default_text(methods), ", ".join(methods)))
    return rows


def finetune_reference() -> list[Row]:
    """Return the settings of ``csqtool finetune``, without defaults: these are those of the search."""
    rows = [Row(one, "", "") for one in GENERAL.values() if one.setting.finetune]
    for with_, method in FINETUNE_METHODS.items():
        own = declared(method_kind(method).options).values()
        rows += [Row(one, "", f"--finetune-with {with_}") for one in own if one.setting.finetune]
    return rows


def default_text(methods: Mapping[str, Declared]) -> str:
    """Return a default in words: that of the first method, and those of other methods, recipes and optimizers."""
    first = next(iter(methods.values()))
    name, shown = first.name, _shown(first, first.default)
    others = {method: _shown(one, one.default) for method, one in methods.items()}
    for recipe in RECIPES:
        others[recipe] = _shown(first, RECIPES[recipe].get(name, first.default))
    others["adamw"] = _shown(first, recipe_defaults({"optimizer": "adamw"}).get(name, first.default))
    return "; ".join([shown, *(f"{which} {other}" for which, other in others.items() if other != shown)]).strip("; ")


def _shown(one: Declared, value: Any) -> str:
    if value is MISSING or value in ({}, ()):
        return ""
    if value is None:
        return one.setting.none or ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
