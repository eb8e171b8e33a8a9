"""A dozen small networks of other people's libraries on the whole way; all of them are in `benchmarks/zoo.py`."""

from __future__ import annotations

import importlib.util

import pytest

from benchmarks import zoo, zoo_networks
from csqtool import hubs

NETWORKS = [
    "transformers:bert", "transformers:albert", "transformers:gpt-2", "transformers:llama", "transformers:t5",
    "transformers:segformer", "transformers:wav2vec2", "timm:mobilenetv3_small_050", "timm:lcnet_050",
    "torchvision:squeezenet1_1", "smp:PSPNet", "ultralytics:yolov8n-cls.yaml",
]  # fmt: skip


@pytest.mark.long
@pytest.mark.filterwarnings("default")  # each library has deprecated something
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_a_library_is_searched_exported_packed_and_verified(name: str) -> None:
    package = hubs.package_of(name) or "transformers"  # these are built from their configurations
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install csqtool[zoo]")
    row = zoo.measure(name, 8)
    assert zoo.verdict(row) == "PASS", zoo.reasons(row)
    assert row["coverage"] + row["never_computed"] > 0.9


def test_each_network_is_one_of_the_benchmark() -> None:
    assert set(NETWORKS) <= set(zoo_networks.networks())
