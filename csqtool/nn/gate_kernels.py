"""The relaxed weight of CSQ (eq. 5) and its gradients, without temporaries kept for the backward pass.

Only the logits are saved; the gates are computed again in the backward pass. Compiled, each pass reads every
logit once; without a compiler they run plane by plane, with temporaries of one plane's size.

A logit's gradient is the weight's times c_b·β·σ'(β·m). So logits can be trained in two ways: with gradients of
their own, which an optimizer turns into steps, or with a step of the weight that `take_weight_step` passes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from csqtool.nn.kernels import Kernel


def _coefficients(s: Tensor, m_b: Tensor | None, plane_weights: Tensor, beta: Tensor) -> Tensor:
    """c_b = s·2^b/(2^n − 1)·f_β(m_B), without masks s·2^b/(2^n − 1), [k]."""
    open_ = s * plane_weights
    return open_ if m_b is None else open_ * torch.sigmoid(m_b * beta)


def _scale_and_mask(
    gradients: Tensor, s: Tensor, m_b: Tensor | None, plane_weights: Tensor, beta: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradient of s, and that of m_B if there is one, from those of the coefficients [k]."""
    if m_b is None:
        return ((gradients * plane_weights).sum(),)
    mask = torch.sigmoid(m_b * beta)
    of_open = gradients * plane_weights * mask
    return of_open.sum(), of_open * s * beta * (1 - mask)


