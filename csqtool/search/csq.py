"""CSQ: bi-level continuous sparsification (Xiao et al., DAC 2023)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from csqtool.nn.gates import BitGates, Weight, add_gates, average_precision, soft_gate
from csqtool.quantized_model import IntegerArray
from csqtool.search.config import SearchConfig
from csqtool.search.scheme import settle_masks


class Csq:
    """Trains bit gates and mask gates together while their temperature rises (CSQ, Algorithm 1)."""

    description = "bi-level continuous sparsification (Xiao et al. 2023): bits and bit selection are trained"

    def __init__(self, weights: list[Weight], model: nn.Module, config: SearchConfig) -> None:
        self._config = config
        self._gates = add_gates(
            model, weights, planes=config.planes, gate_init=config.gate_init, mask_init=config.mask_init
        )
        self._beta = 1.0

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return groups for the bit gates and the mask gates; the scales s train with the rest, undecayed."""
        gates = self._gates.values()
        config = self._config
        return [
            {
                "params": [p for g in gates for p in (g.m_p, g.m_n)],
                "lr": config.gate_learning_rate,
                "weight_decay": 0.0,
            },
            {
                "params": [g.m_b for g in gates],
                "lr": config.mask_learning_rate,
                "weight_decay": 0.0,
                "momentum": config.mask_momentum,
            },
            {"params": [g.s for g in gates], "lr": config.learning_rate, "weight_decay": 0.0},
        ]

    def begin_epoch(self, epoch: int) -> None:
        """Fix the scheme when the finetuning begins, and carry the weights' size over the change of temperature."""
        if epoch == self._config.epochs:
            settle_masks(self._gates, self._config.target_bits)
            for gates in self._gates.values():
                gates.recentre(self._config.gate_init)
        before = self._norms()
        self.set_epoch(epoch)
        for gates, old, new in zip(self._gates.values(), before, self._norms(), strict=True):
            gates.s.data.mul_(torch.where(new > 0, old / new, 1.0))

    def _norms(self) -> list[Tensor]:
        with torch.no_grad():
            return [gates().norm() for gates in self._gates.values()]

    def set_epoch(self, epoch: int) -> None:
        """Set the temperature, β = β_max^(epoch/(T−1)); finetuning begins again at 1 (CSQ, Algorithm 1)."""
        config = self._config
        finetuning = epoch >= config.epochs
        done, length = (epoch - config.epochs, config.finetune_epochs) if finetuning else (epoch, config.epochs)
        self._beta = config.beta_max ** (done / max(1, length - 1))
        for gates in self._gates.values():
            gates.beta = self._beta
            gates.mask_hard = finetuning

    def regularization(self) -> Tensor | None:
        """λ·Δ_S·Σ_layers Σ_b f_β(m_B) (CSQ, eq. 6 and 7), Δ_S a constant; None once the scheme is fixed."""
        if next(iter(self._gates.values())).mask_hard:
            return None
        excess = average_precision(self._gates) - self._config.target_bits
        kept = torch.stack([soft_gate(g.m_b, g.beta).sum() for g in self._gates.values()]).sum()
        return self._config.strength * excess * kept

    def after_step(self) -> None:
        """Keep every layer's strongest plane: no layer ever has zero bits."""
        for gates in self._gates.values():
            gates.keep_last_plane()

    def finish(self) -> None:
        """Settle the scheme if no finetuning did."""
        if not self._config.finetune_epochs:
            settle_masks(self._gates, self._config.target_bits)

    def set_hard(self, hard: bool) -> None:
        """Turn all gates into unit steps, or back."""
        for gates in self._gates.values():
            gates.hard = hard

    def status(self) -> dict[str, float]:
        """Return the gate temperature β."""
        return {"beta": self._beta}

    def precisions(self) -> dict[str, int]:
        """Return the planes each layer keeps now."""
        return {name: gates.precision for name, gates in self._gates.items()}

    def integers(self) -> dict[str, tuple[IntegerArray, np.float32, str]]:
        """Return each layer's q, Δ and mask with all gates as unit steps."""
        return {name: gates.integers() for name, gates in self._gates.items()}

    @property
    def gates(self) -> dict[str, BitGates]:
        """The gates, by parameter name."""
        return self._gates
