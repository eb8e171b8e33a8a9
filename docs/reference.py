"""The reference pages of the documentation, made from the code whenever the site is built.

A verb, option, setting, method, format, backend, gate, exit code or record that is added to csqtool appears by itself.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any

import click
import msgspec

import csqtool
from csqtool import cli, pipeline_file
from csqtool.exporting import EXPORTERS
from csqtool.installation import Finding
from csqtool.nn.activation_variants import QUANTIZERS
from csqtool.searching.config import SearchConfig
from csqtool.searching.declarations import declared
from csqtool.searching.records import AllocationRecord, Harm, LayerHarms, LogEntry, SchemeEntry, Summary
from csqtool.searching.settings import quantize_settings, reference
from csqtool.verifying import Gates, Tolerances, VerifyReport
from csqtool.verifying.backends import BACKENDS
from csqtool.verifying.findings import BisectedNode, Bisection, Check, LayerFinding

# Every exit code of csqtool.cli, by the name of its constant; 0 has none.
EXIT_CODES = {
    "": (0, "done", "Everything was done, and all checks and gates hold."),
    "EXIT_FAILED": (cli.EXIT_FAILED, "failed", "A check or a gate does not hold, or `diff --fail-on-change` found a "
                    "change. The lines say which; the files are there to look at."),
    "EXIT_USAGE": (cli.EXIT_USAGE, "bad usage or input", "One line on stderr that begins with `error:` says what was "
                   "named, what was found and what to do. Nothing half-written is left."),
    "EXIT_BUG": (cli.EXIT_BUG, "a bug", "Something unexpected: `csqtool --debug …` shows the traceback. Please report "
                 "it."),
    "EXIT_INTERRUPTED": (cli.EXIT_INTERRUPTED, "interrupted", "Ctrl-C. A search saved its state: "
                         "`csqtool search --resume RUN` goes on."),
}  # fmt: skip
# The records that csqtool writes as JSON, and where.
RECORDS: dict[type, str] = {
    VerifyReport: "`csqtool verify --json`",
    Check: "an entry of `checks` in a report",
    LayerFinding: "an entry of `layers` in a report",
    Bisection: "`bisection` in a report of `verify --bisect`",
    BisectedNode: "an entry of `nodes` in a bisection",
    Tolerances: "`tolerances` in a report, `[verify.tolerances]` in a pipeline",
    Summary: "`summary.json` in a run directory",
    SchemeEntry: "an entry of `scheme.json` in a run directory",
    AllocationRecord: "`allocation.json` in a run directory, with an allocator",
    LayerHarms: "an entry of `layers` in `allocation.json`",
    Harm: "an entry of `harms` of a layer",
    LogEntry: "a line of `log.jsonl` in a run directory",
    Finding: "an entry of `csqtool doctor --json`",
}


def pages() -> dict[str, str]:
    """Return the generated pages: Markdown by path below ``docs/``."""
    return {
        "reference/commands.md": commands(),
        "reference/settings.md": settings(),
        "reference/pipeline.md": pipeline(),
        "reference/python.md": python(),
        "reference/plugins.md": plugins(),
        "reference/exit-codes.md": exit_codes(),
        "reference/json.md": documents(),
    }


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join('---' for _ in heads)} |"]
    for row in rows:
        cells = (" ".join(str(cell).split()).replace("|", "\\|") for cell in row)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def attributes(kind: type) -> dict[str, str]:
    """Return the descriptions of a class's attributes from its docstring, by name."""
    body = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2]
    found: dict[str, str] = {}
    names: list[str] = []
    for line in body.split("\n"):
        if begin := re.match(r"    (\w+(?:, \w+)*): (.*)", line):
            names = begin[1].split(", ")
            found |= dict.fromkeys(names, begin[2])
        elif line.startswith("        ") and names:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        elif line and not line.startswith("    "):
            break
    return found


def prose(text: str) -> str:
    """Return help text as Markdown: one paragraph stays one, and ``<`` begins no tag."""
    return inspect.cleandoc(text).replace("``", "`").replace("<", "&lt;")


