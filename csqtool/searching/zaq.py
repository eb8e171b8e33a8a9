"""ZAQ: zero-shot adversarial quantization (Liu et al., CVPR 2021): training without data, against a generator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from csqtool.errors import ConfigError
from csqtool.evaluation import as_float
from csqtool.nn.generating import NOISE, ImageGenerator, relation_difference
from csqtool.nn.watched import Watched
from csqtool.searching.lsq import Lsq
from csqtool.searching.options import ZaqOptions
from csqtool.trees import call, samples, tensors

STEPS_OF_THE_NETWORK = 5  # for one of the generator
# The loss is multiplied by this. With BatchNorm's statistics fixed, the weights' scale matters, and learning rates that
# suit training with those of the batch destroy the network: on digits, at 2 planes, a rate of 0.05 ended at an accuracy
# of 0.20 after 12 epochs, and one of 0.002 at 0.97 after 4.
PACE = 0.04
LARGEST_MAP = 16 * 16  # places; the relations of a larger map take too much memory


class Zaq(Lsq):
    """Trains latent weights and step sizes so that outputs and features follow the float network's on made-up images.

    A generator makes the images on which both differ most; they take turns. BatchNorm keeps the float network's
    statistics, which are all that is known of real data.
    """

    description = "training without data against a generator of images (ZAQ, Liu et al. 2021)"
    data = "none"
    Options = ZaqOptions
    options: ZaqOptions
    _generator: ImageGenerator | None = None
    _adam: torch.optim.Adam
    _taken = 0
    _share = 0.0
    _far = 0.0
    _stages: tuple[str, ...] = ()
    _norms: tuple[str, ...] = ()

    def at_step(self, share: float) -> None:
        """Remember how much of the training is done, on which the generator's learning rate depends."""
        self._share = share

    def own_loss(self, net: nn.Module, teacher: nn.Module | None, inputs: Any) -> Tensor | None:
        """Return how far the network is from its teacher on generated images; every fifth time, train the generator."""
        assert teacher is not None
        generator = self._made_for(teacher, inputs)
        for module in net.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        if self._taken % STEPS_OF_THE_NETWORK == 0:
            images = generator(self._noise(inputs))
            with Watched(teacher, self._norms) as normalized:
                far, activity = self._difference(net, teacher, images)
            loss = -far - self.options.activity_strength * activity
            if normalized:
                distances = [_from_standard(normalized[path], teacher.get_submodule(path)) for path in normalized]
                loss = loss + self.options.statistics_strength * torch.stack(distances).mean()
            parameters = list(generator.parameters())
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
            for group in self._adam.param_groups:  # divided by ten after each third, as published
                group["lr"] = self.options.generator_rate * 0.1 ** min(int(3 * self._share), 2)
            self._adam.step()
        self._taken += 1
        with torch.no_grad():
            images = generator(self._noise(inputs))
        far = self._difference(net, teacher, images)[0]
        self._far = float(far.detach())
        return PACE * far

    def status(self) -> dict[str, float]:
        """Return how far the network was from its teacher in the last step."""
        return {"difference": self._far}

    def _noise(self, inputs: Any) -> Tensor:
        (image,) = tensors(inputs)
        return torch.randn(samples(inputs), NOISE).to(image.device)

    def _difference(self, net: nn.Module, teacher: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return L1 of the outputs + α · that of the relations of features, and the float network's last activity."""
        model = net.get_submodule("model")
        with Watched(model, self._stages) as ours, Watched(teacher, self._stages) as theirs:
            found, wanted = as_float(call(net, images)), as_float(call(teacher, images))
        pairs = list(zip(tensors(found), tensors(wanted), strict=True))
        far = torch.stack([l1_loss(one, other) for one, other in pairs if one.is_floating_point()]).mean()
        maps = [(ours[path].float(), theirs[path].float()) for path in self._stages if path in ours]
        related = [relation_difference(one, other) for one, other in maps if _places(one) <= LARGEST_MAP]
        if related:
            far = far + self.options.relation_strength * torch.stack(related).mean()
        return far, maps[-1][1].abs().mean()

    def _made_for(self, teacher: nn.Module, inputs: Any) -> ImageGenerator:
        """Return the generator of images like the inputs.

        Raises:
            ConfigError: they are no images, or the network has no feature maps.
        """
        if self._generator is not None:
            return self._generator
        found = list(tensors(inputs))
        if len(found) != 1 or found[0].ndim != 4 or not found[0].is_floating_point():
            raise ConfigError("zaq makes images, [N, C, H, W] numbers; the model takes something else")
        self._generator = ImageGenerator(found[0].shape[1:]).to(found[0].device)
        self._adam = torch.optim.Adam(self._generator.parameters(), lr=self.options.generator_rate)
        self._norms = tuple(path for path, module in teacher.named_modules() if isinstance(module, _BatchNorm))
        self._stages = _last_of_each_size(teacher, torch.zeros_like(found[0]))
        if not self._stages:
            raise ConfigError("zaq compares feature maps of convolutions; the model has none")
        return self._generator

    def state(self) -> dict[str, Any]:
        """Return the generator with its optimizer."""
        if self._generator is None:
            return {}
        return {"generator": self._generator.state_dict(), "adam": self._adam.state_dict(), "steps": self._taken,
                "shape": self._generator.shape, "stages": list(self._stages), "norms": list(self._norms)}  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue with the generator of a checkpoint."""
        if not state:
            return
        self._generator = ImageGenerator(state["shape"])
        self._generator.load_state_dict(state["generator"])
        self._generator.to(next(iter(self.sources.values())).latent.device)
        self._adam = torch.optim.Adam(self._generator.parameters())
        self._adam.load_state_dict(state["adam"])
        self._taken = int(state["steps"])
        self._stages, self._norms = tuple(state["stages"]), tuple(state["norms"])


def _places(features: Tensor) -> int:
    return features.shape[2:].numel()


def _from_standard(outputs: Tensor, norm: nn.Module) -> Tensor:
    """Return how far a BatchNorm's inputs are from its statistics, seen in its outputs: 0 where both agree.

    Outputs (x − μ)/σ·γ + β then have the mean β and the deviation |γ| in each channel.
    """
    assert isinstance(norm, _BatchNorm)
    gamma = torch.ones_like(norm.running_mean) if norm.weight is None else norm.weight.abs().clamp(min=1e-3)
    beta = 0.0 if norm.bias is None else norm.bias
    axes = [axis for axis in range(outputs.ndim) if axis != 1]
    mean, deviation = outputs.mean(axes), outputs.var(axes, correction=0).add(1e-12).sqrt()
    return (((mean - beta) / gamma).square() + (deviation / gamma - 1).square()).mean()


@torch.no_grad()
def _last_of_each_size(model: nn.Module, inputs: Tensor) -> tuple[str, ...]:
    """Return the convolutions or BatchNorms that give the last feature map of each size, in the order of the pass."""
    paths = [path for path, module in model.named_modules() if isinstance(module, _BatchNorm | _ConvNd)]
    with Watched(model, paths) as outputs:
        model(inputs)
    last: Mapping[int, str] = {_places(value): path for path, value in outputs.items() if value.ndim == 4}
    return tuple(path for path in outputs if path in last.values())
