"""The relaxed weight of CSQ (eq. 5) and its gradients, with no temporaries kept for the backward pass.

Only the logits are saved; the backward pass computes the gates again. Compiled kernels read every logit once a
pass. Without a compiler the kernels work plane by plane, and their temporaries have the size of one plane.

The gradient of a logit is the gradient of the weight times c_b·β·σ'(β·m). So logits can be trained in two ways:
with gradients of their own, which an optimizer turns into steps, or with a step of the weight, which
`take_weight_step` passes on to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from csqtool.nn.kernels import Kernel


class Scaling(NamedTuple):
    """What determines the weight of each plane: s, m_b (None where planes are fixed), 2^b/(2^n − 1), and β."""

    s: Tensor
    m_b: Tensor | None
    plane_weights: Tensor
    beta: Tensor

    def of(self, planes: slice) -> Scaling:
        """Return the same for some of the planes."""
        m_b = None if self.m_b is None else self.m_b[planes].detach()
        return self._replace(m_b=m_b, plane_weights=self.plane_weights[planes].detach())

    def coefficients(self) -> Tensor:
        """c_b = s·2^b/(2^n − 1)·f_β(m_B), [k]."""
        whole = self.s * self.plane_weights
        return whole if self.m_b is None else whole * torch.sigmoid(self.m_b * self.beta)

    def gradients(self, for_c: Tensor) -> tuple[Tensor, ...]:
        """Return the gradient of s, and that of m_B if there is one, from those of the coefficients [k]."""
        if self.m_b is None:
            return ((for_c * self.plane_weights).sum(),)
        mask = torch.sigmoid(self.m_b * self.beta)
        for_whole = for_c * self.plane_weights * mask
        return for_whole.sum(), for_whole * self.s * self.beta * (1 - mask)


def _weight(m_p: Tensor, m_n: Tensor, scaling: Scaling) -> tuple[Tensor, Tensor]:
    """Σ_b c_b·(f_β(m_p) − f_β(m_n)) from logits [k, N] → [N]; and the coefficients c [k].

    The loop is unrolled when compiled, once for each k: a sum over the first axis takes nearly twice the time.
    """
    coefficients, beta = scaling.coefficients(), scaling.beta
    weight = torch.zeros_like(m_p[0])
    for plane in range(len(coefficients)):
        digit = torch.sigmoid(m_p[plane] * beta).sub_(torch.sigmoid(m_n[plane] * beta))
        weight.addcmul_(digit, coefficients[plane])
    return weight, coefficients


def _weight_by_product(m_p: Tensor, m_n: Tensor, scaling: Scaling) -> tuple[Tensor, Tensor]:
    coefficients, beta = scaling.coefficients(), scaling.beta
    return coefficients @ torch.sigmoid(m_p * beta).sub_(torch.sigmoid(m_n * beta)), coefficients


def _gradients(m_p: Tensor, m_n: Tensor, scaling: Scaling, gradient: Tensor) -> tuple[Tensor, ...]:
    """Gradients of `_weight` for m_p, m_n [k, N], s, and m_B [k] if there is one; σ' = σ·(1 − σ)."""
    p, n = torch.sigmoid(m_p * scaling.beta), torch.sigmoid(m_n * scaling.beta)
    slope = (scaling.beta * scaling.coefficients())[:, None] * gradient[None]  # (k, N)
    return slope * p * (1 - p), -slope * n * (1 - n), *scaling.gradients(((p - n) * gradient[None]).sum(1))


def _gradients_by_plane(m_p: Tensor, m_n: Tensor, scaling: Scaling, gradient: Tensor) -> tuple[Tensor, ...]:
    coefficients, beta = scaling.coefficients(), scaling.beta
    for_p, for_n, for_c = torch.empty_like(m_p), torch.empty_like(m_n), torch.empty_like(coefficients)
    for plane in range(len(coefficients)):
        slope = gradient * (beta * coefficients[plane])
        p, n = torch.sigmoid(m_p[plane] * beta), torch.sigmoid(m_n[plane] * beta)
        for_c[plane] = torch.dot(p - n, gradient)
        torch.mul(slope, p.mul_(1 - p), out=for_p[plane])
        torch.mul(slope, n.mul_(n - 1), out=for_n[plane])
    return for_p, for_n, *scaling.gradients(for_c)


