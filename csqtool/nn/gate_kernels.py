"""The relaxed weight of CSQ (eq. 5) and its gradients, without temporaries kept for the backward pass.

Only the logits are saved; the gates are computed again in the backward pass. Compiled, each pass reads every
logit once; without a compiler they run plane by plane, with temporaries of one plane's size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from csqtool.nn.kernels import Kernel


def _weight(m_p: Tensor, m_n: Tensor, coefficients: Tensor, beta: Tensor) -> Tensor:
    """Σ_b c_b·(f_β(m_p) − f_β(m_n)): logits [k, N], coefficients [k] → [N]."""
    digits = torch.sigmoid(m_p * beta) - torch.sigmoid(m_n * beta)  # (k, N)
    return (coefficients[:, None] * digits).sum(0)


def _gradients(
    m_p: Tensor, m_n: Tensor, coefficients: Tensor, beta: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `_weight` for m_p, m_n [k, N] and the coefficients [k]; σ' = σ·(1 − σ)."""
    p, n = torch.sigmoid(m_p * beta), torch.sigmoid(m_n * beta)
    slope = (beta * coefficients)[:, None] * gradient[None]  # (k, N)
    return slope * p * (1 - p), -slope * n * (1 - n), ((p - n) * gradient[None]).sum(1)


def _weight_by_plane(m_p: Tensor, m_n: Tensor, coefficients: Tensor, beta: Tensor) -> Tensor:
    weight = torch.zeros_like(m_p[0])
    for plane in range(len(coefficients)):
        digit = torch.sigmoid(m_p[plane] * beta).sub_(torch.sigmoid(m_n[plane] * beta))
        weight.addcmul_(digit, coefficients[plane])
    return weight


def _gradients_by_plane(
    m_p: Tensor, m_n: Tensor, coefficients: Tensor, beta: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    for_p, for_n, for_coefficients = torch.empty_like(m_p), torch.empty_like(m_n), torch.empty_like(coefficients)
    for plane in range(len(coefficients)):
        slope = gradient * (beta * coefficients[plane])
        p, n = torch.sigmoid(m_p[plane] * beta), torch.sigmoid(m_n[plane] * beta)
        for_coefficients[plane] = torch.dot(p - n, gradient)
        torch.mul(slope, p.mul_(1 - p), out=for_p[plane])
        torch.mul(slope, n.mul_(n - 1), out=for_n[plane])
    return for_p, for_n, for_coefficients


def _probe() -> tuple[Tensor, ...]:
    return torch.zeros(2, 64), torch.zeros(2, 64), torch.ones(2), torch.ones(())


_weight_kernel = Kernel(_weight_by_plane, _weight, _probe)
_gradients_kernel = Kernel(_gradients_by_plane, _gradients, lambda: (*_probe(), torch.ones(64)))


class _SoftWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, m_p: Tensor, m_n: Tensor, coefficients: Tensor, beta: Tensor, first: int) -> Tensor:
        ctx.save_for_backward(m_p, m_n, coefficients, beta)
        ctx.first = first
        used = slice(first, first + len(coefficients))
        weight: Tensor = _weight_kernel(m_p[used].flatten(1), m_n[used].flatten(1), coefficients, beta)
        return weight.view(m_p.shape[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        m_p, m_n, coefficients, beta = ctx.saved_tensors
        used = slice(ctx.first, ctx.first + len(coefficients))
        flat = gradients[0].contiguous().flatten()
        for_p, for_n, for_c = _gradients_kernel(m_p[used].flatten(1), m_n[used].flatten(1), coefficients, beta, flat)
        return _whole(for_p, m_p, used), _whole(for_n, m_n, used), for_c, None, None


def _whole(gradient: Tensor, logits: Tensor, used: slice) -> Tensor:
    """Return a gradient of all planes, zero outside the used ones."""
    if len(gradient) == len(logits):
        return gradient.view(logits.shape)
    whole = torch.zeros_like(logits)
    whole[used] = gradient.view(-1, *logits.shape[1:])
    return whole


def soft_weight(m_p: Tensor, m_n: Tensor, coefficients: Tensor, beta: Tensor, first: int = 0) -> Tensor:
    """Relaxed weight Σ_b c_b·(f_β(m_p) − f_β(m_n)) (CSQ, eq. 5 with c_b = s·2^b·f_β(m_B)/(2^n − 1)).

    Args:
        m_p: logits of the positive bits, float32 [n, *weight].
        m_n: logits of the negative bits, same shape.
        coefficients: what each plane that takes part weighs, [k].
        beta: gate temperature, a scalar.
        first: the first plane that takes part, of k.

    Returns:
        The weight, [*weight], float32 also under autocast.
    """
    with torch.autocast(m_p.device.type, enabled=False):
        weight: Tensor = _SoftWeight.apply(m_p, m_n, coefficients, beta, first)  # type: ignore[no-untyped-call]
        return weight
