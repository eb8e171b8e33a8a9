"""How the modules depend on each other: read from their source, without importing them."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Each part may import the parts above it, those of its own line, and itself. "csqtool" is the package's __init__ alone.
# Entry points (methods, exporters, backends) are found by name at run time and are no imports.
ORDER = [
    "csqtool.errors csqtool.files csqtool.text csqtool.model_info csqtool.quantized_model csqtool.integers "
    "csqtool.folding csqtool.interruption csqtool.forks csqtool.progress csqtool.documents csqtool.onnx_file "
    "csqtool.onnx_session csqtool.sandbox csqtool.onnx_isolated csqtool.onnx_limits csqtool.onnx_schemas "
    "csqtool.onnx_worker csqtool.trust csqtool.onnx_kernels csqtool.benchmarking csqtool.registry csqtool.version "
    "csqtool.trees csqtool.hubs csqtool.installation csqtool.notebook",
    "csqtool.finalized_file csqtool.factories csqtool.task csqtool.randomness",
    "csqtool.nn.modes",
    "csqtool.data",
    "csqtool.nn",
    "csqtool.processes",
    "csqtool.gradient_sums csqtool.rebuild csqtool.evaluation csqtool.model_source",
    "csqtool.csq",
    "csqtool.exporting csqtool.searching",
    "csqtool.float16 csqtool.reconstruction",
    "csqtool.packing csqtool.fingerprints csqtool.output_error",
    "exporters csqtool.summaries csqtool.sweeping",
    "csqtool.verifying",
    "csqtool.pipeline_file csqtool.pipeline_stages csqtool.checking csqtool.quantizing csqtool.layer_sensitivity "
    "csqtool.blaming csqtool.comparing",
    "csqtool.pipeline_runner",
    "csqtool.reporting",
    "csqtool.inspecting csqtool.diffing csqtool.starting",
    "csqtool.api",
    "csqtool",
    "csqtool.cli",
    "csqtool.__main__ csqtool.starter",
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names.split()}
FORBIDDEN = {
    "exporters": ("csqtool.searching", "csqtool.verifying"),
    "csqtool": ("exporters", "sample_models"),
    "csqtool.verifying": ("csqtool.csq",),  # it decodes with code of its own, so that a shared mistake cannot pass
}
LONGEST_CHAIN = 15
LONGEST_MODULE = 400


def modules_below(*packages: str) -> dict[str, Path]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in packages
        for path in sorted((ROOT / package).rglob("*.py"))
    }


MODULES = modules_below("csqtool", "exporters")


def imports(module: str, source: str, *, is_package: bool = False) -> set[str]:
    """Return the modules that a module imports anywhere: at its top, in functions, by name, and for annotations.

    What stands under TYPE_CHECKING counts, too. It costs nothing at run time, but whoever reads an annotation has to
    know the type, so that an arrow upward there binds two parts to each other as any other does.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                found |= {alias.name for alias in node.names}
            case ast.ImportFrom():
                base = node.module or ""
                if node.level:
                    parents = module.split(".")
                    parents = parents[: len(parents) - node.level + is_package]
                    base = ".".join([*parents, *([base] if base else [])])
                # `from csqtool import csq` imports a module, `from csqtool.csq import pack` a name of one.
                submodules = {f"{base}.{alias.name}" for alias in node.names}
                found |= submodules & MODULES.keys()
                if submodules - MODULES.keys():
                    found.add(base)
            case ast.Attribute(value=ast.Name(id="csqtool" | "exporters" as package), attr=name):
                # `import csqtool.version` binds `csqtool`, by which everything else can be reached.
                if not name.startswith("__"):
                    found.add(f"{package}.{name}" if f"{package}.{name}" in MODULES else package)
            case ast.Constant(value=str(text)):
                # The argument of import_module, and tables that lead to it: "csqtool.cli.run_verb:run".
                name = text.partition(":")[0]
                if "." in name and name in MODULES:
                    found.add(name)
            case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called), args=[ast.Constant(value=str(text))]):
                if called in ("import_module", "__import__"):
                    found.add(text)
    return found


