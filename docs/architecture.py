"""Draws the rooms of csqtool and lists their modules, from the real imports and the order that the tests hold.

``python -m docs.architecture`` in the repository's root rewrites ``docs/architecture.svg`` and the list of modules in
``docs/architecture.md``. A test fails while they are out of date.
"""

from __future__ import annotations

import ast
import textwrap
from dataclasses import dataclass
from html import escape
from pathlib import Path

from tests.test_layering import ORDER, part

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "architecture.svg"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- modules: written by docs/architecture.py -->", "<!-- end of modules -->"

WIDTH, MARGIN, GAP, LINE, ROW_GAP = 900, 90, 24, 17, 26  # pixels


@dataclass(frozen=True)
class Room:
    """A box of the picture: one package, or the single modules of one rank.

    Attributes:
        parts: names as in `ORDER`.
        rank: place in the order, 0 at the bottom.
        x, y, width, height: of the box, in pixels.
        lines: the text below the title.
    """

    parts: tuple[str, ...]
    rank: int
    x: int
    y: int
    width: int
    height: int
    lines: tuple[str, ...]

    @property
    def title(self) -> str:
        """What the box is called: a package's name, or nothing where the lines name the modules."""
        return self.parts[0] if len(self.parts) == 1 else ""


def source(name: str) -> Path | None:
    """Return the file of a module or package, None if there is none of this name."""
    path = ROOT.joinpath(*name.split("."))
    files = (path / "__init__.py", path.with_suffix(".py"), *sorted(path.glob("*.py")))
    return next((file for file in files if file.is_file()), None)


def summary(name: str) -> str:
    """Return the first line of a module's docstring."""
    path = source(name)
    assert path is not None, f"{name} is in the order, but there is no such module"
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def imports(path: Path) -> set[str]:
    """Return the modules that a file imports, wherever in the file that is."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {name if source(name) else node.module for name in names}
    return found


def rooms() -> list[Room]:
    """Return the boxes with their places, the highest rank first."""
    found: list[Room] = []
    y = 16
    for rank, names in reversed(list(enumerate(ORDER))):
        parts = names.split()
        packages = [(name,) for name in parts if (ROOT / name.replace(".", "/")).is_dir()]
        modules = tuple(name for name in parts if (name,) not in packages)
        groups = [*packages, *([modules] if modules else [])]
        width = (WIDTH - 2 * MARGIN - GAP * (len(groups) - 1)) // len(groups)
        texts = [_text(group, width) for group in groups]
        height = max(22 + LINE * (len(lines) + (len(group) == 1)) for group, lines in zip(groups, texts, strict=True))
        for i, (group, lines) in enumerate(zip(groups, texts, strict=True)):
            found.append(Room(group, rank, MARGIN + i * (width + GAP), y, width, height, lines))
        y += height + ROW_GAP
    return found


def _text(group: tuple[str, ...], width: int) -> tuple[str, ...]:
    if len(group) > 1:
        text = ", ".join(name.removeprefix("csqtool.") for name in group)
    else:
        text = summary(group[0]).replace("`", "")
    return tuple(textwrap.wrap(text, width // 7))


def arrows(boxes: list[Room]) -> list[tuple[Room, Room]]:
    """Return which box imports which, without the arrows that follow from others."""
    home = {name: room for room in boxes for name in room.parts}
    below: dict[Room, set[Room]] = {room: set() for room in boxes}
    for top in ("csqtool", "exporters"):
        for path in (ROOT / top).rglob("*.py"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            own = part(module)
            for imported in imports(path):
                # `import csqtool` gives the Python interface, which loads its functions when they are first used.
                other = part(imported) or ("csqtool.api" if imported == "csqtool" else None)
                if own in home and other in home and home[other] is not home[own]:
                    below[home[own]].add(home[other])

    def reachable(room: Room) -> set[Room]:
        found, new = set(), set(below[room])
        while new:
            found |= new
            new = {other for near in new for other in below[near]} - found
        return found

    return [
        (room, other) for room in boxes for other in below[room]
        if not any(other in reachable(near) for near in below[room])
    ]  # fmt: skip


def picture() -> str:
    """Return the SVG: boxes, the command line on top, and arrows from each to what it imports."""
    boxes = rooms()
    height = boxes[-1].y + boxes[-1].height + 16
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        'font-size="13" role="img" aria-label="The packages and modules of csqtool; each imports those below it">',
        '  <defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto"><path d="M0 0L8 4L0 8z" fill="#3566a8"/></marker></defs>',
        f'  <rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        '  <g stroke="#3566a8" stroke-width="1.3" fill="none" marker-end="url(#head)">',
    ]
    lines += [
        f'    <path d="{_path(a, b, boxes)}"/>'
        for a, b in sorted(arrows(boxes), key=lambda pair: (pair[0].y, pair[0].x, pair[1].y, pair[1].x))
    ]
    lines.append("  </g>")
    for box in boxes:
        lines.append(
            f'  <rect x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="7" fill="#eef3fb" '
            'stroke="#3566a8" stroke-width="1.3"/>'
        )
        center, y = box.x + box.width // 2, box.y + 22
        shown = [(box.title, ' font-weight="bold"')] if box.title else []
        for text, weight in [*shown, *((line, "") for line in box.lines)]:
            lines.append(
                f'  <text x="{center}" y="{y}" text-anchor="middle" fill="#12263f"{weight}>{escape(text)}</text>'
            )
            y += LINE
    return "\n".join([*lines, "</svg>", ""])


def _path(a: Room, b: Room, boxes: list[Room]) -> str:
    """Return a straight arrow to the next row, or one that passes the rows between on the nearer side."""
    if a.y == b.y:
        y = a.y + a.height // 2
        return f"M{a.x + a.width} {y}H{b.x - 2}" if a.x < b.x else f"M{a.x} {y}H{b.x + b.width + 2}"
    if not any(a.y < box.y < b.y for box in boxes):
        start = min(max(b.x + b.width // 2, a.x + 12), a.x + a.width - 12)
        end = min(max(start, b.x + 12), b.x + b.width - 12)
        return f"M{start} {a.y + a.height}L{end} {b.y - 2}"
    # A lane beside the boxes, further out the more rows it passes.
    depth = MARGIN - 12 - 6 * (a.rank - b.rank) % (MARGIN - 20)
    y1, y2 = a.y + a.height // 2, b.y + b.height // 2
    if a.x - MARGIN + b.x - MARGIN <= 2 * (WIDTH - MARGIN) - a.x - a.width - b.x - b.width:
        lane, start, end = depth, a.x, b.x - 2
    else:
        lane, start, end = WIDTH - depth, a.x + a.width, b.x + b.width + 2
    return f"M{start} {y1}C{lane} {y1} {lane} {y1} {lane} {y1 + 30}V{y2 - 30}C{lane} {y2} {lane} {y2} {end} {y2}"


def module_table() -> str:
    """Return the list of modules, the lowest rank first, in Markdown."""
    rows = ["| rank | module or package | what it holds |", "| ---: | --- | --- |"]
    for rank, names in enumerate(ORDER):
        for i, name in enumerate(names.split()):
            rows.append(f"| {rank if i == 0 else ''} | `{name}` | {summary(name).replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def with_modules(page: str) -> str:
    """Return the page with a fresh list of modules."""
    head, _, rest = page.partition(BEGIN)
    tail = rest.partition(END)[2]
    return f"{head}{BEGIN}\n\n{module_table()}\n\n{END}{tail}"


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    PAGE.write_text(with_modules(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
