"""Losses of large networks: one measurement a layer, estimates between; compared with measurements of all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from csqtool.data import DataSource, as_source
from csqtool.progress import Silent
from csqtool.searching import probes
from csqtool.searching.budget import Budget, uniform
from csqtool.searching.config import SearchConfig
from csqtool.searching.measured_losses import KeptLosses
from csqtool.searching.network import Network
from csqtool.searching.probes import ScreenedProbe, make_probe
from csqtool.searching.scheme import LossProbe, settle


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, DataSource]:
    """Return a network with BatchNorm and residual additions that has learned to tell three kinds of inputs apart."""
    torch.manual_seed(0)

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.inner(x)
            return torch.relu_(x)

    net = nn.Sequential(nn.Linear(10, 16), Residual(), Residual(), nn.Linear(16, 3))
    x = torch.randn(300, 10)
    y = (x @ torch.randn(10, 3) + 0.5 * (x @ torch.randn(10, 3)).square()).argmax(1)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        cross_entropy(net(x), y).backward()
        optimizer.step()
    return net, as_source(train=(x, y), test=(x, y))


Made = tuple[Network, Budget, LossProbe, LossProbe]


@pytest.fixture(params=[None, 8], ids=["float", "A8"])
def made(
    trained: tuple[nn.Module, DataSource], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Made:
    """Return the network, a budget, and what measures all losses and what estimates most."""
    module, data = trained
    config = SearchConfig.make(model="m", data="d", target_bits=3, act_bits=request.param)
    inputs = torch.stack([data.train[i][0] for i in range(64)])
    network = Network(module, config, inputs)
    network.calibrate(lambda: [inputs])
    elements = network.elements
    budget = Budget(elements, dict.fromkeys(elements, 1), dict.fromkeys(elements, 7), 3.0)

    def probe() -> LossProbe:
        return make_probe(network, data, torch.device("cpu"), budget, samples=300, channels_last=False, heed=None,
                          progress=Silent())  # fmt: skip

    measured = probe()
    monkeypatch.setattr(probes, "MOST_MULTIPLICATIONS", 0)
    monkeypatch.setattr(probes, "LEAST_SAMPLES", 300)
    return network, budget, measured, probe()


def test_only_large_networks_are_estimated(made: Made) -> None:
    assert [type(one) for one in made[2:]] == [LossProbe, ScreenedProbe]


def test_each_layer_is_measured_at_one_number_of_planes(made: Made) -> None:
    network, _, measured, estimated = made
    before = {name: parameter.detach().clone() for name, parameter in network.parameters.items()}
    rising = [name for name in network.parameters if measured(name, uniform(2)) > 1.1 * measured._loss()]
    assert len(rising) > 2
    for name in rising:
        assert estimated(name, uniform(2)) == pytest.approx(measured(name, uniform(2)), abs=1e-6)
    for name in network.parameters:
        assert estimated(name, uniform(8)) < estimated(name, uniform(3)) < estimated(name, uniform(1))
    assert all(torch.equal(network.parameters[name], weight) for name, weight in before.items())


def test_a_scheme_of_estimates_is_nearly_as_good_as_one_of_measurements(made: Made) -> None:
    _, budget, measured, estimated = made
    losses = [measured.of_scheme(settle(budget.uniform(7), budget, loss_with=one)) for one in (measured, estimated)]
    uniform_ones = measured.of_scheme(budget.uniform(3))
    assert losses[1] <= max(1.1 * losses[0], uniform_ones)


def test_fewer_samples_are_read_of_a_network_of_more_multiplications(
    made: Made, trained: tuple[nn.Module, DataSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, budget, *_ = made
    read: list[int] = []
    monkeypatch.setattr(probes, "LEAST_SAMPLES", 32)
    monkeypatch.setattr(probes, "MOST_MULTIPLICATIONS", 100 * 7 * sum(network.multiplications.values()))
    told = Told(read.append)
    make_probe(network, trained[1], torch.device("cpu"), budget, samples=300, channels_last=False, heed=None,
               progress=told)  # fmt: skip
    assert read == [100]  # six layers, half a pass each, and four other passes


class Told(Silent):
    """Takes the number of samples from what is told."""

    def __init__(self, note: Callable[[int], None]) -> None:
        super().__init__()
        self._note = note

    def line(self, text: str) -> None:
        self._note(int(text.partition(" samples")[0].rpartition(" ")[2]))


class Stopped(Exception):
    """Raised in the middle of the measurements."""


@pytest.mark.parametrize("large", [False, True], ids=["all measured", "estimated"])
def test_losses_that_were_measured_before_a_stop_are_not_measured_again(
    made: Made, trained: tuple[nn.Module, DataSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    network, budget, *_ = made
    if not large:
        monkeypatch.setattr(probes, "MOST_MULTIPLICATIONS", 1e30)
    measured: list[str] = []
    original = KeptLosses.__call__

    def found(stop_after: int, kept: Path | None) -> dict[str, tuple[int, ...]]:
        def noting(self: KeptLosses, what: str, measure: Callable[[], float]) -> float:
            def noted() -> float:
                if len(measured) == stop_after:
                    raise Stopped
                measured.append(what)
                return measure()

            return original(self, what, noted)

        monkeypatch.setattr(KeptLosses, "__call__", noting)
        measured.clear()
        probe = make_probe(network, trained[1], torch.device("cpu"), budget, samples=300, channels_last=False,
                           heed=None, progress=Silent(), kept=kept)  # fmt: skip
        return settle(budget.uniform(7), budget, loss_with=probe)

    undisturbed = found(10**9, tmp_path / "whole")
    all_of_them = list(measured)
    assert len(all_of_them) == len(set(all_of_them)) > 5
    with pytest.raises(Stopped):
        found(4, tmp_path / "losses")
    assert measured == all_of_them[:4]
    with (tmp_path / "losses").open("a") as file:
        file.write('{"of": "cut off by a power fail')
    assert found(10**9, tmp_path / "losses") == undisturbed
    assert measured == all_of_them[4:]
    with torch.no_grad():
        next(iter(network.parameters.values())).mul_(1.001)
    found(10**9, tmp_path / "whole")
    assert measured


def test_a_layer_whose_loss_does_not_rise_is_not_harmless(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, _, estimated = made
    assert isinstance(estimated, ScreenedProbe)
    rises = {name: (0.1 if number else -0.1) for number, name in enumerate(estimated._parameters)}
    monkeypatch.setattr(estimated, "_rises", lambda: rises)
    first = next(iter(rises))
    assert estimated(first, uniform(1)) > estimated(first, uniform(4)) > 0