def commands() -> str:
    """Return the page of every verb with its arguments and options."""
    parts = ["# Commands\n", "`csqtool VERB --help` prints the same.\n"]
    main = cli.cli
    top = click.Context(main, info_name="csqtool")
    parts.append(_parameters(main.get_params(top), top))
    for name in main.list_commands(top):
        command = main.get_command(top, name)
        assert command is not None
        ctx = click.Context(command, info_name=name, parent=top)
        usage = " ".join(command.collect_usage_pieces(ctx))
        parts += [f"## {name}\n", f"```text\ncsqtool {name} {usage}\n```\n", prose(command.help or "") + "\n"]
        parts.append(_parameters(command.get_params(ctx), ctx))
    return "\n".join(parts)


def _parameters(parameters: list[click.Parameter], ctx: click.Context) -> str:
    rows = []
    for one in parameters:
        if not isinstance(one, click.Option):
            continue
        names = ", ".join(f"`{name}`" for name in (*one.opts, *one.secondary_opts))
        value = "" if one.is_flag else f"`{one.make_metavar(ctx)}`"
        needed = " Required." if one.required else ""
        rows.append((names, value, prose(one.help or "") + needed))
    return table(("option", "value", "meaning"), rows)


def settings() -> str:
    """Return the page of all settings of a search."""
    text = """---
hide: [toc]
---

# Settings

A setting is an option of `csqtool search`, a key of `[search]` in a pipeline file and a keyword of `csqtool.search`.
It is declared once, in the code that uses it. `quantize` has those marked with *q*. Bits of a budget are planes:
[precision against bit width](../concepts.md#precision-against-bit-width).
"""
    heads = ("setting", "option", "type", "default", "meaning", "used by")
    rows = [
        (f"`{row.name}`" + (" *q*" if row.name in quantize_settings() else ""),
         "`MODEL`" if row.name == "model" else f"`{row.flag}`",
         " or ".join(f"`{choice}`" for choice in row.declared.choices) or row.type, row.default, prose(row.help),
         row.methods)
        for row in reference()
    ]  # fmt: skip
    return f'{text}\n<div class="settings" markdown>\n\n{table(heads, rows)}\n</div>\n'


def pipeline() -> str:
    """Return the page of the keys of a pipeline file."""
    parts = [
        """# Pipeline file

`csqtool run pipeline.toml` reads one TOML file. Paths in it are relative to the file. An unknown key is an error that
names the nearest known one. `csqtool init DIR` writes an example that runs.

`[search]` takes every [setting](settings.md) but those that belong in `[model]` and `[data]`.
"""
    ]
    described = attributes(pipeline_file.Pipeline) | {
        "factory": "`file.py:name`, `module:name` or a [network by name](../data.md#models-by-name).",
        "args": "A table of the factory's keyword arguments.",
        "weights": declared(SearchConfig)["weights"].setting.help,
        "source": "The data: " + declared(SearchConfig)["data"].setting.help,
        "task": declared(SearchConfig)["task"].setting.help,
    }
    tables: list[tuple[str, Any, set[str]]] = [
        ("at the top", pipeline_file._File, {"model", "data", "search", "export", "verify"}),
        ("[model]", pipeline_file._Model, set()),
        ("[data]", pipeline_file._Data, set()),
        ("[export]", pipeline_file._Export, set()),
        ("[verify]", pipeline_file._Verify, {"tolerances"}),
    ]
    for name, kind, left_out in tables:
        rows = [
            (f"`{field.name}`", _default(field), prose(described.get(field.name, "")))
            for field in msgspec.structs.fields(kind) if field.name not in left_out
        ]  # fmt: skip
        parts += [f"## {name}\n", table(("key", "default", "meaning"), rows)]
    for format_name in EXPORTERS.names():
        kind = EXPORTERS.load(format_name).Options
        if kind is not None:
            rows = [
                (f"`{f.name}`", _plain(f.default), prose(f.metadata.get("help", ""))) for f in dataclasses.fields(kind)
            ]
            parts += [f"## [export.{format_name}]\n", table(("key", "default", "meaning"), rows)]
    parts += ["## Gates in [verify]\n", _struct_table(Gates), "## [verify.tolerances]\n", _struct_table(Tolerances)]
    return "\n".join(parts)


