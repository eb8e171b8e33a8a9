"""From mask gates to a scheme that meets the budget."""

from __future__ import annotations

import torch

from csqtool.nn.gates import LAST_PLANE_LOGIT, BitGates


@torch.no_grad()
def settle_masks(gates: dict[str, BitGates], target_bits: float) -> None:
    """Decide the most undecided planes so that the average precision comes as near to the target as it can.

    Starting from the planes with m_B ≥ 0, planes are dropped (m_B lowest first) while the average is above the
    target, or taken (m_B highest first) while it is below, each only when that brings the average nearer. Every
    layer keeps at least one plane. Planes are compared by their trained logits, the only record of how much
    the loss wants them; no further data are looked at.

    Args:
        gates: the gates, by parameter name; their mask logits are changed in place.
        target_bits: average precision wanted, weighted by elements.
    """
    elements = sum(g.elements for g in gates.values())
    wanted = target_bits * elements
    planes = sorted(
        ((float(m), name, b) for name, g in gates.items() for b, m in enumerate(g.m_b)), key=lambda plane: plane[0]
    )
    now = sum(g.precision * g.elements for g in gates.values())
    too_many = now > wanted
    for logit, name, b in planes if too_many else reversed(planes):
        layer = gates[name]
        if (logit >= 0) != too_many or (too_many and layer.precision == 1):
            continue
        after = now + (-layer.elements if too_many else layer.elements)
        if abs(after - wanted) < abs(now - wanted):
            layer.m_b[b] = -LAST_PLANE_LOGIT if too_many else LAST_PLANE_LOGIT
            now = after
