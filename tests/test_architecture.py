"""`docs/architecture.md`: its picture and list of modules are those of the code, and its examples work."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import csqtool
from csqtool import registry
from csqtool.quantized_model import QuantizedModel
from docs import architecture
from tests.support.commands import ok

TEXT = architecture.PAGE.read_text(encoding="utf-8")
SETTINGS: dict[str, Any] = {"target_bits": 3, "method": "lsq", "epochs": 0.5, "batch_size": 32, "device": "cpu"}


def examples() -> dict[str, str]:
    """Return the page's Python blocks by the name of the module that each begins with."""
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    return {re.match(r'"""(\w+)\.py: ', block)[1]: block for block in blocks}  # type: ignore[index]


def registered() -> list[EntryPoint]:
    """Return the entry points that the page's TOML block registers."""
    (block,) = re.findall(r"```toml\n(.*?)```", TEXT, flags=re.DOTALL)
    return [
        EntryPoint(name, value, group)
        for group, body in re.findall(r'entry-points\."([\w.]+)"\]\n(.*?)(?:\n\n|$)', block, flags=re.DOTALL)
        for name, value in re.findall(r'^([\w-]+) = "(.*)"$', body, flags=re.MULTILINE)
    ]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Install a package that consists of the page's examples; yields its folder."""
    folder = tmp_path / "package"
    folder.mkdir()
    for name, block in examples().items():
        (folder / f"{name}.py").write_text(block, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    before, added = registry.entry_points, registered()

    def entry_points(*, group: str) -> EntryPoints:
        return EntryPoints([*before(group=group), *(entry for entry in added if entry.group == group)])

    monkeypatch.setattr(registry, "entry_points", entry_points)
    yield folder
    for name in examples():
        sys.modules.pop(name, None)


def example(name: str) -> ModuleType:
    return importlib.import_module(name)


class Net(nn.Module):
    def __init__(self, outputs: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(nn.functional.max_pool2d(torch.relu(self.norm(self.conv(x))), 4).flatten(1))
        return scores


def searched(folder: Path, **settings: Any) -> csqtool.SearchResult:
    """Return the result of a search of a few steps on the example's data."""
    torch.manual_seed(0)
    return csqtool.search(Net(), data=f"{folder}/blobs.py:blobs", **(SETTINGS | settings))


@pytest.fixture(scope="module")
def quantized() -> QuantizedModel:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(64, 1, 8, 8, generator=generator), torch.arange(64) % 4
    sets = TensorDataset(images, labels)
    return csqtool.search(Net(), train=sets, test=sets, **(SETTINGS | {"act_bits": 8})).finalize()


def test_the_picture_is_drawn_from_the_present_imports() -> None:
    assert architecture.PICTURE.read_text(encoding="utf-8") == architecture.picture(), (
        "docs/architecture.svg is out of date; run python -m docs.architecture"
    )


def test_the_list_of_modules_is_the_order_that_the_layering_test_holds() -> None:
    assert architecture.with_modules(TEXT) == TEXT, (
        "the modules in docs/architecture.md are out of date; run python -m docs.architecture"
    )


def test_no_arrow_of_the_picture_points_up() -> None:
    arrows = architecture.arrows(architecture.rooms())
    assert arrows
    assert all(importer.rank >= imported.rank for importer, imported in arrows)


def test_every_path_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`((?:csqtool|exporters|tests|docs|sample_models)/[\w./-]*)`", TEXT))
    assert len(named) > 10
    assert [path for path in named if not (architecture.ROOT / path).exists()] == []


def test_the_page_has_an_example_for_each_extension_point(installed: Path) -> None:
    assert list(examples()) == ["two_rates", "by_norm", "npz_exporter", "one_by_one", "blobs", "quantile"]
    groups = {entry.group: entry.load() for entry in registered()}
    assert sorted(groups) == ["csqtool.allocators", "csqtool.backends", "csqtool.exporters", "csqtool.methods"]
    assert "learning rate" in ok("methods").stdout
    assert "numpy arrays" in ok("formats").stdout
    assert all(len(block.splitlines()) <= 45 for block in examples().values())


def test_the_method_trains_its_step_sizes_at_the_rate_that_its_option_gives(installed: Path) -> None:
    scales = {
        rate: [layer.scale for layer in searched(installed, method="two-rates", step_rate=rate).finalize().layers]
        for rate in (0.0, 0.1)
    }
    short = searched(installed, method="two-rates", step_rate=0.0, epochs=0.1)
    start = [layer.scale for layer in short.finalize().layers]
    assert scales[0.0] == start  # a rate of zero leaves them where they began
    assert scales[0.1] != start


def test_the_allocator_s_scheme_has_the_least_rounding_error_within_the_budget(installed: Path) -> None:
    assert csqtool.methods()["by-norm"]["kind"] == "allocator"
    found = searched(installed, method="by-norm", target_bits=1.8, epochs=0)
    # Of 72 and 128 weights the convolution's are twice as large; 1 and 2 planes would fit as well.
    assert {layer.name: layer.precision for layer in found.scheme} == {"conv.weight": 3, "head.weight": 1}


def test_the_exporter_writes_the_integers_and_scales(
    installed: Path, quantized: QuantizedModel, tmp_path: Path
) -> None:
    exported = csqtool.export(quantized, tmp_path / "model.npz")
    with np.load(tmp_path / "model.npz") as arrays:
        for layer in quantized.layers:
            np.testing.assert_array_equal(arrays[layer.name] * arrays[f"{layer.name}_scale"], layer.dequantized())
        assert set(quantized.tensors) <= set(arrays)
    assert exported.float32_bytes > 0
    assert list(tmp_path.glob(".*.part")) == []


def test_the_backend_verifies_a_file(installed: Path, quantized: QuantizedModel, tmp_path: Path) -> None:
    model = Net()
    csqtool.export(quantized, tmp_path / "model.onnx", model=model)
    images = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    test = TensorDataset(images, torch.arange(16) % 4)
    report = csqtool.verify(tmp_path / "model.onnx", quantized, model=model, data=test, backends=["one-by-one"])
    assert report.passed, report.failures
    assert {"one-by-one, optimizations off", "one-by-one, optimizations on"} <= {check.name for check in report.checks}


def test_the_data_source_is_searched_on(installed: Path) -> None:
    found = searched(installed, epochs=8)
    data = found.finalize().info.data
    assert data is not None
    assert data.source == f"{installed}/blobs.py:blobs"
    assert found.metric > 0.5  # chance is 0.25


def test_the_task_is_trained_for_and_judged_by(installed: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images, noise = torch.randn(256, 1, 8, 8, generator=generator), torch.randn(256, 1, generator=generator)
    sets = TensorDataset(images, noise)  # the outputs can learn nothing but the quantile
    results = {}
    for level in (0.1, 0.9):
        torch.manual_seed(0)
        task = example("quantile").Quantile(level)
        results[level] = csqtool.search(Net(outputs=1), train=sets, test=sets, task=task, **(SETTINGS | {"epochs": 4}))
        assert results[level].finalize().info.document["data"]["task"] == "quantile"
        assert results[level].metric < 0  # of an error
    nets = [csqtool.to_torch(results[level].finalize(), Net(outputs=1)) for level in (0.1, 0.9)]
    low, high = (float(net(images).mean()) for net in nets)
    assert low < high - 0.5
