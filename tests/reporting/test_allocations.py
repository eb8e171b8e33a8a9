"""What an allocator found out: in the run directory, and on the page as a table and a picture."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import csqtool
from csqtool.reporting.allocations import picture, view
from csqtool.searching.allocation import Findings, allocate, load_allocator
from csqtool.searching.allocators.limpq import Limpq
from csqtool.searching.records import AllocationRecord
from csqtool.searching.run_directory import RunDirectory
from tests.support.allocations import QUICK, given, trained
from tests.support.commands import invoke, ok


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("allocated") / "run"
    net, x, y = trained()
    csqtool.search(net, train=(x, y), test=(x, y), method="hawq-v3", target_bits=2.5, run=folder,
                   hessian_steps=150, hessian_tolerance=0.0, **QUICK)  # fmt: skip
    return folder


def recorded(folder: Path) -> AllocationRecord:
    found = RunDirectory(folder).read_allocation()
    assert found is not None
    return found


def test_the_scheme_of_a_run_is_of_least_recorded_harm_among_all_within_the_budget(run: Path) -> None:
    layers = recorded(run).layers
    room = 2.5 * sum(one.elements for one in layers)
    totals = {}
    for planes in itertools.product(range(1, 8), repeat=3):
        if sum(k * one.elements for k, one in zip(planes, layers, strict=True)) <= room:
            harms = [{h.planes: h.harm for h in one.harms} for one in layers]
            totals[planes] = sum(harm[k] for k, harm in zip(planes, harms, strict=True))
    assert min(totals, key=totals.__getitem__) == tuple(one.precision for one in layers)
    scheme = json.loads((run / "scheme.json").read_text())
    assert [(one.name, one.elements) for one in layers] == [(one["name"], one["elements"]) for one in scheme]


def test_the_recorded_sensitivity_of_a_layer_is_its_trace_over_its_weights(run: Path) -> None:
    net, x, y = trained()
    exact = {}
    for layer in recorded(run).layers:
        weight = net.get_parameter(layer.name).detach()

        def loss(changed: torch.Tensor, name: str = layer.name) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(torch.func.functional_call(net, {name: changed}, (x,)), y)

        hessian: Any = torch.autograd.functional.hessian(loss, weight)
        exact[layer.name] = float(hessian.reshape(weight.numel(), -1).trace()) / weight.numel()
    found = {layer.name: layer.sensitivity for layer in recorded(run).layers}
    assert found == pytest.approx(exact, abs=0.15 * max(exact.values()))  # an estimate from 150 draws
    assert min(exact.values()) < 0.5 * max(exact.values())


def test_of_limpq_the_step_sizes_are_recorded_as_they_were_learned() -> None:
    allocation, _, _, _ = given("limpq", importance_steps=3)
    _, record = allocate(Limpq, allocation)
    sizes = Limpq(allocation).step_sizes()  # repeatable
    assert record is not None
    assert {one.name: {h.planes: h.harm for h in one.harms} for one in record.layers} == sizes


def test_of_measured_the_losses_that_it_needed_are_recorded() -> None:
    allocation, _, _, _ = given("measured", target_bits=1.6)
    _, record = allocate(load_allocator("measured"), allocation)
    assert record is not None
    probe = allocation.probe(512)
    for layer in record.layers:
        assert layer.harms
        for one in layer.harms:
            assert one.harm == pytest.approx(probe(layer.name, tuple(range(one.planes))), rel=1e-5)


def test_figures_that_are_not_finite_are_left_out_and_a_run_that_takes_the_folder_has_none(
    run: Path, tmp_path: Path
) -> None:
    found = Findings("loss", {"a": {2: float("inf"), 1: 3.0}}, "trace", {"a": float("nan")})
    (layer,) = found.record("mine", {"a": (0, 1)}, {"a": 5}).layers
    assert ([(one.planes, one.harm) for one in layer.harms], layer.sensitivity) == ([(1, 3.0)], None)
    (tmp_path / "allocation.json").write_bytes((run / "allocation.json").read_bytes())
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    (tmp_path / "checkpoints").mkdir()
    RunDirectory(tmp_path).clear()
    assert RunDirectory(tmp_path).read_allocation() is None


def test_the_report_has_a_table_and_a_picture_of_what_the_allocator_found(run: Path, tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    ok("report", run, "-o", page)
    html = page.read_text()
    assert '<section id="sensitivity">' in html
    layer = recorded(run).layers[1]
    row = re.search(rf'<tr><th scope="row">{layer.name}</th>(.*)</tr>', html)
    assert row is not None
    cells = re.findall(r'<td class="number">(.*?)</td>', row[1])
    assert cells == [
        "64",
        f"{layer.sensitivity:.3g}",
        str(layer.precision),
        *(f"{one.harm:.3g}" for one in layer.harms),
    ]
    assert "what hawq-v3 found" in html
    assert f"{layer.name}, 1 plane: {layer.harms[0].harm:g}" in html.replace(
        f"{layer.name}  {layer.precision}", layer.name
    )


def test_a_cell_is_darker_the_more_harm_in_powers_of_ten_and_missing_without_a_figure() -> None:
    harms = {"a": {1: 1.0, 2: 0.001, 3: 0.0}, "b": {1: 1e-9, 3: 0.1}}
    found = Findings("loss", harms).record("mine", {"a": (0,), "b": (0, 1, 2)}, {"a": 5, "b": 7})
    opacities = [float(one) for one in re.findall(r'fill-opacity="([\d.]+)"', picture(found))]
    assert opacities == pytest.approx([1.0, 0.53, 0.06, 0.06, 0.06 + 0.94 * 5 / 6], abs=0.006)
    assert view(found, "x")["rows"][1] == ("b", 7, None, 3, [1e-9, None, 0.1])


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"allocator": "x", "sensitivity": null, "harm": "y", "layers": []}',
     b'{"allocator": "x", "sensitivity": null, "harm": "y", "layers": [{"name": "a", "elements": 0}]}'],
)  # fmt: skip
def test_a_damaged_record_is_refused_in_one_line(run: Path, tmp_path: Path, content: bytes) -> None:
    for name in ("config.json", "log.jsonl"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    (tmp_path / "allocation.json").write_bytes(content)
    result = invoke("report", tmp_path, "-o", tmp_path / "r.html")
    assert result.exit_code == 2
    assert result.stderr.startswith("error:")
    assert "allocation.json" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "r.html").exists()


def test_texts_of_a_record_are_escaped_on_the_page(run: Path, tmp_path: Path) -> None:
    for name in ("config.json", "log.jsonl"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    bad = "<script>x</script>\x1b"
    layer = {"name": bad, "elements": 5, "precision": 2, "sensitivity": None, "harms": []}
    document = {"allocator": bad, "sensitivity": bad, "harm": bad, "layers": [layer]}
    (tmp_path / "allocation.json").write_text(json.dumps(document))
    ok("report", tmp_path, "-o", tmp_path / "r.html")
    html = (tmp_path / "r.html").read_text()
    assert "<script" not in html
    assert "\x1b" not in html
