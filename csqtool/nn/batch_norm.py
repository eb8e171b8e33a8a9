"""BatchNorm in training, with the statistics of samples that are spread over several processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import handle_torch_function, has_torch_function

AddUp = Callable[[Tensor], Tensor]


class _Total(torch.autograd.Function):
    """The sum over processes. Each process's values influence the loss of all, so gradients are summed, too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, add_up: AddUp) -> Tensor:
        ctx.add_up = add_up
        return add_up(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total: Tensor = ctx.add_up(gradients[0])
        return total, None


def whole_batch_norm(x: Tensor, norm: _BatchNorm, add_up: AddUp) -> Tensor:
    """Normalise by mean and variance over all processes, and update the running statistics.

    `torch.nn.SyncBatchNorm` does the same on accelerators only.

    Args:
        x: this process's samples [N, C, …].
        norm: the module, in training mode.
        add_up: returns a tensor's sum over all processes.
    """
    if has_torch_function((x,)):  # modes that watch the forward pass see one call, as of F.batch_norm
        result: Tensor = handle_torch_function(whole_batch_norm, (x,), x, norm, add_up)
        return result

    def total(values: Tensor) -> Tensor:
        summed: Tensor = _Total.apply(values, add_up)  # type: ignore[no-untyped-call]
        return summed

    axes = [0, *range(2, x.ndim)]
    view = [1, -1, *[1] * (x.ndim - 2)]
    with torch.autocast(x.device.type, enabled=False):
        values = x.float()
        own = torch.full((1,), float(values.numel() // values.shape[1]), device=x.device)
        sums = total(torch.cat([values.sum(axes), own]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = values - mean.view(view)
        variance = total(centred.square().sum(axes)) / count
        normalised = centred * torch.rsqrt(variance + norm.eps).view(view)
        if norm.affine:
            normalised = normalised * norm.weight.view(view) + norm.bias.view(view)
    if norm.track_running_stats:
        with torch.no_grad():
            assert norm.num_batches_tracked is not None
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.num_batches_tracked.add_(1)
            pace = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean.detach(), pace)
            norm.running_var.lerp_(variance.detach() * count / (count - 1), pace)
    return normalised.to(x.dtype)
