from __future__ import annotations

import re

import numpy as np
import pytest

from csqtool.reporting.charts import Series, chart, heatmap, histogram


def test_a_histogram_has_a_bar_for_each_value_that_occurs() -> None:
    svg = histogram("h", np.array([-4, -4, 0, 7], np.int8))
    assert re.findall(r"<title>(.*?)</title>", svg) == [
        "-4: 2 weights, 50.0%",
        "0: 1 weights, 25.0%",
        "7: 1 weights, 25.0%",
    ]


@pytest.mark.parametrize("values", [(-121, 121), (-128, 127), (-1, 1), (0, 100), (-200, 3), (-2, 90)])
def test_labels_of_a_histogram_lie_inside_it(values: tuple[int, int]) -> None:
    svg = histogram("h", np.array(values, np.int16))
    found = re.findall(r'x="([\d.-]+)" y="[\d.]+" text-anchor="(\w+)">(-?\d+)<', svg)
    assert {str(value) for value in values} <= {text for _, _, text in found}
    last = 0.0
    for x, anchor, text in found:
        wide = 7 * len(text)
        left = float(x) - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
        assert left >= last
        last = left + wide
    assert last <= 240


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5, 9, 11, 13, 90, 601])
def test_epochs_are_whole_numbers(epochs: int) -> None:
    svg = chart("c", [Series("s", [(float(i + 1), 0.5) for i in range(epochs)])], x="epoch", y="y", whole_x=True)
    ticks = re.findall(r'y="274.0" text-anchor="middle">([\d.,-]+)<', svg)
    assert 2 <= len(ticks) <= 10
    assert all(tick.replace(",", "").isdigit() for tick in ticks)


def test_a_heat_map_keeps_its_size_however_few_its_columns_are() -> None:
    for columns in (1, 3, 100):
        svg = heatmap("h", [("fc.weight", [3.0] * columns)], largest=8, unit="planes")
        match = re.search(r'viewBox="0 0 (\d+) (\d+)"', svg)
        assert match
        assert f'style="width:{match[1]}px;height:{match[2]}px"' in svg


@pytest.mark.parametrize("points", [[(1.0, 0.5)], [(1.0, 0.5), (2.0, 0.5)], [(0.0, -3.0), (1e6, 1e-9)], [(0.0, 0.0)]])
def test_points_lie_inside_their_chart(points: list[tuple[float, float]]) -> None:
    svg = chart("c", [Series("s", points)], x="x", y="y")
    places = re.findall(r'<circle cx="([\d.-]+)" cy="([\d.-]+)"', svg)
    assert len(places) == len(points)
    assert all(56 <= float(x) <= 468 and 14 <= float(y) <= 256 for x, y in places)
