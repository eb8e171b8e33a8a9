"""Settling the scheme of a large network: seconds, and how many passes over the default samples they are.

    python -m benchmarks.settling [--network resnet50] [--pixels 224] [--share 1.0]

Random weights and images: what is computed does not depend on them. ``--share 0.1`` allows a tenth of the
multiplications, for machines that other work shares; samples and time are a tenth then, passes stay the same.
"""

from __future__ import annotations

import argparse
import time

import torch

from csqtool.data import as_source
from csqtool.factories import build_model
from csqtool.progress import Silent
from csqtool.searching import probes
from csqtool.searching.budget import Budget
from csqtool.searching.config import SearchConfig
from csqtool.searching.network import Network
from csqtool.searching.scheme import settle


class Told(Silent):
    """Prints lines as they come."""

    def line(self, text: str) -> None:
        print(text, flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50", choices=["resnet18", "resnet50"])
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--share", type=float, default=1.0)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    module = build_model(f"sample_models/resnet_imagenet/model.py:{arguments.network}")
    config = SearchConfig.make(model="m", data="d", target_bits=3)
    x = torch.randn(config.repair_samples, 3, arguments.pixels, arguments.pixels)
    data = as_source(train=(x, torch.arange(len(x)) % 10), needs=("train",))
    network = Network(module, config, x[:2])
    elements = network.elements
    budget = Budget(elements, dict.fromkeys(elements, 1), dict.fromkeys(elements, 7), 3.0)
    probes.MOST_MULTIPLICATIONS *= arguments.share
    probe = probes.make_probe(network, data, torch.device("cpu"), budget, samples=len(x), channels_last=True,
                              heed=None, progress=Told())  # fmt: skip
    begun = time.monotonic()
    probe._loss()
    a_pass = time.monotonic() - begun
    begun = time.monotonic()
    scheme = settle(budget.uniform(7), budget, loss_with=probe)
    seconds = time.monotonic() - begun
    all_measured = len(elements) * probes.PROBES_A_LAYER
    print(f"a pass over these samples: {a_pass:.1f} s; settling: {seconds:.0f} s, {seconds / a_pass:.1f} passes, "
          f"with all losses measured about {all_measured}; {budget.describe(budget.cost(scheme))}")  # fmt: skip


if __name__ == "__main__":
    main()
