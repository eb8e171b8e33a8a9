"""Targets of a search: planes, bytes of the packed file, or bit operations, of which a search has exactly one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from csqtool.errors import ConfigError
from csqtool.searching.declarations import SettingError
from csqtool.text import parse_operations, parse_size

TARGETS = ("target_bits", "target_size", "target_bops")


def has_target(settings: Mapping[str, Any]) -> bool:
    """Return whether settings contain a target."""
    return any(settings.get(name) is not None for name in TARGETS)


def check_target(settings: Mapping[str, Any]) -> None:
    """Check the target of a search, and the settings that say how it is counted.

    Args:
        settings: all general settings, by name.

    Raises:
        ConfigError: there is none, or several, or another setting does not go together with it.
        SettingError: it has a wrong value.
    """
    bits, size, operations = (settings[name] for name in TARGETS)
    if sum(settings[name] is not None for name in TARGETS) != 1:
        raise ConfigError("give either target bits, a target size or target bops, and not several")
    planes = settings["planes"]
    if bits is not None and not 1 <= bits <= planes:
        raise SettingError("target_bits", f"must be 1 to {planes} (the planes of a search), got {bits:g}")
    if size is not None and parse_size(size) <= 0:
        raise SettingError("target_size", "must be above 0")
    if operations is not None and parse_operations(operations) <= 0:
        raise SettingError("target_bops", "must be above 0")
    if bits is None and settings["budget_weighting"] != "elements":
        counted = "a target size counts bytes" if size is not None else "target bops count operations"
        raise ConfigError(f"{counted}: leave out the budget weighting, or give target bits")
    if size is None and settings["size_profile"] != "archival":
        raise SettingError("size_profile", "says what a target size counts: give a target size")
