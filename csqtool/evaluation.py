"""A network's metric, its loss on training data, and BatchNorm statistics that fit its weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from csqtool.data import DataSource, batches_of, training_batches
from csqtool.data.data_source import Part
from csqtool.nn.modes import evaluating, keeping_modes
from csqtool.processes import Processes
from csqtool.task import Task

LOSS_BATCH = 256
BN_SAMPLES = 8192


def as_float(outputs: Any) -> Any:
    """Return model outputs in float32 (autocast leaves them in bfloat16)."""
    return outputs.float() if isinstance(outputs, Tensor) and outputs.is_floating_point() else outputs


def laid_out(inputs: Tensor, *, channels_last: bool) -> Tensor:
    """Return inputs in the requested memory layout; only images [B, C, H, W] have two."""
    return inputs.contiguous(memory_format=torch.channels_last) if channels_last and inputs.ndim == 4 else inputs


@torch.no_grad()
def evaluate(
    net: nn.Module,
    dataset: Part,
    task: Task,
    device: torch.device | None = None,
    *,
    channels_last: bool = False,
    processes: Processes | None = None,
) -> float:
    """Return the task's metric of `net` over `dataset`, in evaluation mode and float32.

    Several processes evaluate different batches; each returns the metric over all of them.
    """
    mine = slice(processes.index, None, processes.count) if processes else slice(None)
    found = []  # (outputs, targets) a batch
    with evaluating(net):
        for x, y in batches_of(dataset, share=mine):
            inputs = laid_out(x.to(device) if device else x, channels_last=channels_last)
            found.append((as_float(net(inputs)).cpu(), y))
    if processes:
        found = processes.dealt_out(found)
    outputs, targets = zip(*found, strict=True)
    return task.metric(torch.cat(outputs), torch.cat(targets))


@torch.no_grad()
def training_loss(
    net: nn.Module, data: DataSource, device: torch.device, *, samples: int, channels_last: bool
) -> float:
    """Return the loss on the first training samples, with BatchNorm using the statistics of each batch.

    The running statistics belong to other weights, so they are neither used nor changed. Every module keeps its
    mode.
    """
    norms = _batch_norms(net)
    tracking = [norm.track_running_stats for norm in norms]
    total = count = 0.0
    with evaluating(net):
        try:
            for norm in norms:
                norm.train()
                norm.track_running_stats = False
            for x, y in batches_of(data.train, max_samples=samples, size=LOSS_BATCH):
                if len(x) > 1 or not norms:  # one sample has no variance
                    inputs = laid_out(x.to(device), channels_last=channels_last)
                    total += float(data.task.loss(net(inputs), y.to(device))) * len(x)
                    count += len(x)
        finally:
            for norm, tracked in zip(norms, tracking, strict=True):
                norm.track_running_stats = tracked
    return total / max(count, 1.0)


def reestimate_batch_norm(
    net: nn.Module, data: DataSource, device: torch.device, *, batch_size: int, seed: int
) -> None:
    """Recompute the running statistics of each BatchNorm with the network's present weights.

    The samples are augmented as in training: the weights were trained on that distribution. Every module keeps its
    mode; if an exception is raised, it keeps its statistics, too.
    """
    training = training_batches(data, batch_size=batch_size, seed=seed)
    samples = training.in_order(BN_SAMPLES, size=max(batch_size, 128))
    kept = [(norm, norm.momentum, copy.deepcopy(norm.state_dict())) for norm in _batch_norms(net)]
    with keeping_modes(net):
        try:
            update_bn((x for x, _ in samples if len(x) > 1), net, device=device)
        except BaseException:
            for norm, momentum, state in kept:  # torch restores neither after an exception
                norm.momentum = momentum
                norm.load_state_dict(state)
            raise


def _batch_norms(net: nn.Module) -> list[_BatchNorm]:
    return [module for module in net.modules() if isinstance(module, _BatchNorm)]
