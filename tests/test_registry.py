from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints

import pytest

from csqtool import registry
from csqtool.errors import ConfigError
from csqtool.registry import Registry


class Described:
    description = "counts"


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Return a group in which one entry can be imported and one cannot."""
    found = {
        "square": EntryPoint("square", f"{__name__}:Described", "shapes"),
        "circle": EntryPoint("circle", "nowhere.to.be.found:Circle", "shapes"),
    }
    monkeypatch.setattr(
        registry, "entry_points", lambda *, group: EntryPoints(found.values() if group == "shapes" else [])
    )
    return Registry("shapes", "shape")


def test_names_are_sorted_and_nothing_is_imported_for_them(shapes: Registry) -> None:
    assert shapes.names() == ["circle", "square"]


def test_an_entry_is_imported_when_it_is_loaded(shapes: Registry) -> None:
    assert shapes.load("square") is Described
    with pytest.raises(ModuleNotFoundError):
        shapes.load("circle")


def test_an_unknown_name_is_answered_with_the_nearest_or_with_all(shapes: Registry) -> None:
    with pytest.raises(ConfigError, match="unknown shape 'sqare'; did you mean 'square'"):
        shapes.load("sqare")
    with pytest.raises(ConfigError, match="unknown shape 'x'; known: circle, square"):
        shapes.load("x")


def test_what_is_installed_for_csqtool_can_be_loaded_and_describes_itself() -> None:
    for group, name in (("exporters", "onnx"), ("backends", "reference"), ("methods", "csq"), ("activations", "pact")):
        installed = Registry(f"csqtool.{group}", group)
        assert name in installed.names()
        assert all(isinstance(installed.load(name), type) for name in installed.names())
    assert all(Registry("csqtool.methods", "method").descriptions().values())
