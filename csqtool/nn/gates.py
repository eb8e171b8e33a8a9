"""Bit gates: a weight tensor as continuously sparsified bit planes (CSQ, section III-A)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from csqtool.errors import ModelError
from csqtool.integers import digits_to_integers
from csqtool.quantized_model import IntegerArray

# A kept plane's mask logit never sinks below this in a layer's last plane: at β = 200 its gate is then
# σ(10) ≈ 1, so that hardening changes nothing.
LAST_PLANE_LOGIT = 0.05


def soft_gate(logits: Tensor, beta: float) -> Tensor:
    """Soft bit gate f_β(x) = σ(βx) (CSQ, eq. 2)."""
    return torch.sigmoid(logits * beta)


def soft_weight(m_p: Tensor, m_n: Tensor, m_b: Tensor, s: Tensor, beta: float) -> Tensor:
    """Relaxed weight s/(2^n−1)·Σ_b (f_β(m_p) − f_β(m_n))·2^b·f_β(m_B) (CSQ, eq. 5).

    Args:
        m_p: logits of the positive bits, shape [n, *weight].
        m_n: logits of the negative bits, same shape.
        m_b: logits of the bit mask, shape [n].
        s: scale, a scalar.
        beta: gate temperature.

    Returns:
        The weight, shape [*weight], float32 also under autocast.
    """
    with torch.autocast(m_p.device.type, enabled=False):
        planes = m_b.numel()
        plane_weights = soft_gate(m_b, beta) * (2.0 ** torch.arange(planes, device=m_b.device)) / (2**planes - 1)
        digits = soft_gate(m_p, beta) - soft_gate(m_n, beta)  # (n, *weight)
        weight: Tensor = s * torch.tensordot(plane_weights, digits, dims=1)
        return weight


class BitGates(nn.Module):
    """The trainable bit planes of one weight tensor; as a parametrization it yields the weight.

    Attributes:
        m_p, m_n: logits of positive and negative bits, shape [n, *weight], float32.
        m_b: logits of the bit mask m_B, shape [n].
        s: scale, a scalar.
        beta: gate temperature β.
        hard: all gates are unit steps I(x ≥ 0).
        mask_hard: the mask's gates alone are unit steps (eq. 4): the scheme is fixed.
    """

    def __init__(self, weight: Tensor, *, planes: int = 8, gate_init: float = 1.0, mask_init: float = 0.05) -> None:
        """Start from `weight`, so that the soft weight at β = 1 is `weight` rounded to n planes."""
        super().__init__()
        with torch.no_grad():
            weight = weight.detach().float()
            top = 2**planes - 1
            largest = weight.abs().max().clamp(min=1e-8)
            magnitude = torch.round(weight.abs() / largest * top).to(torch.int64)
            plane = torch.arange(planes, device=weight.device).view(-1, *[1] * weight.ndim)
            bits = (magnitude >> plane) & 1  # (n, *weight)
            self.m_p = nn.Parameter(torch.where((bits == 1) & (weight > 0), gate_init, -gate_init))
            self.m_n = nn.Parameter(torch.where((bits == 1) & (weight < 0), gate_init, -gate_init))
            # The more a plane weighs, the later the budget's pressure closes it: planes go one by one, lowest
            # first, instead of all at once, and masks come out without holes.
            self.m_b = nn.Parameter(mask_init * torch.arange(1.0, planes + 1, device=weight.device))
            # A soft bit is σ(a) − σ(−a) and passes a half-open mask; the scale that fits the weight best makes up.
            unit = soft_weight(self.m_p, self.m_n, self.m_b, torch.ones_like(largest), 1.0)
            self.s = nn.Parameter((unit * weight).sum() / unit.square().sum().clamp(min=1e-12))
        self.beta = 1.0
        self.hard = False
        self.mask_hard = False

    @property
    def planes(self) -> int:
        """Number of bit planes n."""
        return self.m_b.numel()

    @property
    def elements(self) -> int:
        """Number of weights."""
        return self.m_p[0].numel()

    @property
    def precision(self) -> int:
        """Planes kept now: Σ_b [m_B ≥ 0] (CSQ, section III-B)."""
        return int((self.m_b >= 0).sum())

    def forward(self, _: Tensor | None = None) -> Tensor:
        """Return the weight, soft or hard."""
        if self.hard:
            return self._hard_weight()
        # A unit step is a gate of infinite temperature; only values are needed, the scheme is not trained.
        m_b = torch.where(self.m_b >= 0, torch.inf, -torch.inf) if self.mask_hard else self.m_b
        return soft_weight(self.m_p, self.m_n, m_b, self.s, self.beta)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Leave an empty tensor in the parametrized module's place: the gates hold the weight."""
        return weight.new_empty(0)

    def _hard_weight(self) -> Tensor:
        kept = (self.m_b >= 0) * 2 ** torch.arange(self.planes, device=self.m_b.device)
        digits = (self.m_p >= 0).int() - (self.m_n >= 0).int()  # (n, *weight)
        q = (kept.view(-1, *[1] * (digits.ndim - 1)) * digits).sum(0)
        weight: Tensor = q.float() * (self.s / (2**self.planes - 1))
        return weight

    def integers(self) -> tuple[IntegerArray, np.float32, str]:
        """Return q, Δ and the mask string with all gates as unit steps."""
        with torch.no_grad():
            digits = ((self.m_p >= 0).to(torch.int8) - (self.m_n >= 0).to(torch.int8)).cpu().numpy()
            scale = (self.s / (2**self.planes - 1)).cpu().numpy()[()]
            return digits_to_integers(digits, (self.m_b >= 0).cpu().numpy(), np.float32(scale))

    @torch.no_grad()
    def recentre(self, gate_init: float) -> None:
        """Set every bit gate to ±`gate_init` by its sign, so that it can change again at β = 1.

        The scale makes up for the softer gates: the soft weight at β = 1 is then the hard weight.
        """
        for logits in (self.m_p, self.m_n):
            logits.copy_(torch.where(logits >= 0, gate_init, -gate_init))
        self.s.div_(float(np.tanh(gate_init / 2)))
        self.beta = 1.0
        self.mask_hard = True

    @torch.no_grad()
    def keep_last_plane(self) -> None:
        """Hold the strongest plane's mask open: a layer without planes would be no layer."""
        strongest = int(self.m_b.argmax())
        self.m_b[strongest].clamp_(min=LAST_PLANE_LOGIT)


