"""Cross-layer equalization: where scales may move, that the network stays the same, and where it is worth it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from csqtool.nn.equalization import Edge, edges, equalize, factors, move
from csqtool.nn.sites import record


class Branches(nn.Module):
    """A residual addition, a layer that is called twice, and one whose output leaves the model."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.twice = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.inner, self.last = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.first(x))
        x = x + self.second(x)
        x = self.twice(torch.relu(self.twice(x)))
        y = self.inner(x)
        return y, self.last(y)


def chain() -> nn.Sequential:
    """Return grouped, depthwise and plain convolutions with and without BatchNorm and bias."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.LeakyReLU(),
        nn.Conv2d(8, 12, 1, groups=2), nn.BatchNorm2d(12), nn.MaxPool2d(2),
        nn.Conv2d(12, 6, 1), nn.BatchNorm2d(6), nn.ReLU6(), nn.Conv2d(6, 4, 2),
    )  # fmt: skip
    for norm in (part for part in net if isinstance(part, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_mean, -1, 1)
        nn.init.uniform_(norm.running_var, 0, 1e-4)  # about ε, which then matters
        nn.init.uniform_(norm.weight, -2, 2)
        nn.init.uniform_(norm.bias, -1, 1)
    return net.eval()


def outputs(net: nn.Module) -> Tensor:
    with torch.no_grad():
        return torch.as_tensor(net(torch.randn(5, 3, 12, 12, generator=torch.Generator().manual_seed(1))))


def test_scales_move_through_homogeneous_functions_alone() -> None:
    net = chain()
    found = [(edge.source, edge.target) for edge in edges(net, record(net, torch.zeros(2, 3, 12, 12)))]
    assert found == [("0", "1"), ("1", "3"), ("3", "5"), ("5", "6"), ("6", "8"), ("8", "9")]


def test_no_scale_moves_where_another_part_uses_the_value_or_the_layer() -> None:
    net = Branches().eval()
    assert not edges(net, record(net, torch.zeros(2, 4)))


def test_tied_weights_keep_their_scale() -> None:
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    net[2].weight = net[1].weight
    assert not edges(net, record(net, torch.zeros(2, 4)))


def test_the_network_computes_the_same_with_any_factors() -> None:
    net = chain()
    wanted, before = outputs(net), [p.clone() for p in net.parameters()]
    for edge in edges(net, record(net, torch.zeros(2, 3, 12, 12))):
        channels = len(net.get_submodule(edge.source).weight)
        move(net, edge, torch.logspace(-1.5, 1.5, channels))
    torch.testing.assert_close(outputs(net), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    assert sum(not torch.allclose(p, q) for p, q in zip(net.parameters(), before, strict=True)) > 8


def test_rows_in_front_of_batch_norm_become_equal_and_dead_channels_stay() -> None:
    net = chain()
    with torch.no_grad():
        net[0].weight[:, 0] *= torch.logspace(-2, 1, 8).view(-1, 1, 1)
        net[0].weight[3] = 0
    move(net, Edge("0", "1"), factors(net, Edge("0", "1"))[0])
    sizes = net[0].weight.flatten(1).square().mean(1).sqrt()
    assert float(sizes[3].detach()) == 0
    torch.testing.assert_close(sizes[[0, 1, 2, 4, 5, 6, 7]], sizes[0].expand(7))


def test_two_layers_share_the_effect_of_each_channel() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4))
    (given,) = factors(net, Edge("0", "2"))
    move(net, Edge("0", "2"), given)
    rows, columns = net[0].weight.square().mean(1).sqrt(), net[2].weight.square().mean(0).sqrt()
    torch.testing.assert_close(rows / rows[0], columns / columns[0])


@pytest.mark.parametrize("helps", [True, False])
def test_an_edge_is_equalized_only_where_the_error_falls(helps: bool) -> None:
    net, target = chain(), chain()
    errors = {"8": [1.0, 0.5, 0.6], "0": [1.0, 1.0, 2.0]}  # before, and after each way

    def error(edge: Edge) -> float:
        return errors[edge.source].pop(0) if helps or edge.source == "0" else 1.0

    found = [Edge("0", "1"), Edge("8", "9")]
    assert equalize(net, found, error) == (found[1:] if helps else [])
    changed = {n for n, value in net.state_dict().items() if not torch.equal(value, target.state_dict()[n])}
    assert changed == ({"8.weight", "8.bias", "9.weight", "9.running_mean", "9.running_var"} if helps else set())
