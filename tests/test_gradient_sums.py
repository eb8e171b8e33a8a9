"""Gradients summed over processes; the second process is one that computes the same."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from csqtool.gradient_sums import GradientSums
from csqtool.processes import Processes

LAYER_BYTES = 4 * (6 * 6 + 6)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return what happens in a backward pass: layers whose gradient is there, and sizes of exchanges as they begin.

    An exchange gives its sum when it is waited for, and not before.
    """
    events: list[object] = []

    def all_reduce(flat: Tensor, *, group: Any, async_op: bool) -> Any:
        assert (group, async_op) == ("group", True)
        events.append(flat.numel())
        return SimpleNamespace(wait=lambda: flat.mul_(2))

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(torch.distributed, "new_group", lambda: "group")
    return events


def two_processes() -> Processes:
    two = object.__new__(Processes)
    two.count, two.index = 2, 0
    two.agreed = lambda value: value  # type: ignore[method-assign]
    return two


def chain(events: list[object]) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(6, 6) for _ in range(3)))
    for i, layer in enumerate(net):
        layer.weight.register_hook(lambda _, name=f"layer {i}": events.append(name))
    return net


def step(net: nn.Sequential, sums: GradientSums, used: Iterable[int] = range(3)) -> dict[str, Tensor | None]:
    net.zero_grad()
    x = torch.ones(2, 6)
    for i in used:
        x = net[i](x)
    with sums.of_backward():
        x.square().sum().backward()
    return {name: p.grad for name, p in net.named_parameters()}


def wanted(net: nn.Sequential, used: Iterable[int] = range(3)) -> dict[str, Tensor | None]:
    alone = object.__new__(Processes)
    alone.count = 1
    found = step(net, GradientSums(alone, list(net.parameters())), used)
    return {name: None if gradient is None else 2 * gradient for name, gradient in found.items()}


def assert_same(found: dict[str, Tensor | None], right: dict[str, Tensor | None]) -> None:
    for name, gradient in found.items():
        assert (gradient is None) == (right[name] is None)
        assert gradient is None or torch.equal(gradient, right[name]), name


def test_last_layers_are_exchanged_before_the_first_layer_has_its_gradient(events: list[object]) -> None:
    net = chain(events)
    right = wanted(net)
    sums = GradientSums(two_processes(), list(net.parameters()), bucket_bytes=LAYER_BYTES)
    assert_same(step(net, sums), right)
    events.clear()
    assert_same(step(net, sums), right)
    assert events.index(42) < events.index("layer 0")
    assert [event for event in events if isinstance(event, int)] == [42, 42, 42]


def test_parameters_may_leave_a_step_and_come_back(events: list[object]) -> None:
    net = chain(events)
    sums = GradientSums(two_processes(), list(net.parameters()), bucket_bytes=LAYER_BYTES)
    for used in ((0, 1, 2), (0, 2), (0, 2), (0, 1, 2), (1,), (0, 1, 2)):
        assert_same(step(net, sums, used), wanted(net, used))


def test_gradients_of_several_types_are_exchanged_apart(events: list[object]) -> None:
    parameters = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4).double()), nn.Parameter(torch.ones(5))]
    sums = GradientSums(two_processes(), parameters)
    for _ in range(2):
        events.clear()
        with sums.of_backward():
            torch.autograd.backward([p.sum() for p in parameters])
        assert sorted(event for event in events if isinstance(event, int)) == [3, 4, 5]
    assert [float(p.grad[0]) for p in parameters if p.grad is not None] == [6.0] * 3


def test_hooks_end_with_the_block_however_it_ends(events: list[object]) -> None:
    net = chain(events)
    sums = GradientSums(two_processes(), list(net.parameters()))

    def interrupted() -> None:
        with sums.of_backward():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    net(torch.ones(1, 6)).sum().backward()
    assert not [event for event in events if isinstance(event, int)]