@dataclass(frozen=True)
class Weight:
    """A quantizable parameter: where it is, and under which names."""

    name: str
    parameter: nn.Parameter
    places: tuple[tuple[nn.Module, str], ...]
    aliases: tuple[str, ...]
    shape: torch.Size  # the parameter itself is emptied once gates stand in its place

    @property
    def elements(self) -> int:
        """Number of weights."""
        return self.shape.numel()


def quantizable_weights(model: nn.Module, exclude: tuple[str, ...] = ()) -> list[Weight]:
    """Return the weights of convolutions, linear layers, embeddings and attention projections, ties merged.

    A parameter counts when it has two or more dimensions and is called ``weight`` or ``…_proj_weight``;
    recurrent layers keep theirs in float, and so does everything that matches a pattern of `exclude`.
    """
    found: dict[int, tuple[str, nn.Parameter, list[tuple[nn.Module, str]], list[str]]] = {}
    for module_name, module in model.named_modules():
        if isinstance(module, nn.RNNBase):
            continue
        for attribute, parameter in module.named_parameters(recurse=False):
            name = f"{module_name}.{attribute}" if module_name else attribute
            is_weight = attribute == "weight" or attribute.endswith("_proj_weight")
            if not is_weight or parameter.ndim < 2 or any(fnmatchcase(name, pattern) for pattern in exclude):
                continue
            _, _, places, names = found.setdefault(id(parameter), (name, parameter, [], []))
            places.append((module, attribute))
            names.append(name)
    return [Weight(name, p, tuple(places), tuple(names[1:]), p.shape) for name, p, places, names in found.values()]


def attach(weight: Weight, source: nn.Module) -> None:
    """Let `source` yield the weight in every place where it stands, so that tied weights stay tied."""
    for module, attribute in weight.places:
        parametrize.register_parametrization(module, attribute, source, unsafe=True)
        # The parametrized original is an empty placeholder; nothing shall train or decay it.
        getattr(module.parametrizations, attribute).original.requires_grad_(False)


def add_gates(
    model: nn.Module, weights: list[Weight], *, planes: int = 8, gate_init: float = 1.0, mask_init: float = 0.05
) -> dict[str, BitGates]:
    """Replace each weight by bit gates, in place.

    Returns:
        The gates, by parameter name.

    Raises:
        ModelError: a weight is not finite, or the list is empty.
    """
    if not weights:
        raise ModelError("the model has no quantizable layers (convolution, linear, embedding, attention)")
    gates = {}
    for weight in weights:
        if not torch.isfinite(weight.parameter).all():
            raise ModelError(f"{weight.name} holds values that are not finite")
        gates[weight.name] = BitGates(weight.parameter, planes=planes, gate_init=gate_init, mask_init=mask_init)
        attach(weight, gates[weight.name])
    return gates


def average_precision(gates: dict[str, BitGates]) -> float:
    """Planes kept, counted by m_B ≥ 0 and averaged over weight elements."""
    elements = sum(g.elements for g in gates.values())
    return sum(g.precision * g.elements for g in gates.values()) / elements


def each_bit_gates(model: nn.Module) -> Iterator[BitGates]:
    """Yield every `BitGates` of the model once."""
    return (m for m in model.modules() if isinstance(m, BitGates))
