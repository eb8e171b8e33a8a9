"""A network's metric, its loss on training data, and BatchNorm statistics that fit its weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from csqtool.data import DataSource, batches_of, training_batches
from csqtool.data.data_source import Part
from csqtool.data.datasets import Batch
from csqtool.nn.modes import evaluating, keeping_modes
from csqtool.processes import Processes
from csqtool.task import Task, main_output, new_metric, value_of
from csqtool.trees import call, mapped
from csqtool.trees import samples as samples_in

LOSS_BATCH = 256
BN_SAMPLES = 8192
REFRESH_SAMPLES = 2048  # training samples that tell whether fresh statistics of BatchNorm are better
# The share by which they must lower the loss on these: a smaller one is the choice of samples.
REFRESH_GAIN = 0.05


def heeding(batches: Iterable[Batch], heed: Callable[[], None] | None) -> Iterator[Batch]:
    """Yield batches, after a call of `heed` for each, which may raise to stop the work."""
    for batch in batches:
        if heed is not None:
            heed()
        yield batch


def as_float(outputs: Any) -> Any:
    """Return model outputs in float32 (autocast leaves them in bfloat16)."""
    return mapped(outputs, lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)


def laid_out(inputs: Any, device: torch.device | None, *, channels_last: bool) -> Any:
    """Return a batch's inputs on a device, in the requested memory layout; only images [B, C, H, W] have two."""

    def moved(tensor: Tensor) -> Tensor:
        there = tensor if device is None else tensor.to(device)
        image = channels_last and there.ndim == 4
        return there.contiguous(memory_format=torch.channels_last) if image else there

    return mapped(inputs, moved)


@torch.no_grad()
def evaluate(
    net: nn.Module,
    dataset: Part,
    task: Task,
    device: torch.device | None = None,
    *,
    channels_last: bool = False,
    processes: Processes | None = None,
    heed: Callable[[], None] | None = None,
) -> float:
    """Return the task's metric of `net` over `dataset`, in evaluation mode and float32.

    The metric is updated batch by batch. Several processes evaluate different batches, and exchange them in turns;
    each returns the metric over all of them. Each calls `heed` equally often, before each batch: it may raise.
    """
    mine = slice(processes.index, None, processes.count) if processes else slice(None)
    metric = new_metric(task)
    with evaluating(net):
        batches = batches_of(dataset, share=mine)
        while True:
            if heed is not None:
                heed()
            found = None
            if (batch := next(batches, None)) is not None:
                inputs = laid_out(batch[0], device, channels_last=channels_last)
                outputs = main_output(as_float(call(net, inputs)), task)
                found = mapped(outputs, lambda tensor: tensor.cpu()), batch[1]
            turn = [x for x in (processes.dealt_out([found]) if processes else [found]) if x is not None]
            if not turn:
                return value_of(metric)
            for outputs, targets in turn:
                metric.update(outputs, targets)


@contextmanager
def measuring(net: nn.Module, *, running_statistics: bool = False) -> Iterator[bool]:
    """Put a network in evaluation mode for losses on training samples; every module gets its mode back.

    Args:
        net: the network.
        running_statistics: BatchNorm normalises by its running statistics, as it does once it is deployed. Otherwise
            it takes those of each batch, where the running ones are those of other weights; they are not changed.

    Yields:
        Whether a batch needs more than one sample: one has no variance.
    """
    norms = [] if running_statistics else _batch_norms(net)
    tracking = [norm.track_running_stats for norm in norms]
    with evaluating(net):
        try:
            for norm in norms:
                norm.train()
                norm.track_running_stats = False
            yield bool(norms)
        finally:
            for norm, tracked in zip(norms, tracking, strict=True):
                norm.track_running_stats = tracked


def batch_loss(net: nn.Module, task: Task, batch: Batch, device: torch.device, *, channels_last: bool) -> Tensor:
    """Return the task's loss on a batch, a scalar."""
    x, y = batch
    outputs = main_output(as_float(call(net, laid_out(x, device, channels_last=channels_last))), task)
    return task.loss(outputs, mapped(y, lambda tensor: tensor.to(device)))


