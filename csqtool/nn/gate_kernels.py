"""The relaxed weight of CSQ (eq. 5) and its gradients, without temporaries kept for the backward pass.

Only the logits are saved; the gates are computed again in the backward pass. Compiled, each pass reads every
logit once; without a compiler they run plane by plane, with temporaries of one plane's size.

A logit's gradient is the weight's times c_b·β·σ'(β·m). So logits can be trained in two ways: with gradients of
their own, which an optimizer turns into steps, or with a step of the weight that `take_weight_step` passes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from csqtool.nn.kernels import Kernel


def _weight(m_p: Tensor, m_n: Tensor, coefficients: Tensor, beta: Tensor) -> Tensor:
    """Σ_b c_b·(f_β(m_p) − f_β(m_n)): logits [k, N], coefficients [k] → [N]."""
    weight = torch.zeros_like(m_p[0])
    # A loop, compiled anew for each k: unrolled, it takes half the time of a sum over the first axis.
    for plane in range(len(coefficients)):
        digit = torch.sigmoid(m_p[plane] * beta) - torch.sigmoid(m_n[plane] * beta)
        weight = weight + coefficients[plane] * digit
    return weight


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


def _coefficient_gradients(m_p: Tensor, m_n: Tensor, beta: Tensor, gradient: Tensor) -> Tensor:
    """Gradient of `_weight` for the coefficients, [k]."""
    return ((torch.sigmoid(m_p * beta) - torch.sigmoid(m_n * beta)) * gradient[None]).sum(1)


def _coefficient_gradients_by_plane(m_p: Tensor, m_n: Tensor, beta: Tensor, gradient: Tensor) -> Tensor:
    digits = (torch.sigmoid(p * beta).sub_(torch.sigmoid(n * beta)) for p, n in zip(m_p, m_n, strict=True))
    return torch.stack([torch.dot(digit, gradient) for digit in digits])


def _step(m_p: Tensor, m_n: Tensor, coefficients: Tensor, beta: Tensor, step: Tensor) -> None:
    """Add to m_p, m_n [k, N] what `_gradients` gives for `step` [N] in the gradient's place."""
    p, n = torch.sigmoid(m_p * beta), torch.sigmoid(m_n * beta)
    slope = (beta * coefficients)[:, None] * step[None]  # (k, N)
    m_p.add_(slope * p * (1 - p))
    m_n.sub_(slope * n * (1 - n))


def _step_by_plane(m_p: Tensor, m_n: Tensor, coefficients: Tensor, beta: Tensor, step: Tensor) -> None:
    for plane in range(len(coefficients)):
        slope = step * (beta * coefficients[plane])
        p, n = torch.sigmoid(m_p[plane] * beta), torch.sigmoid(m_n[plane] * beta)
        m_p[plane].addcmul_(slope, p.mul_(1 - p))
        m_n[plane].addcmul_(slope, n.mul_(n - 1))


def _probe() -> tuple[Tensor, ...]:
    return torch.zeros(2, 64), torch.zeros(2, 64), torch.ones(2), torch.ones(())


_weight_kernel = Kernel(_weight_by_plane, _weight, _probe)
_gradients_kernel = Kernel(_gradients_by_plane, _gradients, lambda: (*_probe(), torch.ones(64)))
_coefficient_gradients_kernel = Kernel(
    _coefficient_gradients_by_plane, _coefficient_gradients, lambda: (*_probe()[:2], torch.ones(()), torch.ones(64))
)
_step_kernel = Kernel(_step_by_plane, _step, lambda: (*_probe(), torch.ones(64)))


class _SoftWeight(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, m_p: Tensor, m_n: Tensor, coefficients: Tensor, beta: Tensor, used: list[slice], _step: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(m_p, m_n, coefficients, beta)
        ctx.used = used
        parts = [_weight_kernel(m_p[u].flatten(1), m_n[u].flatten(1), coefficients[u], beta) for u in used]
        weight: Tensor = parts[0]
        for part in parts[1:]:
            weight += part
        return weight.view(m_p.shape[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        m_p, m_n, coefficients, beta = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        flat = gradient.flatten()
        planes = [(m_p[u].flatten(1), m_n[u].flatten(1), coefficients[u]) for u in ctx.used]
        if not ctx.needs_input_grad[0]:
            sums = [(_coefficient_gradients_kernel(p, n, beta, flat),) for p, n, _ in planes]
            (for_coefficients,) = _whole(sums, (coefficients,), ctx.used)
            return None, None, for_coefficients, None, None, gradient
        parts = [_gradients_kernel(p, n, c, beta, flat) for p, n, c in planes]
        return *_whole(parts, (m_p, m_n, coefficients), ctx.used), None, None, None


def _whole(parts: Sequence[tuple[Tensor, ...]], likes: tuple[Tensor, ...], used: list[slice]) -> list[Tensor]:
    """Return the gradients of all planes: those of the used ones, zero for the others."""
    if len(parts) == 1 and len(parts[0][0]) == len(likes[0]):
        return [part.view(like.shape) for part, like in zip(parts[0], likes, strict=True)]
    whole = [torch.zeros_like(like) for like in likes]
    for of_planes, planes in zip(parts, used, strict=True):
        for gradient, part in zip(whole, of_planes, strict=True):
            gradient[planes] = part.view(-1, *gradient.shape[1:])
    return whole


def soft_weight(
    m_p: Tensor,
    m_n: Tensor,
    coefficients: Tensor,
    beta: Tensor,
    used: list[slice] | None = None,
    step: Tensor | None = None,
) -> Tensor:
    """Relaxed weight Σ_b c_b·(f_β(m_p) − f_β(m_n)) (CSQ, eq. 5 with c_b = s·2^b·f_β(m_B)/(2^n − 1)).

    Args:
        m_p: logits of the positive bits, float32 [k, *weight].
        m_n: logits of the negative bits, same shape.
        coefficients: what each plane weighs, [k].
        beta: gate temperature, a scalar.
        used: the planes that take part; None for all.
        step: zeros, [*weight], whose gradient becomes the weight's.

    Returns:
        The weight, [*weight], float32 also under autocast.
    """
    with torch.autocast(m_p.device.type, enabled=False):
        weight: Tensor = _SoftWeight.apply(m_p, m_n, coefficients, beta, used or [slice(None)], step)  # type: ignore[no-untyped-call]
        return weight


@torch.no_grad()
def take_weight_step(
    m_p: Tensor, m_n: Tensor, coefficients: Tensor, beta: Tensor, step: Tensor, used: list[slice] | None = None
) -> None:
    """Move the logits along a step of the weight: m_p by step·c_b·β·σ'(β·m_p), m_n by the negative of its like.

    Args:
        m_p: logits of the positive bits, [k, *weight], changed in place.
        m_n: logits of the negative bits, likewise.
        coefficients: what each plane weighs, [k].
        beta: gate temperature, a scalar.
        step: what an optimizer made of the weight's gradient, [*weight].
        used: the planes that take part; None for all.
    """
    for u in used or [slice(None)]:
        _step_kernel(m_p[u].flatten(1), m_n[u].flatten(1), coefficients[u], beta, step.flatten())
