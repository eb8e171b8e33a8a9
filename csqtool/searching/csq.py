"""CSQ: bi-level continuous sparsification (Xiao et al., DAC 2023), and its form with fixed bits (eq. 3)."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import Tensor

from csqtool.nn.gates import LAST_PLANE_LOGIT, BitGates, soft_gate
from csqtool.nn.weights import Weight
from csqtool.searching.method import BaseMethod, MethodContext
from csqtool.searching.options import CsqOptions, GateOptions
from csqtool.searching.plane_bits import plane_bits


class CsqUniform(BaseMethod[BitGates]):
    """Trains the bit gates of given planes while their temperature rises (CSQ, eq. 3)."""

    description = "bit gates over fixed planes (CSQ-Uniform, Xiao et al. 2023, eq. 3)"
    softens = True
    Options = GateOptions
    options: GateOptions

    def make_source(self, weight: Weight, exponents: tuple[int, ...]) -> BitGates:
        """Return gates over the given planes."""
        return BitGates(
            weight.parameter,
            exponents,
            n_planes=self.config.planes,
            gate_init=self.options.gate_init,
            weight_steps=self._weight_steps,
        )

    @property
    def _weight_steps(self) -> bool:
        """Whether the optimizer updates weights instead of logits; weight decay and AdamW are defined on logits."""
        return self.config.optimizer == "sgd" and self.options.gate_weight_decay == 0

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return a group for the bit gates and one for the scales."""
        options, gates = self.options, self.sources.values()
        bits = [p for g in gates for p in ((g.m_p, g.m_n) if g.step is None else (g.step,))]
        return [
            {"params": bits, "lr": options.gate_learning_rate, "weight_decay": options.gate_weight_decay},
            {
                "params": [g.s for g in gates],
                "lr": self.config.learning_rate,
                "weight_decay": options.gate_weight_decay,
            },
        ]

    def at_epoch(self, share: float) -> None:
        """Raise the temperature, and keep the weights' norms by their scales."""
        if self.options.beta_schedule == "epoch":
            self._raise_temperature(share, keep_norms=self.options.keep_norms)

    def at_step(self, share: float) -> None:
        """Raise the temperature by so little that norms hardly change."""
        if self.options.beta_schedule == "step":
            self._raise_temperature(share, keep_norms=False)

    def _raise_temperature(self, share: float, *, keep_norms: bool) -> None:
        """Set the temperature, β = β_max^share with β₀ = 1 (CSQ, Algorithm 1)."""
        beta = torch.tensor(self.options.beta_max**share)
        for gates in self.sources.values():
            if torch.equal(gates.beta.cpu(), beta):
                continue  # for example when a run resumes: the weights must not change then
            before = self._norm(gates) if keep_norms else None
            gates.beta.copy_(beta)
            if before is not None:
                after = self._norm(gates)
                gates.s.data.mul_(torch.where(after > 0, before / after, 1.0))
            self._leave_planes(gates)

    def _leave_planes(self, gates: BitGates) -> None:
        """Do nothing: all given planes are kept."""

    @staticmethod
    @torch.no_grad()
    def _norm(gates: BitGates) -> Tensor:
        norm: Tensor = gates().norm()
        return norm

    def after_step(self) -> None:
        """Apply the weights' step to the logits."""
        for gates in self.sources.values():
            gates.take_step()

    def set_hard(self, hard: bool) -> None:
        """Turn all gates into unit steps, or back."""
        for gates in self.sources.values():
            gates.hard = hard

    def status(self) -> dict[str, float]:
        """Return the gate temperature β."""
        return {"beta": float(next(iter(self.sources.values())).beta)}


