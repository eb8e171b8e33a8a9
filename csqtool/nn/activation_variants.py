"""Activation quantizers other than the learned one, for comparison, and the registry of all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from csqtool.errors import ExportError
from csqtool.nn.activation import ActivationFakeQuantizer, fake_quantize
from csqtool.quantized_model import ActivationQuantizer
from csqtool.registry import Registry

PACT_DECAY = 1e-4  # L2 on the clip, as PACT's authors train it


class _Ramp(torch.autograd.Function):
    """PACT's clip: the gradient of the bound is 1 where x lies above it, and x then gets none."""

    @staticmethod
    def forward(ctx: object, x: Tensor, bound: Tensor, largest: int) -> Tensor:
        ctx.save_for_backward(x, bound)  # type: ignore[attr-defined]
        scale = bound / largest
        return torch.clamp(torch.round(x / scale), 0, largest) * scale

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,) = gradients
        x, bound = ctx.saved_tensors  # type: ignore[attr-defined]
        above = x >= bound
        return gradient * ((x >= 0) & ~above), (gradient * above).sum(), None


class PactQuantizer(ActivationFakeQuantizer):
    """Clips at a learned bound α = scale·(2^bits − 1) (PACT, Choi et al. 2018).

    It is made for the results of ReLU; an activation with negative values keeps the learned quantizer.
    """

    description = "learned clip, gradient 1 above it, L2 on the clip (PACT, Choi et al. 2018)"

    def forward(self, x: Tensor) -> Tensor:
        """Return x clipped to [0, α] and rounded, float32."""
        if self.zero_point:
            return super().forward(x)
        self.hold_scale()
        with torch.autocast(x.device.type, enabled=False):
            result: Tensor = _Ramp.apply(x.float(), self.scale * self.largest, self.largest)  # type: ignore[no-untyped-call]
            return result

    def regularization(self) -> Tensor | None:
        """Return the L2 penalty on the clip."""
        return None if self.zero_point else PACT_DECAY * (self.scale * self.largest).square()


class DorefaQuantizer(ActivationFakeQuantizer):
    """Clips every activation to [0, 1] (DoReFa-Net, Zhou et al. 2016).

    An activation with negative values keeps the learned quantizer.
    """

    description = "fixed range 0 to 1 (DoReFa-Net, Zhou et al. 2016)"

    def calibrate(self, sample: Tensor) -> None:
        """Fix the range; only the sign of `sample` matters.

        Raises:
            ModelError: values are NaN or infinite.
        """
        super().calibrate(sample)
        if not self.zero_point:
            self._set_scale(1 / self.largest)

    def forward(self, x: Tensor) -> Tensor:
        """Return x clipped to [0, 1] and rounded, float32; the range is not trained."""
        return super().forward(x) if self.zero_point else fake_quantize(x, self.scale.detach(), *self.bounds)


class DynamicQuantizer(ActivationFakeQuantizer):
    """Scales by the largest value of each batch, also in evaluation, as CSQ's authors did. It cannot be exported."""

    description = "largest value of each batch, not deployable (the CSQ authors' code)"

    def __init__(self, name: str, bits: int) -> None:
        super().__init__(name, bits)
        self.scale.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Return x rounded, float32; its largest magnitude becomes the largest integer."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            scale = (x.detach().abs().max() / self.largest).clamp(min=1e-8)
            return x + (torch.round(x / scale) * scale - x).detach()

    def finalized(self) -> ActivationQuantizer:
        """Refuse.

        Raises:
            ExportError: always; the scale depends on the batch.
        """
        raise ExportError(
            f"{self.name} is quantized by the largest value of each batch, which no deployed model can know; "
            "search with act_quantizer learned, pact or dorefa"
        )


QUANTIZERS = Registry("csqtool.activations", "activation quantizer")


def load_quantizer(name: str) -> type[ActivationFakeQuantizer]:
    """Return the class of an activation quantizer.

    Raises:
        ConfigError: none of that name is installed.
    """
    loaded: type[ActivationFakeQuantizer] = QUANTIZERS.load(name)
    return loaded