def _scale_gradients(m_p: Tensor, m_n: Tensor, scaling: Scaling, gradient: Tensor) -> tuple[Tensor, ...]:
    """Gradients of `_weight` for s, and for m_B [k] if there is one."""
    digits = torch.sigmoid(m_p * scaling.beta) - torch.sigmoid(m_n * scaling.beta)
    return scaling.gradients((digits * gradient[None]).sum(1))


def _scale_gradients_by_plane(m_p: Tensor, m_n: Tensor, scaling: Scaling, gradient: Tensor) -> tuple[Tensor, ...]:
    beta = scaling.beta
    digits = (torch.sigmoid(p * beta).sub_(torch.sigmoid(n * beta)) for p, n in zip(m_p, m_n, strict=True))
    return scaling.gradients(torch.stack([torch.dot(digit, gradient) for digit in digits]))


def _step(m_p: Tensor, m_n: Tensor, coefficients: Tensor, beta: Tensor, step: Tensor) -> None:
    """Add to m_p, m_n [k, N] what `_gradients` returns for them if the gradient is `step` [N]."""
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


def _probe() -> tuple[Tensor, Tensor, Scaling]:
    scaling = Scaling(torch.ones(()), torch.ones(2), torch.ones(2), torch.ones(()))
    return torch.zeros(2, 64), torch.zeros(2, 64), scaling


_weight_kernel = Kernel(_weight, _weight, _probe, few_launches=_weight_by_product)
_gradients_kernel = Kernel(
    _gradients_by_plane, _gradients, lambda: (*_probe(), torch.ones(64)), few_launches=_gradients
)
_scale_gradients_kernel = Kernel(
    _scale_gradients_by_plane, _scale_gradients, lambda: (*_probe(), torch.ones(64)), few_launches=_scale_gradients
)
_step_kernel = Kernel(
    _step_by_plane, _step, lambda: (*_probe()[:2], torch.ones(2), torch.ones(()), torch.ones(64)), few_launches=_step
)


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
        scaling = _detached(s, m_b, plane_weights, beta)
        parts = [_weight_kernel(m_p[u].flatten(1), m_n[u].flatten(1), scaling.of(u)) for u in used]
        weight = parts[0][0]
        for part, _ in parts[1:]:
            weight += part
        coefficients = _whole([part for _, part in parts], plane_weights, used)
        ctx.mark_non_differentiable(coefficients)
        return weight.view(m_p.shape[1:]), coefficients

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        m_p, m_n, *scales = ctx.saved_tensors
        scaling = _detached(*scales)
        gradient = gradients[0].contiguous()
        flat = gradient.flatten()
        own = ctx.needs_input_grad[0]
        kernel = _gradients_kernel if own else _scale_gradients_kernel
        parts = [kernel(m_p[u].flatten(1), m_n[u].flatten(1), scaling.of(u), flat) for u in ctx.used]
        columns = list(zip(*parts, strict=True))
        for_p, for_n = [_whole(parts, m_p, ctx.used) for parts in columns[:2]] if own else (None, None)
        for_s = sum(columns[2 if own else 0])
        for_m_b = None if scaling.m_b is None else _whole(columns[-1], scaling.m_b, ctx.used)
        return for_p, for_n, for_s, for_m_b, None, None, None, None if own else gradient


def _detached(s: Tensor, m_b: Tensor | None, plane_weights: Tensor, beta: Tensor) -> Scaling:
    return Scaling(s.detach(), None if m_b is None else m_b.detach(), plane_weights, beta)


def _whole(parts: Sequence[Tensor], like: Tensor, used: list[slice]) -> Tensor:
    """Return a tensor shaped as `like`: `parts` for the used planes, and zeros for the others."""
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
        step: zeros, [*weight], which receives the weight's gradient in the logits' place; None if they have their own.

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
    m_p: Tensor, m_n: Tensor, coefficients: Tensor, beta: Tensor, step: Tensor, used: list[slice]
) -> None:
    """Move the logits along a step of the weight: m_p by step·c_b·β·σ'(β·m_p), m_n by −step·c_b·β·σ'(β·m_n).

    Args:
        m_p: logits of the positive bits, [k, *weight], changed in place.
        m_n: logits of the negative bits, same shape, changed in place.
        coefficients: c_b of each plane, [k].
        beta: gate temperature, a scalar.
        step: the step that an optimizer made of the weight's gradient, [*weight].
        used: the planes that take part.
    """
    for u in used:
        _step_kernel(m_p[u].flatten(1), m_n[u].flatten(1), coefficients[u], beta, step.flatten())