def _weight(
    m_p: Tensor, m_n: Tensor, s: Tensor, m_b: Tensor | None, plane_weights: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    """Σ_b c_b·(f_β(m_p) − f_β(m_n)) from logits [k, N] → [N]; and the coefficients c [k]."""
    coefficients = _coefficients(s, m_b, plane_weights, beta)
    weight = torch.zeros_like(m_p[0])
    # A loop, compiled anew for each k: unrolled, it takes half the time of a sum over the first axis.
    for plane in range(len(coefficients)):
        digit = torch.sigmoid(m_p[plane] * beta) - torch.sigmoid(m_n[plane] * beta)
        weight = weight + coefficients[plane] * digit
    return weight, coefficients


def _weight_by_plane(
    m_p: Tensor, m_n: Tensor, s: Tensor, m_b: Tensor | None, plane_weights: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    coefficients = _coefficients(s, m_b, plane_weights, beta)
    weight = torch.zeros_like(m_p[0])
    for plane in range(len(coefficients)):
        digit = torch.sigmoid(m_p[plane] * beta).sub_(torch.sigmoid(m_n[plane] * beta))
        weight.addcmul_(digit, coefficients[plane])
    return weight, coefficients


def _gradients(
    m_p: Tensor, m_n: Tensor, s: Tensor, m_b: Tensor | None, plane_weights: Tensor, beta: Tensor, gradient: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of `_weight` for m_p, m_n [k, N], s, and m_B [k] if there is one; σ' = σ·(1 − σ)."""
    p, n = torch.sigmoid(m_p * beta), torch.sigmoid(m_n * beta)
    slope = (beta * _coefficients(s, m_b, plane_weights, beta))[:, None] * gradient[None]  # (k, N)
    of_coefficients = ((p - n) * gradient[None]).sum(1)
    return slope * p * (1 - p), -slope * n * (1 - n), *_scale_and_mask(of_coefficients, s, m_b, plane_weights, beta)


def _gradients_by_plane(
    m_p: Tensor, m_n: Tensor, s: Tensor, m_b: Tensor | None, plane_weights: Tensor, beta: Tensor, gradient: Tensor
) -> tuple[Tensor, ...]:
    coefficients = _coefficients(s, m_b, plane_weights, beta)
    for_p, for_n, of_coefficients = torch.empty_like(m_p), torch.empty_like(m_n), torch.empty_like(coefficients)
    for plane in range(len(coefficients)):
        slope = gradient * (beta * coefficients[plane])
        p, n = torch.sigmoid(m_p[plane] * beta), torch.sigmoid(m_n[plane] * beta)
        of_coefficients[plane] = torch.dot(p - n, gradient)
        torch.mul(slope, p.mul_(1 - p), out=for_p[plane])
        torch.mul(slope, n.mul_(n - 1), out=for_n[plane])
    return for_p, for_n, *_scale_and_mask(of_coefficients, s, m_b, plane_weights, beta)


def _scale_gradients(
    m_p: Tensor, m_n: Tensor, s: Tensor, m_b: Tensor | None, plane_weights: Tensor, beta: Tensor, gradient: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of `_weight` for s, and m_B [k] if there is one."""
    of_coefficients = ((torch.sigmoid(m_p * beta) - torch.sigmoid(m_n * beta)) * gradient[None]).sum(1)
    return _scale_and_mask(of_coefficients, s, m_b, plane_weights, beta)


def _scale_gradients_by_plane(
    m_p: Tensor, m_n: Tensor, s: Tensor, m_b: Tensor | None, plane_weights: Tensor, beta: Tensor, gradient: Tensor
) -> tuple[Tensor, ...]:
    digits = (torch.sigmoid(p * beta).sub_(torch.sigmoid(n * beta)) for p, n in zip(m_p, m_n, strict=True))
    of_coefficients = torch.stack([torch.dot(digit, gradient) for digit in digits])
    return _scale_and_mask(of_coefficients, s, m_b, plane_weights, beta)


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
    return torch.zeros(2, 64), torch.zeros(2, 64), torch.ones(()), torch.ones(2), torch.ones(2), torch.ones(())


_weight_kernel = Kernel(_weight_by_plane, _weight, _probe)
_gradients_kernel = Kernel(_gradients_by_plane, _gradients, lambda: (*_probe(), torch.ones(64)))
_scale_gradients_kernel = Kernel(_scale_gradients_by_plane, _scale_gradients, lambda: (*_probe(), torch.ones(64)))
_step_kernel = Kernel(_step_by_plane, _step, lambda: (*_probe()[:2], torch.ones(2), torch.ones(()), torch.ones(64)))


class _SoftWeight(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        m_p: Tensor,
        m_n: Tensor,
        s: Tensor,
        m_b: Tensor | None,
        plane_weights: Tensor,
        beta: Tensor,
        used: list[slice],
        _step: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(m_p, m_n, s, m_b, plane_weights, beta)
        ctx.set_materialize_grads(False)
        ctx.used = used
        parts = [_weight_kernel(*planes) for planes in _stretches(used, m_p, m_n, s, m_b, plane_weights, beta)]
        weight = parts[0][0]
        for part, _ in parts[1:]:
            weight += part
        coefficients = _whole([part for _, part in parts], plane_weights, used)
        ctx.mark_non_differentiable(coefficients)
        return weight.view(m_p.shape[1:]), coefficients

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        m_p, _, _, m_b, *_ = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        flat = gradient.flatten()
        own = ctx.needs_input_grad[0]
        kernel = _gradients_kernel if own else _scale_gradients_kernel
        parts = [kernel(*planes, flat) for planes in _stretches(ctx.used, *ctx.saved_tensors)]
        columns = list(zip(*parts, strict=True))
        for_p, for_n = [_whole(parts, m_p, ctx.used) for parts in columns[:2]] if own else (None, None)
        for_s = sum(columns[2 if own else 0])
        for_m_b = None if m_b is None else _whole(columns[-1], m_b, ctx.used)
        return for_p, for_n, for_s, for_m_b, None, None, None, None if own else gradient


def _stretches(
    used: list[slice], m_p: Tensor, m_n: Tensor, s: Tensor, m_b: Tensor | None, plane_weights: Tensor, beta: Tensor
) -> Iterator[tuple[Tensor | None, ...]]:
    """Yield the kernels' arguments for each stretch of planes that are used."""
    for u in used:
        yield m_p[u].flatten(1), m_n[u].flatten(1), s, None if m_b is None else m_b[u], plane_weights[u], beta


def _whole(parts: Sequence[Tensor], like: Tensor, used: list[slice]) -> Tensor:
    """Return what there is for the used planes, and zeros for the others, shaped as `like`."""
    if len(parts) == 1 and len(parts[0]) == len(like):
        return parts[0].view(like.shape)
    whole = torch.zeros_like(like)
    for part, planes in zip(parts, used, strict=True):
        whole[planes] = part.view(-1, *like.shape[1:])
    return whole


def soft_weight(
    m_p: Tensor,
    m_n: Tensor,
    s: Tensor,
    m_b: Tensor | None,
    plane_weights: Tensor,
    beta: Tensor,
    used: list[slice] | None = None,
    step: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Relaxed weight Σ_b c_b·(f_β(m_p) − f_β(m_n)), c_b = s·2^b/(2^n − 1)·f_β(m_B) (CSQ, eq. 5; without m_B eq. 3).

    Args:
        m_p: logits of the positive bits, float32 [k, *weight].
        m_n: logits of the negative bits, same shape.
        s: scale, a scalar.
        m_b: logits of the bit mask, [k]; None where planes are fixed.
        plane_weights: 2^b/(2^n − 1), [k].
        beta: gate temperature, a scalar.
        used: the planes that take part; None for all.
        step: zeros, [*weight], whose gradient becomes the weight's.

    Returns:
        The weight, [*weight], float32 also under autocast; and the coefficients c, [k], without gradients.
    """
    with torch.autocast(m_p.device.type, enabled=False):
        found: tuple[Tensor, Tensor] = _SoftWeight.apply(
            m_p, m_n, s, m_b, plane_weights, beta, used or [slice(None)], step
        )  # type: ignore[no-untyped-call]
        return found


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
