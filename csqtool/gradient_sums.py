"""Gradients summed over processes while the backward pass still computes those of earlier layers.

PyTorch's DistributedDataParallel does this for networks whose parameters all take part in each step. Here they
change: closed planes are left out, and penalties may reach parameters that the network does not use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from csqtool.processes import Processes

BUCKET_BYTES = 1 << 20


class _Exchange:
    """A sum under way: the gradients of some parameters, in one flat tensor."""

    def __init__(self, parameters: Sequence[nn.Parameter], group: Any) -> None:
        self._gradients = [p.grad for p in parameters if p.grad is not None]
        self._flat = torch.cat([g.reshape(-1) for g in self._gradients])
        self._work = torch.distributed.all_reduce(self._flat, group=group, async_op=True)

    def finish(self) -> None:
        """Wait for the sum, and put it in the place of the gradients."""
        self._work.wait()
        parts = torch.split(self._flat, [g.numel() for g in self._gradients])
        for gradient, total in zip(self._gradients, parts, strict=True):
            gradient.copy_(total.view_as(gradient))


class GradientSums:
    """Replaces each gradient by its sum over all processes.

    Parameters are put in buckets, in the order in which the first process got their gradients in the last step. A
    bucket is exchanged once all its gradients are there and the buckets before it are on their way; so all processes
    exchange the same buckets in the same order. What takes part for the first time is exchanged at the end, and the
    buckets are then formed anew.

    Args:
        processes: those that train together; each must compute gradients of the same parameters in a step.
        parameters: in the same order in all of them.
        bucket_bytes: the size from which on a bucket is full.
    """

    def __init__(
        self, processes: Processes, parameters: Sequence[nn.Parameter], bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        self._processes = processes
        self._parameters = list(parameters)
        self._bucket_bytes = bucket_bytes
        self._buckets: list[list[int]] = []
        self._arrived: dict[int, None] = {}  # in order
        self._under_way: list[_Exchange] = []
        # A group of its own: BatchNorm exchanges its statistics in the same backward pass.
        self._group = torch.distributed.new_group() if processes.count > 1 else None

    @contextmanager
    def of_backward(self) -> Iterator[None]:
        """Sum the gradients of the backward pass that the block computes; they are complete after the block."""
        if self._processes.count == 1:
            yield
            return
        self._arrived, self._under_way = {}, []
        handles = [
            p.register_post_accumulate_grad_hook(self._hook(i))  # type: ignore[no-untyped-call]
            for i, p in enumerate(self._parameters)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self._exchange_the_rest()
        for exchange in self._under_way:
            exchange.finish()
        self._form_buckets()

    def _hook(self, index: int) -> Any:
        def arrived(_parameter: Tensor) -> None:
            self._arrived[index] = None
            for bucket in self._buckets[len(self._under_way) :]:
                if not self._arrived.keys() >= set(bucket):
                    break
                self._exchange(bucket)

        return arrived

    def _exchange(self, indices: Sequence[int]) -> None:
        self._under_way.append(_Exchange([self._parameters[i] for i in indices], self._group))

    def _exchange_the_rest(self) -> None:
        """Exchange what is left: buckets that wait for a gradient which this step has not, and newcomers."""
        begun = {i for bucket in self._buckets[: len(self._under_way)] for i in bucket}
        rest = sorted(self._arrived.keys() - begun)
        for bucket in self._filled(rest):
            self._exchange(bucket)

    def _form_buckets(self) -> None:
        if {i for bucket in self._buckets for i in bucket} != self._arrived.keys():
            self._buckets = self._filled(self._processes.agreed(list(self._arrived)))

    def _filled(self, indices: Sequence[int]) -> list[list[int]]:
        """Return buckets of consecutive items; each holds gradients of one type, and is full or the last of them."""
        buckets: list[list[int]] = []
        size = self._bucket_bytes
        for i in indices:
            parameter = self._parameters[i]
            if size >= self._bucket_bytes or parameter.dtype != self._parameters[buckets[-1][-1]].dtype:
                buckets.append([])
                size = 0
            buckets[-1].append(i)
            size += parameter.numel() * parameter.element_size()
        return buckets