@torch.no_grad()
def training_loss(
    net: nn.Module,
    data: DataSource,
    device: torch.device,
    *,
    samples: int,
    channels_last: bool,
    running_statistics: bool = False,
    heed: Callable[[], None] | None = None,
) -> float:
    """Return the loss on the first training samples.

    Args:
        net: every module keeps its mode.
        data: training data and task.
        device: where the net is.
        samples: how many.
        channels_last: the memory layout of images.
        running_statistics: of BatchNorm, see `measuring`.
        heed: called before each batch; it may raise.
    """
    total = count = 0.0
    with measuring(net, running_statistics=running_statistics) as needs_two:
        for batch in heeding(batches_of(data.train, max_samples=samples, size=LOSS_BATCH), heed):
            size = samples_in(batch[0])
            if size > 1 or not needs_two:
                total += float(batch_loss(net, data.task, batch, device, channels_last=channels_last)) * size
                count += size
    return total / max(count, 1.0)


def reestimate_batch_norm(
    net: nn.Module,
    data: DataSource,
    device: torch.device,
    *,
    batch_size: int,
    seed: int,
    heed: Callable[[], None] | None = None,
) -> None:
    """Recompute the running statistics of each BatchNorm with the network's present weights.

    The samples are augmented as in training: the weights were trained on that distribution. Every module keeps its
    mode; if an exception is raised, it keeps its statistics, too. `heed` is called before each batch; it may raise.
    """
    training = training_batches(data, batch_size=batch_size, seed=seed)
    samples = training.in_order(BN_SAMPLES, size=max(batch_size, 128))
    norms = _batch_norms(net)
    if not norms:
        return
    kept = batch_norm_statistics(net)
    momenta = [norm.momentum for norm in norms]
    with keeping_modes(net):
        try:
            net.train()
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # the mean over all batches
            for x, _ in heeding(samples, heed):
                if samples_in(x) > 1:
                    call(net, laid_out(x, device, channels_last=False))
        except BaseException:
            kept.restore()
            raise
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


def refresh_batch_norm(
    net: nn.Module,
    data: DataSource,
    device: torch.device,
    *,
    batch_size: int,
    seed: int,
    channels_last: bool,
    agreed: Callable[[bool], bool] = lambda helps: helps,
    heed: Callable[[], None] | None = None,
) -> bool:
    """Re-estimate BatchNorm's statistics where that lowers the loss on training samples; tell whether it did.

    Running statistics follow the weights slowly: after a short stage they are still those of the network before it.

    Args:
        net: the network, its weights as they will stay.
        data: training data and task.
        device: where the net is.
        batch_size: of the training batches.
        seed: of their augmentation.
        channels_last: the memory layout of images.
        agreed: returns what the first of several processes decides.
        heed: called before each batch; it may raise.
    """
    kept = batch_norm_statistics(net)
    if not kept.kept:
        return False

    def loss() -> float:
        return training_loss(
            net, data, device, samples=REFRESH_SAMPLES, channels_last=channels_last, running_statistics=True, heed=heed
        )

    before = loss()
    reestimate_batch_norm(net, data, device, batch_size=batch_size, seed=seed, heed=heed)
    after = loss()
    helps = agreed(not math.isfinite(before) or after < before * (1 - REFRESH_GAIN))
    if not helps:
        kept.restore()
    return helps


@dataclass(frozen=True)
class BatchNormStatistics:
    """Copies of the running statistics of BatchNorms, to be put back."""

    kept: list[tuple[_BatchNorm, dict[str, Tensor]]]

    @torch.no_grad()
    def restore(self) -> None:
        """Put them back."""
        for norm, buffers in self.kept:
            for name, value in buffers.items():
                norm.get_buffer(name).copy_(value)


def batch_norm_statistics(net: nn.Module) -> BatchNormStatistics:
    """Return a copy of the running statistics of all BatchNorms that train."""
    return BatchNormStatistics([(n, {k: b.clone() for k, b in n.named_buffers()}) for n in _batch_norms(net)])


def _batch_norms(net: nn.Module) -> list[_BatchNorm]:
    """Return the BatchNorms with running statistics that train when `net` does: others are frozen by their owner."""
    with keeping_modes(net):
        net.train()
        return [
            module for module in net.modules()
            if isinstance(module, _BatchNorm) and module.training and module.running_mean is not None
        ]  # fmt: skip
