"""One process alone; several are in tests/searching/test_processes.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from csqtool import processes
from csqtool.errors import ConfigError
from csqtool.processes import Processes, start_processes


@pytest.fixture(scope="module")
def alone() -> Processes:
    return Processes(cpu=True)


def test_one_process_is_the_first_and_agrees_with_itself(alone: Processes) -> None:
    assert (alone.count, alone.index, alone.first, alone.device.type) == (1, 0, True, "cpu")
    value = object()
    assert alone.agreed(value) is value
    assert alone.dealt_out([1, 2]) == [1, 2]
    assert [alone.any(flag) for flag in (True, False)] == [True, False]
    tensor = torch.ones(2)
    assert alone.added_up(tensor) is tensor


def test_one_process_leaves_batch_norm_as_it_is(alone: Processes) -> None:
    net = nn.BatchNorm1d(2)
    with alone.whole_batch_norm(net):
        assert "forward" not in vars(net)


def test_batch_norm_over_processes_ends_with_the_block_however_it_ends() -> None:
    two = object.__new__(Processes)
    two.count, two.index = 2, 0
    net = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2).eval())

    def interrupted() -> None:
        with two.whole_batch_norm(net):
            assert ["forward" in vars(norm) for norm in net] == [True, False]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not any("forward" in vars(norm) for norm in net)


@pytest.mark.parametrize(
    ("device", "message"),
    [("gpu", "unknown device 'gpu'; did you mean 'cpu'"), ("cuda", "there is no cuda device on this machine"),
     ("mps", "there is no mps device on this machine")],
)  # fmt: skip
def test_a_device_that_is_not_there_is_refused(device: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(processes.torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=message):
        start_processes(device)
