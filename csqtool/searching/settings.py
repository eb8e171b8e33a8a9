"""The reference of all settings: names, types, defaults, descriptions, and the methods that use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Any

from csqtool.errors import ConfigError
from csqtool.searching.config import GENERAL, is_used, name_taken
from csqtool.searching.declarations import Declared, Users, declared
from csqtool.searching.options import FINETUNE_METHODS, method_kind, method_kinds, option_owners
from csqtool.searching.recipes import RECIPES, recipe_defaults

# Of a search's settings, those that quantization after training has.
QUANTIZE_SETTINGS = ("data", "target_bits", "target_size", "target_bops", "size_profile", "act_bits", "weights", "pin",
                     "exclude", "min_bits", "max_bits", "keep_output", "task", "batch_size", "seed", "device",
                     "model_args")  # fmt: skip


def quantize_settings(allocator: str | None = None) -> tuple[str, ...]:
    """Return the names of the settings of quantization after training: general ones, and an allocator's, or all's."""
    kinds = [kind for name, kind in method_kinds().items() if kind.allocates and allocator in (None, name)]
    return (*QUANTIZE_SETTINGS, *dict.fromkeys(name for kind in kinds for name in declared(kind.options)))


@dataclass(frozen=True)
class Row:
    """A setting in the reference.

    Attributes:
        declared: its declaration.
        default: its default as text, with those of other recipes and of AdamW where they differ; may be empty.
        methods: the names of the methods that use it, or ``all methods``.
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
        """The type of a value, such as ``a whole number``."""
        return self.declared.words

    @property
    def help(self) -> str:
        """A sentence or two."""
        return self.declared.setting.help


def reference() -> list[Row]:
    """Return all settings, the general ones first; methods of other packages are imported for their options.

    Raises:
        ConfigError: a method of another package cannot be imported, or declares an option with another type than a
            method that has the same option.
    """
    who = {
        users: ", ".join(name for name, kind in method_kinds().items() if is_used(users, kind, sized=False))
        for users in (Users.SEARCHING, Users.FIXED)
    }
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
    """Return the settings of ``csqtool finetune``, without defaults: the search's settings are its defaults."""
    rows = [Row(one, "", "") for one in GENERAL.values() if one.setting.finetune]
    for with_, method in FINETUNE_METHODS.items():
        own = declared(method_kind(method).options).values()
        rows += [Row(one, "", f"--finetune-with {with_}") for one in own if one.setting.finetune]
    return rows


def default_text(methods: Mapping[str, Declared]) -> str:
    """Return the text of a default: the first method's, and those of other methods, recipes and optimizers."""
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
