"""Reconstruction: quantized weights trained to follow the float network's layers and outputs, without labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.nn.utils import parametrize

from csqtool.errors import ConfigError, TrainingError
from csqtool.evaluation import as_float
from csqtool.nn.gates import BitGates
from csqtool.nn.latent import LsqWeight
from csqtool.nn.quantized_net import Observer, QuantizedNet
from csqtool.nn.rounding import ANNEALING, RoundingGates
from csqtool.nn.watched import Watched
from csqtool.nn.weights import Weight
from csqtool.progress import Progress
from csqtool.searching.loop import compute_small_weights
from csqtool.searching.method import BaseMethod, MethodContext
from csqtool.searching.network import Network
from csqtool.trees import call, tensors

# Learning rates of Adam, which moves a parameter by about as much in a step.
WEIGHT_RATE = 0.02  # in steps of the layer's integers
SCALE_RATE = 0.001  # in the same
GATE_RATE = 0.1  # in logits of rounding gates
VECTOR_RATE = 1e-3  # of biases and the factors of normalizations
OTHER_RATE = 1e-4  # of other float parameters, such as embeddings of positions, which are small numbers
ACTIVATION_RATE = 1e-5
VARIANCE_FLOOR = 1e-6  # below it an output is constant
GATE_TEMPERATURE = 200.0  # the last β of CSQ's gates
WARM_UP = 0.2  # the share of the steps without regularization of rounding gates (AdaRound's own)
UNDECIDED_WEIGHT = 3.0  # of this regularization: a sum over N weights, divided by √N

S = TypeVar("S", LsqWeight, RoundingGates, BitGates)


class Reconstruction(BaseMethod[S], Generic[S]):
    """Base of the ways to train weights against the float network's outputs."""

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        # A weight moves by steps of its layer's integers, which differ by orders of magnitude between layers.
        self.step_sizes = {name: float(source.integers().scale) for name, source in self.sources.items()}

    def trained(self, source: S, step_size: float) -> list[tuple[nn.Parameter, float]]:
        """Return a source's trained parameters, each with its learning rate."""
        raise NotImplementedError  # abstract

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return one group for each parameter."""
        return [
            {"params": [parameter], "lr": rate}
            for name, source in self.sources.items()
            for parameter, rate in self.trained(source, self.step_sizes[name])
        ]

    def set_hard(self, hard: bool) -> None:
        """Turn gates into unit steps, or back."""
        for source in self.sources.values():
            if not isinstance(source, LsqWeight):
                source.hard = hard


class StepSizes(Reconstruction[LsqWeight]):
    """Latent weights and learned step sizes (LSQ, Esser et al. 2020): a weight may move by several integers."""

    description = "latent weights and learned step sizes (Esser et al. 2020)"

    def make_source(self, weight: Weight, exponents: tuple[int, ...]) -> LsqWeight:
        """Return the latent weight."""
        return LsqWeight(weight.parameter, exponents, n_planes=self.config.planes)

    def trained(self, source: LsqWeight, step_size: float) -> list[tuple[nn.Parameter, float]]:
        """Return the latent weight and its step size."""
        return [(source.latent, WEIGHT_RATE * step_size), (source.scale, SCALE_RATE * step_size)]

    def after_step(self) -> None:
        """Limit the change of the step sizes, and keep them above zero."""
        for source in self.sources.values():
            source.hold_step_size()


class AdaRound(Reconstruction[RoundingGates]):
    """Rounding gates (Nagel et al. 2020, as in BRECQ): each weight becomes one of the two integers next to it."""

    description = "rounding gates (Nagel et al. 2020)"
    softens = True

    def make_source(self, weight: Weight, exponents: tuple[int, ...]) -> RoundingGates:
        """Return the gates."""
        return RoundingGates(weight.parameter, exponents, n_planes=self.config.planes)

    def trained(self, source: RoundingGates, step_size: float) -> list[tuple[nn.Parameter, float]]:
        """Return the gates' logits and the step size."""
        return [(source.logits, GATE_RATE), (source.scale, SCALE_RATE * step_size)]

    def at_step(self, share: float) -> None:
        """Anneal the power of the regularization, which is off at first."""
        self._decides = share >= WARM_UP
        first, last = ANNEALING
        for source in self.sources.values():
            source.power = last + (first - last) * (1 - (share - WARM_UP) / (1 - WARM_UP))

    def regularization(self) -> Tensor | None:
        """Return what is added to the error so that gates open or close.

        The gradient of a relative error for one of N weights is about 1/√N. So is this one's.
        """
        if not self._decides:
            return None
        count = sum(source.lower.numel() for source in self.sources.values())
        total = torch.stack([source.undecided() for source in self.sources.values()]).sum()
        return UNDECIDED_WEIGHT * total / math.sqrt(count)

    def after_step(self) -> None:
        """Keep the step sizes above zero."""
        for source in self.sources.values():
            source.hold_step_size()


