"""CSQ: bi-level continuous sparsification (Xiao et al., DAC 2023), and its form with fixed bits (eq. 3)."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from csqtool.nn.gates import LAST_PLANE_LOGIT, BitGates, soft_gate
from csqtool.nn.weights import Weight, attach
from csqtool.quantized_model import LayerIntegers
from csqtool.searching.budget import Budget, Scheme
from csqtool.searching.config import SearchConfig


class CsqUniform:
    """Trains the bit gates of given planes while their temperature rises (CSQ, eq. 3)."""

    description = "bit gates over fixed planes (CSQ-Uniform, Xiao et al. 2023, eq. 3)"
    searches = False
    softens = True

    def __init__(
        self, weights: list[Weight], model: nn.Module, config: SearchConfig, budget: Budget, scheme: Scheme
    ) -> None:
        self._config = config
        self._budget = budget
        self._gates: dict[str, BitGates] = {}
        for weight in weights:
            planes = scheme[weight.name]
            searched = self.searches and self._is_free(weight.name)
            self._gates[weight.name] = BitGates(
                weight.parameter,
                planes,
                planes=config.planes,
                gate_init=config.gate_init,
                mask_init=config.mask_init if searched else None,
                # The authors' start knows nothing of weights that few planes already hold.
                paper_init=searched and config.init == "paper",
                # Decay and AdamW are defined on the logits.
                weight_steps=config.optimizer == "sgd" and config.gate_weight_decay == 0,
            )
            attach(weight, self._gates[weight.name])

    def _is_free(self, name: str) -> bool:
        """Tell whether a layer's planes are searched: pinned ones are not."""
        return self._budget.least[name] < self._budget.most[name]

    @property
    def gates(self) -> dict[str, BitGates]:
        """The gates, by parameter name."""
        return self._gates

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return a group for the bit gates and one for the scales."""
        config, gates = self._config, self._gates.values()
        bits = [p for g in gates for p in ((g.m_p, g.m_n) if g.step is None else (g.step,))]
        return [
            {"params": bits, "lr": config.gate_learning_rate, "weight_decay": config.gate_weight_decay},
            {
                "params": [g.s for g in gates],
                "lr": config.learning_rate,
                "weight_decay": config.gate_weight_decay,
            },
        ]

    def set_progress(self, share: float) -> None:
        """Set the temperature, β = β_max^share with β₀ = 1 (CSQ, Algorithm 1); carry the weights' norms over."""
        beta = torch.tensor(self._config.beta_max**share)
        for gates in self._gates.values():
            if torch.equal(gates.beta.cpu(), beta):
                continue  # also when a run resumes: nothing may change then
            before = self._norm(gates)
            gates.beta.copy_(beta)
            if self._config.keep_norms and self._config.beta_schedule == "epoch":
                after = self._norm(gates)
                gates.s.data.mul_(torch.where(after > 0, before / after, 1.0))
            if self._config.mask_momentum == 0:
                gates.leave_closed_planes()

    @staticmethod
    @torch.no_grad()
    def _norm(gates: BitGates) -> Tensor:
        norm: Tensor = gates().norm()
        return norm

    def regularization(self) -> Tensor | None:
        """Return None: the scheme is fixed."""
        return None

    def after_step(self) -> None:
        """Let the logits take the steps of the weights."""
        for gates in self._gates.values():
            gates.take_step()

    def finish(self) -> None:
        """Do nothing: training ends complete."""

    def set_hard(self, hard: bool) -> None:
        """Turn all gates into unit steps, or back."""
        for gates in self._gates.values():
            gates.hard = hard

    def status(self) -> dict[str, float]:
        """Return the gate temperature β."""
        return {"beta": float(next(iter(self._gates.values())).beta)}

    def scheme(self) -> dict[str, tuple[int, ...]]:
        """Return the planes each layer keeps now."""
        return {name: gates.kept for name, gates in self._gates.items()}

    def integers(self) -> dict[str, LayerIntegers]:
        """Return each layer's q, Δ and mask with all gates as unit steps."""
        return {name: gates.integers() for name, gates in self._gates.items()}


class Csq(CsqUniform):
    """Trains bit gates and mask gates together while their temperature rises (CSQ, eq. 5 to 7, Algorithm 1)."""

    description = "bi-level continuous sparsification (Xiao et al. 2023): bits and bit selection are trained"
    searches = True

    def __init__(
        self, weights: list[Weight], model: nn.Module, config: SearchConfig, budget: Budget, scheme: Scheme
    ) -> None:
        super().__init__(weights, model, config, budget, scheme)
        self._masked = {name: gates for name, gates in self._gates.items() if gates.m_b is not None}
        shares = budget.weights
        mean = sum(shares.values()) / len(shares)
        # Eq. 7 presses on every plane alike; in proportion to what a plane costs the budget, the trade between
        # loss and budget is the same for a small layer and a large one.
        self._pressure = torch.cat([
            torch.full_like(gates.m_b, shares[name] / mean if config.element_pressure else 1.0)
            for name, gates in self._masked.items() if gates.m_b is not None
        ]) if self._masked else torch.zeros(0)  # one a mask gate, in the order of the layers  # fmt: skip

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return groups for bit gates, scales and mask gates."""
        config = self._config
        masks = [gates.m_b for gates in self._masked.values()]
        group = {"params": masks, "lr": config.mask_learning_rate, "weight_decay": config.gate_weight_decay,
                 "momentum": config.mask_momentum}  # fmt: skip
        return [*super().parameter_groups(), group]

    def regularization(self) -> Tensor | None:
        """λ·Δ_S·Σ_layers Σ_b f_β(m_B) (CSQ, eq. 6 and 7), Δ_S in planes and a constant in the gradient."""
        logits: list[Tensor] = [gates.m_b for gates in self._masked.values() if gates.m_b is not None]
        if not logits:
            return None
        beta = next(iter(self._masked.values())).beta  # the same in all layers
        kept = soft_gate(torch.cat(logits), beta)
        excess = self._average() - self._budget.target_bits
        return self._config.strength * excess * torch.dot(self._pressure.to(kept.device), kept)

    def _mask_logits(self) -> dict[str, list[float]]:
        """Read the mask logits of all layers in one go: each reading makes an accelerator wait."""
        logits = [gates.m_b.detach() for gates in self._masked.values() if gates.m_b is not None]
        values = iter(torch.cat(logits).tolist() if logits else [])
        return {name: list(islice(values, len(gates.exponents))) for name, gates in self._masked.items()}

    def _average(self) -> float:
        kept = {name: len(gates.exponents) for name, gates in self._gates.items()}
        kept |= {name: sum(value >= 0 for value in values) for name, values in self._mask_logits().items()}
        return self._budget.average(kept)

    def after_step(self) -> None:
        """Let the logits step, and keep every layer's strongest planes: none ever has fewer than its minimum."""
        super().after_step()
        for name, values in self._mask_logits().items():
            least = min(self._budget.least[name], len(values))
            if sorted(values)[-least] < LAST_PLANE_LOGIT:
                self._masked[name].keep_planes(least)

    def status(self) -> dict[str, float]:
        """Return the gate temperature and the average precision."""
        return {**super().status(), "bits": self._average()}
