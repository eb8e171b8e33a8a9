"""QUANOS: adversarial noise sensitivity decides the bits (Panda, 2020); our reading, as no code is public."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from csqtool.searching.allocation import BaseAllocator, Harms
from csqtool.searching.options import Options, QuanosOptions
from csqtool.trees import mapped, tensors


class Quanos(BaseAllocator):
    """Harm is ANS_i · 4^(−k), where ANS_i is how far an attack on the inputs moves a layer's output."""

    description = "how far an attack on the inputs moves each layer's output (our reading of QUANOS, Panda 2020)"
    data: ClassVar[str] = "labelled"
    Options: ClassVar[type[Options]] = QuanosOptions
    harm: ClassVar[str] = "ANS · 4^(−planes)"
    sensitivity: ClassVar[str] = "ANS, how far an attack moves the layer's output, relative to it"

    def harms(self) -> Harms:
        """Return ANS_i · 4^(−k)."""
        self.sensitivities = self.noise()
        return {name: {k: one * 4.0**-k for k in self.choices(name)} for name, one in self.sensitivities.items()}

    def noise(self) -> dict[str, float]:
        """Return ANS_i = ‖a_i(x + ε·sign ∇loss) − a_i(x)‖ / ‖a_i(x)‖ of each layer's output a_i (FGSM).

        ε is `attack_size` times the standard deviation of the inputs. Layers whose module has no output of its own, as
        a part of an attention, have the largest of the other layers.
        """
        options = self.given.options
        assert isinstance(options, QuanosOptions)
        found = {name: torch.zeros(2, dtype=torch.float64) for name in self.weights}
        for x, y in self.batches():
            clean = mapped(x, lambda t: t.detach().clone().requires_grad_(t.is_floating_point()))
            loss = self.given.data.task.loss(self.outputs(clean), y)
            floats = [one for one in tensors(clean) if one.requires_grad]
            gradients = dict(zip(map(id, floats), torch.autograd.grad(loss, floats), strict=True)) if floats else {}

            def attacked(one: Tensor, gradients: dict[int, Tensor] = gradients) -> Tensor:
                if id(one) not in gradients:
                    return one
                return one.detach() + options.attack_size * one.detach().std() * gradients[id(one)].sign()

            before, after = self._layer_outputs(clean), self._layer_outputs(mapped(clean, attacked))
            for name in before.keys() & after.keys():
                moved = (after[name] - before[name]).double().square().sum()
                found[name] += torch.stack([moved, before[name].double().square().sum()]).cpu()
        noise = {name: float((moved / power).sqrt()) for name, (moved, power) in found.items() if float(power) > 0}
        largest = max(noise.values(), default=1.0)
        return {name: max(noise.get(name, largest), 1e-6 * largest, 1e-300) for name in found}

    @torch.no_grad()
    def _layer_outputs(self, inputs: Any) -> dict[str, Tensor]:
        kept: dict[str, Tensor] = {}

        def keeper(name: str) -> Any:
            def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
                if isinstance(output, Tensor):
                    kept[name] = output.clone()  # a later layer may change it in place

            return keep

        handles = [weight.places[0][0].register_forward_hook(keeper(weight.name)) for weight in
                   self.given.network.weights]  # fmt: skip
        try:
            self.outputs(inputs)
        finally:
            for handle in handles:
                handle.remove()
        return kept