class Csq(CsqUniform):
    """Trains bit gates and mask gates together while their temperature rises (CSQ, eq. 5 to 7, Algorithm 1)."""

    description = "bi-level continuous sparsification (Xiao et al. 2023): bits and bit selection are trained"
    searches = True
    Options = CsqOptions
    options: CsqOptions

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self._masked = {name: gates for name, gates in self.sources.items() if gates.m_b is not None}
        shares = self.budget.weights
        mean = sum(shares.values()) / len(shares)
        # Eq. 7 has the same penalty for every plane. In proportion to the cost of a plane, the trade-off between
        # loss and budget is the same for small and large layers.
        self._pressure = torch.cat([
            torch.full_like(gates.m_b, shares[name] / mean if self.options.element_pressure else 1.0)
            for name, gates in self._masked.items() if gates.m_b is not None
        ]) if self._masked else torch.zeros(0)  # one a mask gate, in the order of the layers  # fmt: skip

    def make_source(self, weight: Weight, exponents: tuple[int, ...]) -> BitGates:
        """Return gates with a mask; without one for a pinned layer, whose planes are given."""
        if self.budget.min_planes[weight.name] == self.budget.max_planes[weight.name]:
            return super().make_source(weight, exponents)
        return BitGates(
            weight.parameter,
            exponents,
            n_planes=self.config.planes,
            gate_init=self.options.gate_init,
            mask_init=self.options.mask_init,
            # The authors' initialization does not use the model's weights.
            paper_init=self.options.init == "paper",
            weight_steps=self._weight_steps,
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return groups for bit gates, scales and mask gates."""
        options = self.options
        masks = [gates.m_b for gates in self._masked.values()]
        group = {"params": masks, "lr": options.mask_learning_rate, "weight_decay": options.gate_weight_decay,
                 "momentum": options.mask_momentum}  # fmt: skip
        return [*super().parameter_groups(), group]

    def _leave_planes(self, gates: BitGates) -> None:
        if self.options.mask_momentum == 0:
            gates.leave_closed_planes()

    def regularization(self) -> Tensor | None:
        """λ·Δ_S·Σ_layers Σ_b c_b·f_β(m_B) (CSQ, eq. 6 and 7), Δ_S and c_b constants in the gradient.

        Of a budget of planes, c_b is 1 as in the paper, and Δ_S the planes above the budget. Of a budget of bytes, c_b
        is by how many bits a weight the plane raises the entropy of its layer's integers, and Δ_S is in bits a weight.
        """
        logits: list[Tensor] = [gates.m_b for gates in self._masked.values() if gates.m_b is not None]
        if not logits:
            return None
        beta = next(iter(self._masked.values())).beta  # the same in all layers
        kept = soft_gate(torch.cat(logits), beta)
        pressure = self._pressure.to(kept.device)
        if self.budget.unit != "bytes":
            excess: float | Tensor = self._average() - self.budget.target_bits
        else:
            found, elements = plane_bits(self.sources), self.budget.elements
            pressure = pressure * torch.cat([found.planes[name] for name in self._masked])
            bits = sum(elements[name] * entropy for name, entropy in found.layers.items())
            excess = (bits - 8 * self.budget.room) / sum(elements.values())
        return self.options.strength * excess * torch.dot(pressure, kept)

    def _mask_logits(self) -> dict[str, list[float]]:
        """Read the mask logits of all layers at once: every read makes an accelerator wait."""
        logits = [gates.m_b.detach() for gates in self._masked.values() if gates.m_b is not None]
        values = iter(torch.cat(logits).tolist() if logits else [])
        return {name: list(islice(values, len(gates.exponents))) for name, gates in self._masked.items()}

    def _average(self) -> float:
        kept = {name: len(gates.exponents) for name, gates in self.sources.items()}
        kept |= {name: sum(value >= 0 for value in values) for name, values in self._mask_logits().items()}
        return self.budget.average(kept)

    def after_step(self) -> None:
        """Update the logits, and keep the planes with the largest mask logits where a layer falls below its minimum."""
        super().after_step()
        for name, values in self._mask_logits().items():
            min_planes = min(self.budget.min_planes[name], len(values))
            if sorted(values)[-min_planes] < LAST_PLANE_LOGIT:
                self._masked[name].keep_planes(min_planes)

    def status(self) -> dict[str, float]:
        """Return the gate temperature and the average precision."""
        return {**super().status(), "bits": self._average()}