def part(module: str) -> str | None:
    """Return the entry of ORDER that a module belongs to."""
    matches = [name for name in RANK if module == name or (name != "csqtool" and module.startswith(f"{name}."))]
    return max(matches, key=len, default=None)


@cache
def imports_of_all() -> dict[str, set[str]]:
    return {
        module: imports(module, path.read_text(encoding="utf-8"), is_package=path.name == "__init__.py")
        for module, path in MODULES.items()
    }


@cache
def arrows() -> dict[str, set[str]]:
    """Return the parts that each part imports."""
    found: dict[str, set[str]] = {}
    for module, imported in imports_of_all().items():
        own = str(part(module))
        found.setdefault(own, set()).update({other for name in imported if (other := part(name)) is not None} - {own})
    return found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from csqtool import csq", {"csqtool.csq"}),
        ("from csqtool import csq as codec, search", {"csqtool.csq", "csqtool"}),
        ("from csqtool.csq import pack", {"csqtool.csq"}),
        ("import csqtool.nn.gates as g", {"csqtool.nn.gates"}),
        ("import csqtool.version\ncsqtool.verify()", {"csqtool.version", "csqtool"}),
        ("import csqtool.version\ncsqtool.__file__", {"csqtool.version"}),
        ("from . import gates", {"csqtool.nn.gates"}),
        ("from .gates import BitGates", {"csqtool.nn.gates"}),
        ("from ..csq import pack", {"csqtool.csq"}),
        ("def f():\n    from csqtool import cli", {"csqtool.cli"}),
        ("if TYPE_CHECKING:\n    from csqtool.cli import main", {"csqtool.cli"}),
        ('importlib.import_module("csqtool.cli")', {"csqtool.cli"}),
        ('import_module("csqtool")', {"csqtool"}),
        ('HOMES = {"run": "csqtool.cli.run_verb:run"}', {"csqtool.cli.run_verb"}),
        ('KEY = "csqtool.no_module"', set()),
    ],
)
def test_every_way_to_import_a_module_is_seen(source: str, found: set[str]) -> None:
    assert imports("csqtool.nn.weights", source) == found


def test_a_package_imports_relative_to_itself() -> None:
    assert imports("csqtool.nn", "from . import gates", is_package=True) == {"csqtool.nn.gates"}


def test_every_module_has_a_place_in_the_order_and_every_place_a_module() -> None:
    assert [module for module in MODULES if part(module) is None] == []
    assert RANK.keys() - {part(module) for module in MODULES} == set()


def test_imports_point_one_way() -> None:
    upward = [
        f"{module} imports {name}"
        for module, imported in imports_of_all().items()
        for name in sorted(imported)
        if (other := part(name)) is not None and RANK[other] > RANK[str(part(module))]
    ]
    assert upward == []


def test_what_must_not_know_each_other_does_not() -> None:
    for module, imported in imports_of_all().items():
        for owner, foreign in FORBIDDEN.items():
            if f"{module}.".startswith(f"{owner}."):
                assert not [name for name in imported if f"{name}.".startswith(tuple(f"{f}." for f in foreign))], module


def test_no_part_imports_itself_through_others_and_the_longest_chain_stays_short() -> None:
    chains: dict[str, tuple[str, ...]] = {}
    for name in TopologicalSorter(arrows()).static_order():  # raises CycleError, which names the circle
        below = max((chains[other] for other in arrows().get(name, ())), key=len, default=())
        chains[name] = (name, *below)
    longest = max(chains.values(), key=len)
    assert len(longest) <= LONGEST_CHAIN, " → ".join(longest)


def test_no_module_is_longer_than_a_reader_can_keep_in_mind() -> None:
    paths = modules_below("csqtool", "exporters", "tests", "benchmarks").values()
    lengths = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").count("\n") for path in paths}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_MODULE} == {}
