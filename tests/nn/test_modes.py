from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from csqtool.data import ArrayDataset, DataSource
from csqtool.data.fit import check_fit
from csqtool.evaluation import evaluate, reestimate_batch_norm, refresh_batch_norm, training_loss
from csqtool.nn.activation import ActivationFakeQuantizer
from csqtool.nn.modes import evaluating
from csqtool.nn.quantized_net import QuantizedNet
from csqtool.nn.sites import record
from csqtool.searching.automatic import flops
from csqtool.task import task_by_name

INPUTS = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
DATASET = ArrayDataset(INPUTS, torch.arange(12) % 3)
SOURCE = DataSource("random", DATASET, DATASET, task_by_name("classification"))
CPU = torch.device("cpu")


class Failing(nn.Module):
    """Passes values on until it is told to fail."""

    fails = False

    def forward(self, x: Tensor) -> Tensor:
        if self.fails:
            raise RuntimeError("on purpose")
        return x


def partly_frozen() -> nn.Sequential:
    """A net in training mode, but for a BatchNorm that its owner froze."""
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.BatchNorm1d(5), Failing(), nn.Linear(5, 3)).train()
    net[1].eval()
    return net


def modes(net: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in net.named_modules()}


def quantized(net: nn.Module) -> QuantizedNet:
    wrapped = QuantizedNet(net, [ActivationFakeQuantizer("1.output", 8)])
    assert net.get_submodule("1").training is False
    return wrapped


USES: dict[str, Callable[[nn.Module], Any]] = {
    "record": lambda net: record(net, [INPUTS]),
    "calibrate": lambda net: quantized(net).calibrate([INPUTS]),
    "quantized_values": lambda net: quantized(net).quantized_values(INPUTS),
    "flops": lambda net: flops(net, INPUTS),
    "check_fit": lambda net: check_fit(net, SOURCE),
    "evaluate": lambda net: evaluate(net, DATASET, SOURCE.task),
    "training_loss": lambda net: training_loss(net, SOURCE, CPU, samples=12, channels_last=False),
    "reestimate_batch_norm": lambda net: reestimate_batch_norm(net, SOURCE, CPU, batch_size=4, seed=0),
}


@pytest.mark.parametrize("fails", [False, True], ids=["succeeds", "fails"])
@pytest.mark.parametrize("use", USES)
def test_whatever_evaluates_a_net_leaves_each_module_its_own_mode(use: str, fails: bool) -> None:
    net = partly_frozen()
    net[3].fails = fails
    before = modes(net)
    assert set(before.values()) == {True, False}
    if fails:
        with pytest.raises(RuntimeError, match="on purpose"):
            USES[use](net)
    else:
        USES[use](net)
    assert modes(net) == before


def test_inside_every_module_is_in_evaluation_mode() -> None:
    net = partly_frozen()
    with evaluating(net):
        assert not any(modes(net).values())


def test_a_loss_on_batch_statistics_leaves_the_running_ones_alone() -> None:
    net = partly_frozen()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    settings = [(net[i].momentum, net[i].track_running_stats) for i in (1, 2)]
    found = training_loss(net, SOURCE, CPU, samples=12, channels_last=False)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert [(net[i].momentum, net[i].track_running_stats) for i in (1, 2)] == settings
    hidden = net[0](INPUTS)
    for _ in range(2):  # freshly made BatchNorms only normalise
        hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
    assert found == pytest.approx(nn.functional.cross_entropy(net[4](hidden), DATASET.targets).item(), rel=1e-5)


def test_an_exception_while_statistics_are_estimated_leaves_the_old_ones() -> None:
    net = partly_frozen()
    net[1].running_mean.fill_(0.25)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    net[3].fails = True
    with pytest.raises(RuntimeError, match="on purpose"):
        reestimate_batch_norm(net, SOURCE, CPU, batch_size=4, seed=0)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert [net[i].momentum for i in (1, 2)] == [0.1, 0.1]


def test_estimated_statistics_are_those_of_the_samples() -> None:
    net = partly_frozen()
    reestimate_batch_norm(net, SOURCE, CPU, batch_size=4, seed=0)
    hidden = net[0](INPUTS).detach()
    assert torch.allclose(net[1].running_mean, hidden.mean(0), atol=1e-6)
    assert torch.allclose(net[1].running_var, hidden.var(0), atol=1e-6)


def test_stale_statistics_are_replaced_where_that_helps_and_frozen_ones_never() -> None:
    net = partly_frozen()
    net[1].running_mean.fill_(3.0)
    net[2].running_mean.fill_(50.0)
    net[2].running_var.fill_(1e-4)
    wrapped = QuantizedNet(net, [])
    settings: dict[str, Any] = {"batch_size": 4, "seed": 0, "channels_last": False}
    assert refresh_batch_norm(wrapped, SOURCE, CPU, **settings)
    assert float(net[2].running_mean.abs().max()) < 20
    assert torch.equal(net[1].running_mean, torch.full((5,), 3.0))
    kept = net[2].running_mean.clone()
    assert not refresh_batch_norm(wrapped, SOURCE, CPU, **settings)
    assert torch.equal(net[2].running_mean, kept)
