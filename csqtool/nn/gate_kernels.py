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
    def forward(ctx: Any, m_p: Tensor, m_n: Tensor, coefficients: Tensor, beta: Tensor, used: list[slice]) -> Tensor:
        ctx.save_for_backward(m_p, m_n, coefficients, beta)
        ctx.used = used
        parts = [_weight_kernel(m_p[u].flatten(1), m_n[u].flatten(1), coefficients[u], beta) for u in used]
        weight: Tensor = parts[0]
        for part in parts[1:]:
            weight += part
        return weight.view(m_p.shape[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        m_p, m_n, coefficients, beta = ctx.saved_tensors
        flat = gradients[0].contiguous().flatten()
        parts = [_gradients_kernel(m_p[u].flatten(1), m_n[u].flatten(1), coefficients[u], beta, flat) for u in ctx.used]
        whole = [_whole(of_one, like, ctx.used)
                 for of_one, like in zip(zip(*parts, strict=True), (m_p, m_n, coefficients), strict=True)]  # fmt: skip
        return whole[0], whole[1], whole[2], None, None


def _whole(parts: tuple[Tensor, ...], like: Tensor, used: list[slice]) -> Tensor:
    """Return a gradient of all planes: that of the used ones, zero for the others."""
    if len(parts[0]) == len(like):
        return parts[0].view(like.shape)
    whole = torch.zeros_like(like)
    for part, planes in zip(parts, used, strict=True):
        whole[planes] = part.view(-1, *like.shape[1:])
    return whole


def soft_weight(
    m_p: Tensor, m_n: Tensor, coefficients: Tensor, beta: Tensor, used: list[slice] | None = None
) -> Tensor:
    """Relaxed weight Σ_b c_b·(f_β(m_p) − f_β(m_n)) (CSQ, eq. 5 with c_b = s·2^b·f_β(m_B)/(2^n − 1)).

    Args:
        m_p: logits of the positive bits, float32 [k, *weight].
        m_n: logits of the negative bits, same shape.
        coefficients: what each plane weighs, [k].
        beta: gate temperature, a scalar.
        used: the planes that take part; None for all.

    Returns:
        The weight, [*weight], float32 also under autocast.
    """
    with torch.autocast(m_p.device.type, enabled=False):
        weight: Tensor = _SoftWeight.apply(m_p, m_n, coefficients, beta, used or [slice(None)])  # type: ignore[no-untyped-call]
        return weight