class Gates(Reconstruction[BitGates]):
    """CSQ's bit gates (eq. 3) over the planes of each layer, with a temperature that rises in every step."""

    description = "bit gates (CSQ, eq. 3)"
    softens = True

    def make_source(self, weight: Weight, exponents: tuple[int, ...]) -> BitGates:
        """Return gates that take steps of their weight."""
        return BitGates(weight.parameter, exponents, n_planes=self.config.planes, weight_steps=True)

    def trained(self, source: BitGates, step_size: float) -> list[tuple[nn.Parameter, float]]:
        """Return the weight's step and the scale."""
        assert source.step is not None
        return [(source.step, WEIGHT_RATE * step_size), (source.s, SCALE_RATE * float(source.s.detach()))]

    @torch.no_grad()
    def at_step(self, share: float) -> None:
        """Raise β from 1 to `GATE_TEMPERATURE`; scales keep each layer's norm, as soft bits grow with β."""
        for source in self.sources.values():
            before = source().norm()
            source.beta.fill_(GATE_TEMPERATURE**share)
            after = source().norm()
            source.s.mul_(torch.where(after > 0, before / after, 1.0))

    def after_step(self) -> None:
        """Apply the weights' step to the logits."""
        for source in self.sources.values():
            source.take_step()


RECONSTRUCTIONS: Mapping[str, type[Reconstruction[Any]]] = {"lsq": StepSizes, "adaround": AdaRound, "csq": Gates}


def optimizer_of(
    method: Reconstruction[Any], scales: Sequence[nn.Parameter], parameters: Iterable[nn.Parameter], steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return the optimizer of a reconstruction, and the schedule of its rates.

    Args:
        method: the weights' sources.
        scales: of activation quantizers.
        parameters: what else is trained, where it wants gradients; those of the method and scales may be among them.
        steps: in which the rates fall to zero.
    """
    groups = method.parameter_groups()
    known = {id(p) for group in groups for p in group["params"]} | {id(p) for p in scales}
    rest = [p for p in parameters if p.requires_grad and id(p) not in known]
    groups += [{"params": [p], "lr": VECTOR_RATE if p.ndim == 1 else OTHER_RATE} for p in rest]
    groups += [{"params": list(scales), "lr": ACTIVATION_RATE}]
    optimizer = torch.optim.Adam(groups)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def layers_compared(network: Network) -> set[str]:
    """Return the modules whose outputs follow the float network's: each layer's BatchNorm, or the layer itself."""
    return {network.placement.batch_norms.get(w.name) or w.name.rpartition(".")[0] for w in network.weights}


def train(
    network: Network,
    method: Reconstruction[Any],
    teacher: nn.Module,
    batches: Iterable[Any],
    steps: int,
    told: Progress,
    *,
    drop: float = 0.0,
) -> None:
    """Train a network's sources, step sizes, biases and BatchNorm factors so that it follows its float teacher.

    The error is that of the outputs, plus the mean over layers of that of each layer's output (behind its BatchNorm),
    each relative to the variance of the wanted values.

    Args:
        network: its method is `method`.
        method: the weights' sources.
        teacher: the float network.
        batches: inputs, as many batches as steps.
        steps: how many.
        told: is told of every step.
        drop: share of activation values that are not rounded in a step (QDrop, Wei et al. 2022), 0 to 1.

    Raises:
        TrainingError: the error is not finite.
        ConfigError: the model has no floating-point output.
    """
    net = network.net
    net.eval()
    scales = [quantizer.scale for quantizer in net.quantizers.values()]
    optimizer, rate = optimizer_of(method, scales, net.parameters(), steps)
    compared = layers_compared(network)
    ours, theirs = Watched(network.model, compared), Watched(teacher, compared)
    with ours, theirs:
        for number, inputs in enumerate(batches):
            method.at_step(number / steps)
            with torch.no_grad():
                wanted = as_float(call(teacher, inputs))
            with parametrize.cached():
                compute_small_weights(net)
                found = as_float(net.observed(inputs, dropping(net, drop)) if drop else call(net, inputs))
            seen = [difference(ours.outputs[name], theirs.outputs[name]) for name in compared if name in ours.outputs]
            error = difference(found, wanted) + sum(seen) / max(len(seen), 1)
            if not math.isfinite(float(error.detach())):
                raise TrainingError(f"the error of the reconstruction is not finite at step {number + 1}")
            added = method.regularization()
            optimizer.zero_grad()
            torch.autograd.backward(error if added is None else error + added)
            optimizer.step()
            rate.step()
            method.after_step()
            for quantizer in net.quantizers.values():
                quantizer.after_step()
            told.step("reconstruct", number + 1, steps, {"error": float(error.detach())})
    method.set_hard(True)


def dropping(net: QuantizedNet, share: float) -> Observer:
    """Return an observer that rounds activations but for a random share of their values (QDrop, Wei et al. 2022)."""
    quantizers = net.quantizers

    def observe(name: str, value: Tensor) -> Tensor:
        return torch.where(torch.rand_like(value) < share, value, quantizers[name](value))

    return observe


def variance(wanted: Tensor) -> Tensor:
    """Return the variance of outputs, that of constant ones a little above zero."""
    return wanted.var(correction=0).clamp(min=VARIANCE_FLOOR)


def difference(found: Any, wanted: Any) -> Tensor:
    """Return the squared error of outputs, relative to the variance of the wanted ones; a mean over tensors."""
    losses = [
        mse_loss(one, other) / variance(other)
        for one, other in zip(tensors(found), tensors(wanted), strict=True)
        if other.is_floating_point()
    ]
    if not losses:
        raise ConfigError("the model returns no floating-point output that a reconstruction could follow")
    return torch.stack(losses).mean()
