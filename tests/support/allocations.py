"""A trained network of three layers, and what an allocator is constructed with for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from csqtool.data import as_source
from csqtool.model_source import ModelSource
from csqtool.progress import Silent
from csqtool.searching.allocation import Allocation
from csqtool.searching.config import SearchConfig
from csqtool.searching.run_directory import RunDirectory
from csqtool.searching.session import Session
from csqtool.searching.start import Start

QUICK: dict[str, Any] = {"epochs": 0, "batch_size": 32, "device": "cpu"}


def trained(*, standardized: bool = False) -> tuple[nn.Sequential, Tensor, Tensor]:
    """Return a network that has learned which of three blobs a point is in, with 60 points and labels."""
    torch.manual_seed(0)
    y = torch.arange(60) % 3
    x = torch.randn(60, 6) + 3 * torch.eye(3, 6)[y]
    if standardized:
        x = (x - x.mean(0)) / x.std(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval(), x, y


def given(
    name: str, *, standardized: bool = False, **settings: Any
) -> tuple[Allocation, nn.Sequential, Tensor, Tensor]:
    """Return what an allocator is constructed with, for `trained`."""
    net, x, y = trained(standardized=standardized)
    config = SearchConfig.make(method=name, **{"target_bits": 2.5, **QUICK, **settings})
    session = Session(config, RunDirectory("nowhere"), Start(), Silent(), model=ModelSource.of(net),
                      data=as_source(train=(x, y), test=(x, y)))  # fmt: skip
    allocation = Allocation(session.network, session.data, session.device, config, config.options_of(name),
                            session.costs.budget, session._probe, Silent())  # fmt: skip
    return allocation, net, x, y
