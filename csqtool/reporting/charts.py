"""Charts as SVG. Colours come from the page's style sheet, so that they follow its light and dark theme."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from csqtool.text import printable

HERE = Path(__file__).parent
WIDTH, HEIGHT = 480, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 14, 44
SERIES_COLOURS = 6  # classes c0 … c5 of the style sheet


@dataclass(frozen=True)
class Series:
    """Points of one kind: label, coordinates, and what a point is called (empty: its coordinates)."""

    label: str
    points: Sequence[tuple[float, float]]
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Box:
    """A rectangle in a plane, and what it is called."""

    label: str
    left: float
    right: float
    bottom: float
    top: float


def chart(
    title: str,
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    joined: bool = True,
    level: tuple[str, float] | None = None,
    from_zero: bool = False,
    whole_x: bool = False,
) -> Markup:
    """Return a chart of several series.

    Args:
        title: what it shows, also read aloud.
        series: at least one point in all.
        x: label of its axis.
        y: label of its axis.
        joined: join the points of a series by a line.
        level: a horizontal line, with its label.
        from_zero: both axes begin at zero.
        whole_x: the places on the first axis are whole numbers; no others are written at it.
    """
    xs = [p[0] for s in series for p in s.points]
    ys = [p[1] for s in series for p in s.points] + ([level[1]] if level else [])
    x_ticks, y_ticks = _ticks(min([*xs, *[0.0] * from_zero]), max(xs), whole=whole_x), _ticks(min(ys), max(ys))
    svg = _svg(title, WIDTH, HEIGHT)
    place_x = _scale(x_ticks[0], x_ticks[-1], _LEFT, WIDTH - _RIGHT)
    place_y = _scale(y_ticks[0], y_ticks[-1], HEIGHT - _BOTTOM, _TOP)
    for tick in y_ticks:
        _line(svg, _LEFT, place_y(tick), WIDTH - _RIGHT, place_y(tick), "grid")
        _text(svg, _LEFT - 6, place_y(tick) + 4, f"{tick:g}", "end")
    for tick in x_ticks:
        _text(svg, place_x(tick), HEIGHT - _BOTTOM + 18, f"{tick:,g}", "middle")
    _text(svg, (_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 6, x, "middle", "label")
    _text(svg, -(HEIGHT - _BOTTOM + _TOP) / 2, 12, y, "middle", "label", transform="rotate(-90)")
    if level:
        _line(svg, _LEFT, place_y(level[1]), WIDTH - _RIGHT, place_y(level[1]), "level")
        _text(svg, WIDTH - _RIGHT, place_y(level[1]) - 5, level[0], "end")
    for number, one in enumerate(series):
        group = ET.SubElement(svg, "g", {"class": f"c{number % SERIES_COLOURS}"})
        places = [(place_x(a), place_y(b)) for a, b in one.points]
        if joined and len(places) > 1:
            ET.SubElement(group, "polyline", {"points": " ".join(f"{a:.1f},{b:.1f}" for a, b in places)})
        for i, (a, b) in enumerate(places):
            mark = _mark(group, number, a, b)
            name = one.names[i] if one.names else one.label
            ET.SubElement(mark, "title").text = printable(f"{name}: {one.points[i][0]:,g}, {one.points[i][1]:.5g}")
    return _markup(svg)


def histogram(title: str, q: NDArray[Any]) -> Markup:
    """Return a histogram of the integers in `q`: one bar a value, so that unused values of the grid show as gaps."""
    values, counts = np.unique(q, return_counts=True)
    low, high = int(values[0]), int(values[-1])
    width, height, bottom = 240, 110, 18
    svg = _svg(title, width, height)
    step = (width - 4) / max(high - low + 1, 3)
    left = (width - step * (high - low + 1)) / 2
    group = ET.SubElement(svg, "g", {"class": "c0"})
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        tall = max(1.0, (height - bottom - 6) * count / counts.max())
        bar = ET.SubElement(group, "rect", {
            "x": f"{left + step * (value - low) + step * 0.08:.2f}", "width": f"{step * 0.84:.2f}",
            "y": f"{height - bottom - tall:.2f}", "height": f"{tall:.2f}",
        })  # fmt: skip
        ET.SubElement(bar, "title").text = f"{value}: {count:,} weights, {count / q.size:.1%}"
    _line(svg, 0, height - bottom, width, height - bottom, "grid")
    for value in sorted({low, 0, high}):
        # A zero beside an end would be written over it.
        zero_fits = low < value < high and all(step * abs(end - value) > 8 * len(f"{end} ") for end in (low, high))
        if value in (low, high) or zero_fits:
            centre = left + step * (value - low + 0.5)
            half = 3.8 * len(str(value))  # of the label's width, at most
            if centre < half:
                _text(svg, 0, height - 4, str(value), "start")
            elif centre > width - half:
                _text(svg, width, height - 4, str(value), "end")
            else:
                _text(svg, centre, height - 4, str(value), "middle")
    return _markup(svg)


def heatmap(
    title: str,
    rows: Sequence[tuple[str, Sequence[float]]],
    *,
    largest: float,
    unit: str,
    columns: Sequence[str] | None = None,
    share: Callable[[float], float] | None = None,
) -> Markup:
    """Return a row of cells for each name; the nearer a value is to `largest`, the more opaque its cell.

    Args:
        title: what it shows, also read aloud.
        rows: names and values; where a value is NaN there is no cell.
        largest: the value of a cell that is not transparent at all.
        unit: of the values.
        columns: what a column is called; None numbers epochs.
        share: how opaque the cell of a value is, 0 to 1; None divides by `largest`.
    """
    opaque = share or (lambda value: value / largest)
    count = max(len(values) for _, values in rows)
    names = columns or [f"epoch {number + 1}" for number in range(count)]
    left, cell, tall = 190, max(4.0, min(16.0, 520 / count)), 16
    width, height = int(left + cell * count + 4), tall * len(rows) + 4
    svg = _svg(title, width, height)
    svg.set("style", f"width:{width}px;height:{height}px")  # no larger, no smaller: what does not fit is scrolled to
    for index, (name, values) in enumerate(rows):
        shown = name if len(name) <= 28 else f"…{name[-27:]}"
        _text(svg, left - 6, tall * index + 12, shown, "end")
        for column, value in enumerate(values):
            if math.isnan(value):
                continue
            rect = ET.SubElement(svg, "rect", {
                "class": "heat", "x": f"{left + cell * column:.1f}", "y": str(tall * index + 1), "width": f"{cell:.1f}",
                "height": str(tall - 2), "fill-opacity": f"{0.06 + 0.94 * min(1, opaque(value)):.2f}",
            })  # fmt: skip
            ET.SubElement(rect, "title").text = printable(f"{name}, {names[column]}: {value:g} {unit}")
    return _markup(svg)


def rectangles(title: str, boxes: Sequence[Box], *, x: str, y: str) -> Markup:
    """Return rectangles in a plane, from zero on both axes; steps on the first axis are whole numbers.

    Args:
        title: what it shows, also read aloud.
        boxes: at least one.
        x: label of its axis.
        y: label of its axis.
    """
    width, height, left = 720, 320, 70
    svg = _svg(title, width, height)
    ends = max(box.right for box in boxes), max(box.top for box in boxes)
    place_x = _scale(0, ends[0], left, width - _RIGHT)
    place_y = _scale(0, ends[1], height - _BOTTOM, _TOP)
    for tick in (tick for tick in _ticks(0, ends[1]) if tick <= ends[1]):
        _line(svg, left, place_y(tick), width - _RIGHT, place_y(tick), "grid")
        _text(svg, left - 6, place_y(tick) + 4, f"{tick:,g}", "end")
    for tick in (tick for tick in _ticks(0, ends[0], whole=True) if tick < ends[0]):
        _text(svg, (place_x(tick) + place_x(tick + 1)) / 2, height - _BOTTOM + 18, f"{tick:,g}", "middle")
    _text(svg, (left + width - _RIGHT) / 2, height - 6, x, "middle", "label")
    _text(svg, -(height - _BOTTOM + _TOP) / 2, 12, y, "middle", "label", transform="rotate(-90)")
    for number, box in enumerate(boxes):
        group = ET.SubElement(svg, "g", {"class": f"c{number % SERIES_COLOURS}"})
        rect = ET.SubElement(group, "rect", {
            "class": "box", "x": f"{place_x(box.left):.2f}", "width": f"{place_x(box.right) - place_x(box.left):.2f}",
            "y": f"{place_y(box.top):.2f}", "height": f"{place_y(box.bottom) - place_y(box.top):.2f}",
        })  # fmt: skip
        ET.SubElement(rect, "title").text = printable(box.label)
    return _markup(svg)


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Return round numbers, nine at most, from at or below `low` to at or above `high`."""
    if whole and high - low < 1:
        low, high = low - 1, high + 1
    if high - low < 1e-12:
        low, high = (low - 0.5 * abs(low), high + 0.5 * abs(high)) if low else (-1.0, 1.0)
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    steps = [m * power for m in (1, 2, 2.5, 5, 10, 20) if not whole or (m * power >= 1 and (m * power) % 1 == 0)]
    step = next((s for s in steps if s >= rough * 0.999), 1.0)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _scale(low: float, high: float, start: float, stop: float) -> Any:
    return lambda value: start + (value - low) / (high - low) * (stop - start)