def _default(field: Any) -> str:
    if field.default_factory is not msgspec.NODEFAULT:
        return _plain(field.default_factory())
    return "required" if field.default is msgspec.NODEFAULT else _plain(field.default)


def _plain(value: object) -> str:
    return "" if value is None or value in ([], {}, ()) else f"`{value}`"


def _struct_table(kind: type[msgspec.Struct]) -> str:
    described = attributes(kind)
    rows = [(f"`{f.name}`", _default(f), prose(described[f.name])) for f in msgspec.structs.fields(kind)]
    return table(("key", "default", "meaning"), rows)


def python() -> str:
    """Return the page of the public names, whose docstrings mkdocstrings inserts."""
    functions, classes = [], []
    for name in csqtool.__all__:
        value = getattr(csqtool, name)
        if name == "__version__":
            continue
        (classes if inspect.isclass(value) else functions).append(f"::: {value.__module__}.{value.__qualname__}\n")
    return "\n".join(
        [
            "# Python\n",
            "Everything that is written here is a name of the package `csqtool`: `csqtool.search`, `csqtool.Gates` and "
            "so on. Importing the package does not import torch. `csqtool.__version__` is the version.\n",
            "## Functions\n",
            *functions,
            "## Classes and errors\n",
            *classes,
        ]
    )


def plugins() -> str:
    """Return the page of what is registered under entry points."""
    rows = []
    for name, one in csqtool.methods().items():
        options = ", ".join(f"`{option}`" for option in one["options"])
        rows.append((f"`{name}`", one["kind"], one["data"], one["description"], options))
    formats = []
    for name in EXPORTERS.names():
        one = EXPORTERS.load(name)
        formats.append((f"`{name}`", f"`{one.suffix}`" if one.suffix else "a folder", one.description))
    return "\n".join(
        [
            "# Methods, formats, backends\n",
            "They are classes under entry points, and another package [can add some](../architecture.md).\n",
            "## Methods (`csqtool.methods`, `csqtool.allocators`)\n",
            "An allocator finds the planes of each layer from the float model, a trainer trains the weights at given "
            "planes, and some do both at once.\n",
            table(("method", "kind", "data needed", "what it does", "its own options"), rows),
            "[Equations and sources](../methods.md).\n",
            "## Formats (`csqtool.exporters`)\n",
            table(("format", "suffix", "what it is"), formats),
            "## Backends of verify (`csqtool.backends`)\n",
            table(("backend", "what it is"), [(f"`{n}`", _summary(BACKENDS.load(n))) for n in BACKENDS.names()]),
            "## Quantizers of activations (`csqtool.activations`)\n",
            table(("quantizer", "what it is"), [(f"`{n}`", _summary(QUANTIZERS.load(n))) for n in QUANTIZERS.names()]),
        ]
    )


def _summary(kind: type) -> str:
    return prose((inspect.getdoc(kind) or "").partition("\n")[0])


def exit_codes() -> str:
    """Return the page of exit codes."""
    rows = [(f"`{code}`", word, text) for code, word, text in EXIT_CODES.values()]
    return f"# Exit codes\n\n{table(('code', 'what happened', 'more'), rows)}"


def documents() -> str:
    """Return the page of JSON documents."""
    parts = [
        """# JSON documents

What csqtool writes as JSON. Readers ignore keys that they do not know, so that later versions may add some. The schema
of a report of `verify` is [a file](../verify-report.schema.json).
"""
    ]
    for kind, where in RECORDS.items():
        described = attributes(kind)
        fields = msgspec.inspect.type_info(kind).fields  # type: ignore[union-attr]
        required = ["yes" if field.required else "" for field in fields]
        rows = [
            (f"`{field.encode_name}`", need, prose(described.get(field.name, "")))
            for field, need in zip(fields, required, strict=True)
        ]
        parts += [f"## {kind.__name__}\n", f"{where}\n", table(("key", "always there", "meaning"), rows)]
    return "\n".join(parts)
