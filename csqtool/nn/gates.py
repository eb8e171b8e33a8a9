"""Bit gates: a weight tensor as continuously sparsified bit planes (CSQ, section III-A)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from csqtool.integers import digits_to_integers
from csqtool.nn.gate_kernels import soft_weight, take_weight_step
from csqtool.nn.levels import Levels
from csqtool.nn.weights import WeightSource
from csqtool.quantized_model import LayerIntegers

# The mask logits of a layer's last planes are held at or above this. At β = 200 such a gate is σ(10) ≈ 1, so
# hardening it changes nothing.
LAST_PLANE_LOGIT = 0.05


def soft_gate(logits: Tensor, beta: Tensor | float) -> Tensor:
    """Soft bit gate f_β(x) = σ(βx) (CSQ, eq. 2)."""
    return torch.sigmoid(logits * beta)


def _stretches(open_planes: list[bool]) -> list[slice]:
    """Return the runs of consecutive open planes, each as a slice."""
    ends = np.flatnonzero(np.diff([False, *open_planes, False])).tolist()
    return [slice(first, last) for first, last in zip(ends[::2], ends[1::2], strict=True)]


class BitGates(WeightSource):
    """The trainable bit planes of one weight tensor; as a parametrization it returns the weight.

    With a mask (CSQ, eq. 5) the layer's planes are searched; without one (eq. 3) the given ones are kept.

    Example:
        A weight of shape [2, 2] on planes 0 and 1: the integers −3 to 3, times a scale.

        >>> weight = torch.tensor([[3.0, -1.0], [0.0, 2.0]]) / 8
        >>> gates = BitGates(weight, exponents=(0, 1), n_planes=2)
        >>> gates.m_p.shape  # a logit for each plane and weight; m_n has the same shape
        torch.Size([2, 2, 2])
        >>> bool(torch.allclose(gates(), weight, atol=0.01))  # soft gates
        True
        >>> gates.hard = True  # unit steps
        >>> q, scale, mask = gates.integers()
        >>> q.tolist(), mask
        ([[3, -1], [0, 2]], '11')
        >>> bool((gates() == torch.from_numpy(q) * float(scale)).all())
        True

    Attributes:
        m_p, m_n: logits of positive and negative bits, shape [k, *weight], float32.
        m_b: logits of the bit mask m_B, shape [k]; None where the planes are fixed.
        s: scale, a scalar.
        exponents: plane b weighs 2^b, ascending.
        n_planes: n, the number of planes in a mask string.
        beta: gate temperature β.
        plane_weights: 2^b/(2^n − 1) for each plane b, constant; shape [k].
        open_planes: which planes take part in the computation, bool [k].
        step: zeros [*weight] that receive the weight's gradient. An optimizer turns them into a step of the weight,
            and `take_step` passes that on to the logits. None where logits have gradients of their own.
        hard: all gates are unit steps I(x ≥ 0).
    """

    beta: Tensor
    open_planes: Tensor
    plane_weights: Tensor

    def __init__(
        self,
        weight: Tensor,
        exponents: Sequence[int],
        *,
        n_planes: int = 8,
        gate_init: float = 1.0,
        mask_init: float | None = None,
        paper_init: bool = False,
        weight_steps: bool = False,
    ) -> None:
        """Start from `weight`: at β = 1 the soft weight is the weight rounded to the planes.

        Args:
            weight: the float weight.
            exponents: the planes to start with, ascending.
            n_planes: n, the number of planes in a mask string.
            gate_init: logits start at ± this.
            mask_init: the mask logit of the plane at index b starts at (b + 1) times this; None fixes the planes.
            paper_init: start as the authors' code does: logits 0 and 1, mask logits 0, scale max|W|; with masks only.
            weight_steps: logits follow steps of the weight. An optimizer then keeps one momentum value a weight
                instead of 2k, and the 2k gradients are never stored.
        """
        super().__init__()
        self.exponents = tuple(exponents)
        self.n_planes = n_planes
        self.hard = False
        self.register_buffer("beta", torch.ones(()))
        self.register_buffer("open_planes", torch.ones(len(self.exponents), dtype=torch.bool))
        self._used = [slice(None)]  # the open planes, copied from their device once and not in every step
        self.register_load_state_dict_post_hook(lambda gates, _: gates._note_used())  # type: ignore[no-untyped-call]
        weights = torch.tensor([2.0**b for b in self.exponents], device=weight.device) / float(2**n_planes - 1)
        self.register_buffer("plane_weights", weights, persistent=False)
        with torch.no_grad():
            weight = weight.detach().float()
            levels = Levels(self.exponents)
            largest = weight.abs().max().clamp(min=1e-8)
            # With all planes the rounding is fine at any scale; few planes fit better where large weights are clipped.
            unit = levels.fit_scale(weight) if mask_init is None else largest / levels.largest
            digits = levels.digits.to(weight.device)[levels.nearest(weight / unit)].movedim(-1, 0)  # (k, *weight)
            low = 0.0 if paper_init else -gate_init
            # Contiguous plane by plane: the kernels loop over planes.
            self.m_p = nn.Parameter(torch.where(digits > 0, gate_init, low).contiguous())
            self.m_n = nn.Parameter(torch.where(digits < 0, gate_init, low).contiguous())
            self.m_b: nn.Parameter | None = None
            if mask_init is not None:
                # The higher a plane, the later the budget's pressure closes it. So planes close one by one, lowest
                # first, and not all at once, and masks have no gaps.
                steps = torch.zeros(len(self.exponents)) if paper_init else torch.arange(1.0, len(self.exponents) + 1)
                self.m_b = nn.Parameter(mask_init * steps.to(weight.device))
            self.s = nn.Parameter(largest.clone() if paper_init else torch.ones_like(largest))
            self.step: nn.Parameter | None = None
            if weight_steps:
                self.m_p.requires_grad_(False)
                self.m_n.requires_grad_(False)
                self.step = nn.Parameter(torch.zeros_like(self.m_p[0]))
            self._coefficients: Tensor | None = None  # of the last forward pass
            if not paper_init:
                self._fit_scale(weight)

    def _fit_scale(self, weight: Tensor) -> None:
        """Set s so that the soft weight fits `weight`: soft bits are σ(a) − σ(−a), and masks are half open."""
        self.s.fill_(1.0)
        unit = self.forward()
        self.s.copy_((unit * weight).sum() / unit.square().sum().clamp(min=1e-12))

    @property
    def elements(self) -> int:
        """Number of weights."""
        return self.m_p[0].numel()

    @property
    def kept(self) -> tuple[int, ...]:
        """The planes kept now: those with m_B ≥ 0 (CSQ, section III-B)."""
        if self.m_b is None:
            return self.exponents
        return tuple(b for b, logit in zip(self.exponents, self.m_b.tolist(), strict=True) if logit >= 0)

    def forward(self, _: Tensor | None = None) -> Tensor:
        """Return the weight, soft or hard."""
        if self.hard:
            return self._hard_weight()
        weight, self._coefficients = soft_weight(
            self.m_p, self.m_n, self.s, self.m_b, self.plane_weights, self.beta, self._used, self.step
        )
        return weight

    def _note_used(self) -> None:
        self._used = _stretches(self.open_planes.tolist())

    def take_step(self) -> None:
        """Move the logits by the step that an optimizer left in `step`, with the slopes of the last forward pass.

        Without momentum this is gradient descent on the logits (CSQ, Algorithm 1). With momentum it differs: the
        average is taken over gradients of the weight, and passes through the gates as they are now.
        """
        if self.step is not None and self._coefficients is not None:
            take_weight_step(self.m_p, self.m_n, self._coefficients, self.beta, self.step, self._used)
            self.step.data.zero_()

    @torch.no_grad()
    def leave_closed_planes(self) -> None:
        """Take planes out of the computation whose mask gate has become exactly 0 in float32.

        Their contribution is then exactly 0, and so is every gradient through them, also that of the mask logit
        (σ' = σ·(1 − σ) = 0). Without momentum on the masks they stay closed.
        """
        if self.m_b is not None:
            self.open_planes.copy_(soft_gate(self.m_b, self.beta) > 0)
            self._note_used()

    def _digits(self) -> Tensor:
        return (self.m_p >= 0).to(torch.int8) - (self.m_n >= 0).to(torch.int8)  # (k, *weight)

    def _hard_weight(self) -> Tensor:
        values = torch.tensor([1 << b if b in self.kept else 0 for b in self.exponents], device=self.s.device)
        q: Tensor = (values.view(-1, *[1] * (self.m_p.ndim - 1)) * self._digits()).sum(0)
        weight: Tensor = q.float() * (self.s / (2**self.n_planes - 1))
        return weight

    @torch.no_grad()
    def integers(self) -> LayerIntegers:
        """Return q, Δ and the mask string with all gates as unit steps."""
        digits = np.zeros((self.n_planes, *self.m_p.shape[1:]), np.int8)
        digits[list(self.exponents)] = self._digits().cpu().numpy()
        mask = np.isin(np.arange(self.n_planes), self.kept)
        scale = (self.s / (2**self.n_planes - 1)).cpu().numpy()[()]
        return digits_to_integers(digits, mask, np.float32(scale))

    @torch.no_grad()
    def keep_planes(self, at_least: int) -> None:
        """Keep the masks of the `at_least` strongest planes open."""
        assert self.m_b is not None
        strongest = self.m_b.topk(at_least).indices
        self.m_b[strongest] = self.m_b[strongest].clamp(min=LAST_PLANE_LOGIT)