def standalone(picture: Markup, more: str = "") -> str:
    """Return a picture as the text of an SVG file, with the page's colours in it.

    Args:
        picture: one of the above.
        more: SVG that is put before its content, such as a legend.
    """
    style = (HERE / "style.css").read_text(encoding="utf-8")
    before, svg, rest = picture.partition("<svg ")
    attributes, bracket, content = rest.partition(">")
    opening = f'{before}{svg}xmlns="http://www.w3.org/2000/svg" {attributes}{bracket}'
    return f"{opening}<style>{style}</style>{more}{content}"


def _svg(title: str, width: int, height: int) -> ET.Element:
    return ET.Element("svg", {"viewBox": f"0 0 {width} {height}", "role": "img", "aria-label": printable(title),
                              "style": f"max-width:{width * 1.4:.0f}px"})  # fmt: skip


def _line(svg: ET.Element, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
    ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    ET.SubElement(svg, "line", {"class": kind, **{k: f"{v:.1f}" for k, v in ends.items()}})


def _text(
    svg: ET.Element, x: float, y: float, text: str, anchor: str, kind: str = "tick", transform: str | None = None
) -> None:
    place = {"class": kind, "x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor}
    ET.SubElement(svg, "text", place | ({"transform": transform} if transform else {})).text = printable(text)


def _mark(group: ET.Element, kind: int, x: float, y: float) -> ET.Element:
    """Add a point; series differ in shape as well as in colour."""
    r = 3.5
    shapes = [
        ("circle", {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": str(r)}),
        ("rect", {"x": f"{x - r:.1f}", "y": f"{y - r:.1f}", "width": str(2 * r), "height": str(2 * r)}),
        ("path", {"d": f"M{x:.1f} {y - 4.6:.1f}l4.6 8h-9.2z"}),
        ("path", {"d": f"M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5-5z"}),
        ("path", {"d": f"M{x:.1f} {y + 4.6:.1f}l4.6-8h-9.2z"}),
        ("path", {"d": f"M{x - 4:.1f} {y - 1.3:.1f}h8v2.6h-8z"}),
    ]
    tag, attributes = shapes[kind % SERIES_COLOURS]
    return ET.SubElement(group, tag, attributes)


def _markup(svg: ET.Element) -> Markup:
    return Markup(ET.tostring(svg, encoding="unicode"))  # ElementTree has escaped every text
