"""Declarations of settings: fields of a frozen dataclass, each annotated with its description and allowed values.

The command line's option, the key in a pipeline file, the checks and the reference are all made from the declaration:

    >>> @dataclass(frozen=True)
    ... class Options:
    ...     rate: Annotated[float, Setting("Learning rate.", minimum=0)] = 0.1
    >>> declared(Options)["rate"].check(0.5)
    >>> declared(Options)["rate"].check(-1)
    Traceback (most recent call last):
        ...
    csqtool.searching.declarations.SettingError: rate must not be negative, got -1
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from csqtool.errors import ConfigError, nearest

# Types as messages and the reference call them.
WORDS = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "str": "text",
    "tuple": "a list of texts",
    "Mapping": "a table",
}


LARGEST = 1e300  # sums and products of settings stay finite


class SettingError(ConfigError):
    """A setting is wrong.

    Attributes:
        key: the setting.
        problem: what is wrong with it, the rest of a sentence that begins with the setting's name.
    """

    def __init__(self, key: str, problem: str, *, where: str = "") -> None:
        super().__init__(f"{where}: {key} {problem}" if where else f"{key} {problem}")
        self.key = key
        self.problem = problem


class Users(StrEnum):
    """The methods that use a general setting."""

    ALL = "all methods"
    SEARCHING = "methods that search"
    FIXED = "methods of fixed bits"
    SHRINKING = "methods that search; all with a target size"
    FINETUNING = "methods that search, and allocators"


@dataclass(frozen=True)
class Setting:
    """The description of a setting and the checks of its value; its type, name and default are the field's.

    Attributes:
        help: a sentence or two.
        minimum, maximum: the range of a number, both included.
        above: a number must be larger than this.
        users: the methods that use it.
        unused: its value with methods that do not use it; None for the default.
        finetune: whether ``csqtool finetune`` has it, too.
        none: the text for None; the command line accepts it as a value if it has no space.
        metavar: the command line's placeholder for an entry of a table or list.
        flag: the command line's option, if it is not the setting's name.
    """

    help: str
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    users: Users = Users.ALL
    unused: Any = None
    finetune: bool = False
    none: str | None = None
    metavar: str | None = None
    flag: str | None = None


@dataclass(frozen=True)
class Declared:
    """A declared setting.

    Attributes:
        name: the field, which is the key in pipeline files and the keyword in Python.
        kind: its type, without None.
        optional: whether None is allowed.
        default: its default; `dataclasses.MISSING` if it has none.
        setting: its description and checks.
    """

    name: str
    kind: Any
    optional: bool
    default: Any
    setting: Setting

    @property
    def flag(self) -> str:
        """The option of the command line."""
        return self.setting.flag or f"--{self.name.replace('_', '-')}"

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed texts of a `Literal`; empty for other types."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    @property
    def words(self) -> str:
        """The type of a value, as messages and the reference call it."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        of = " of whole numbers" if get_args(self.kind)[-1:] == (int,) else ""
        return WORDS[(get_origin(self.kind) or self.kind).__name__] + of

    def check(self, value: Any) -> None:
        """Check a value.

        Raises:
            SettingError: it has the wrong type, or is out of range.
        """
        if value is None and self.optional:
            return
        if self.choices and value not in self.choices:
            raise SettingError(self.name, f"cannot be {value!r}; {nearest(str(value), self.choices)}")
        try:
            msgspec.convert(value, self.kind)
        except (msgspec.ValidationError, RecursionError) as error:
            none = f" or {self.setting.none or 'nothing'}" if self.optional else ""
            raise SettingError(self.name, f"must be {self.words}{none}, got {value!r}") from error
        if isinstance(value, int | float):
            self._check_range(value)

    def _check_range(self, value: float) -> None:
        setting, low, high = self.setting, self.setting.minimum, self.setting.maximum
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        if not abs(value) < LARGEST:  # nor is NaN
            raise SettingError(self.name, f"must be a finite number, got {shown:.40}")
        if (low is not None and value < low) or (high is not None and value > high):
            if high is not None:
                wanted = f"be {low:g} to {high:g}"
            else:
                wanted = f"be at least {low:g}" if low else "not be negative"
            raise SettingError(self.name, f"must {wanted}, got {shown}")
        if setting.above is not None and value <= setting.above:
            raise SettingError(self.name, f"must be above {setting.above:g}, got {shown}")


def declared(record: type) -> dict[str, Declared]:
    """Return the settings that a dataclass declares, by name; fields without a `Setting` are left out.

    Raises:
        ConfigError: a setting has a type that no option of the command line can have.
    """
    hints = get_type_hints(record, include_extras=True)
    found = {}
    for field in dataclasses.fields(record):
        hint = hints[field.name]
        setting = next((extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Setting)), None)
        if setting is None:
            continue
        kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        kinds = [part for part in parts if part is not NoneType]
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        one = Declared(field.name, kinds[0], NoneType in parts, default, setting)
        name = getattr(get_origin(one.kind) or one.kind, "__name__", "")
        if len(kinds) > 1 or (name not in WORDS and not one.choices):
            raise ConfigError(f"the setting {field.name} of {record.__qualname__} has a type without an option: {kind}")
        found[field.name] = one
    return found


def check(record: Any) -> None:
    """Check all settings of a record.

    Raises:
        SettingError: a setting has the wrong type, or is out of range.
    """
    for name, one in declared(type(record)).items():
        one.check(getattr(record, name))
