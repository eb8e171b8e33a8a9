"""Training one net in several processes, on one machine or many.

``torchrun`` starts the processes and `accelerate` connects them. All processes make the same decisions from the
same numbers; only the first one writes files and reports. In each step, a process computes the loss of its share of
the batch, and gradients are summed over all processes. So the step is the one that a single process would take on
the whole batch, up to float32 rounding. BatchNorm, too, uses the statistics of the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import zip_longest
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from csqtool.errors import ConfigError, nearest
from csqtool.nn.batch_norm import whole_batch_norm

T = TypeVar("T")


class Processes:
    """The processes of a run; with a single process, the methods do nothing.

    Args:
        cpu: compute on the CPU even if there is an accelerator.

    Attributes:
        count: the number of processes.
        index: the number of this process, from 0.
    """

    def __init__(self, *, cpu: bool) -> None:
        from accelerate import PartialState

        self._state = PartialState(cpu=cpu)
        self.count: int = self._state.num_processes
        self.index: int = self._state.process_index

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        device: torch.device = self._state.device
        return device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.index == 0

    def wait(self) -> None:
        """Wait for all processes; afterwards all can read what the first one wrote."""
        self._state.wait_for_everyone()

    def agreed(self, value: T) -> T:
        """Return the first process's `value` in all processes."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        values = [value]
        broadcast_object_list(values)
        return values[0]

    def added_up(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor without gradient over all processes, in each of them."""
        if self.count == 1:
            return values
        from accelerate.utils import reduce

        total: Tensor = reduce(values.to(self.device), "sum")
        return total

    def dealt_out(self, mine: list[T]) -> list[T]:
        """Return the items of all processes, in each of them, in turns: one item of each process, then the next."""
        if self.count == 1:
            return mine
        from accelerate.utils import gather_object

        hands: list[list[T]] = gather_object([mine])
        return [item for turn in zip_longest(*hands) for item in turn if item is not None]

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is set in at least one process."""
        return flag if self.count == 1 else bool(self.added_up(torch.tensor(float(flag))) > 0)

    def share(self, samples: int) -> tuple[slice, float]:
        """Return this process's samples of a batch, and their weight in the batch's mean loss.

        If a batch has fewer samples than there are processes, each process computes all of it.

        Args:
            samples: how many the batch has.
        """
        if samples < self.count:
            return slice(None), 1 / self.count
        mine = slice(self.index, None, self.count)
        return mine, len(range(samples)[mine]) / samples

    @contextmanager
    def whole_batch_norm(self, net: nn.Module) -> Iterator[None]:
        """Make BatchNorm normalize by the statistics of all processes' samples."""
        norms = [m for m in net.modules() if isinstance(m, _BatchNorm) and m.training] if self.count > 1 else []
        for norm in norms:
            norm.forward = partial(whole_batch_norm, norm=norm, add_up=self.added_up)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for norm in norms:
                del norm.forward


def start_processes(device: str) -> Processes:
    """Return the processes of this run on a device.

    Raises:
        ConfigError: this machine has no such device.
    """
    present = {"auto": True, "cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device not in present:
        raise ConfigError(f"unknown device {device!r}; {nearest(device, present)}")
    if not present[device]:
        raise ConfigError(f"there is no {device} device on this machine; use --device auto or cpu")
    return Processes(cpu=device == "cpu" or not torch.accelerator.is_available())
