"""What a search will take: a few real steps of each of its stages, timed before it begins."""

from __future__ import annotations

import copy
import sys
import time
from dataclasses import dataclass

import torch

from csqtool.data import batches_of
from csqtool.evaluation import laid_out
from csqtool.nn.modes import evaluating
from csqtool.nn.quantized_net import QuantizedNet
from csqtool.searching.budget import uniform
from csqtool.searching.config import epochs_at_scheme
from csqtool.searching.loop import StageTraining
from csqtool.searching.method import Method, MethodContext, load_method
from csqtool.searching.options import FINETUNE_METHODS, method_kind
from csqtool.searching.records import Stage
from csqtool.searching.session import Session
from csqtool.text import duration
from csqtool.trees import call, mapped, samples

CALIBRATION_SAMPLES = 16
EVALUATION_SAMPLES = 64
PLANES = 3  # of a rehearsal within a size, where no number of planes is given


@dataclass(frozen=True)
class Estimate:
    """What a search would take on this machine.

    Attributes:
        stages: seconds of each stage's steps and evaluations, by the stage's name.
        seconds_an_epoch: of the search, or of training with fixed bits.
        peak_bytes: memory of this process at its peak, during the steps and before; 0 where that is not known.
        device_bytes: memory of the GPU at its peak; 0 on a CPU.
    """

    stages: dict[str, float]
    seconds_an_epoch: float
    peak_bytes: int
    device_bytes: int

    @property
    def seconds(self) -> float:
        """Seconds of all stages."""
        return sum(self.stages.values())

    def __str__(self) -> str:
        """Return it as text, such as ``about 12 min (search 8 min, finetune 4 min), 1,204 MB of memory``."""
        parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in self.stages.items())
        memory = f", {self.peak_bytes / 1e6:,.0f} MB of memory" if self.peak_bytes else ""
        device = f", {self.device_bytes / 1e6:,.0f} MB of the GPU's" if self.device_bytes else ""
        return f"about {duration(self.seconds)} ({parts}){memory}{device}"


def rehearse(session: Session) -> Estimate:
    """Take a few steps of each stage of a session that has not begun, and evaluate some test samples.

    The steps count, with the batches that they read, and the evaluation after each epoch. What comes between stages
    does not: calibration, an allocator, settling a scheme by measured loss.

    Args:
        session: its network is changed, so that it can only be thrown away afterwards.
    """
    network, config, data = session.network, session.config, session.data
    network.net.to(session.device)
    network.calibrate(lambda: (inputs for inputs, _ in batches_of(data.train, max_samples=CALIBRATION_SAMPLES)))
    session.costs.measure_sizes(lambda: network.parameters)
    weights = {name: parameter.detach().clone() for name, parameter in network.parameters.items()}
    teacher = copy.deepcopy(network.model) if config.distill else None
    stages: dict[str, float] = {}
    an_epoch = 0.0
    for stage in session.stages:
        net, method, epochs = network.net, None, config.pretrain_epochs
        if stage == Stage.FLOAT:
            net = QuantizedNet(network.model, [])
        else:
            name, epochs = config.method, config.epochs
            if stage == Stage.FINETUNE:
                name, epochs = FINETUNE_METHODS[config.finetune_with], epochs_at_scheme(vars(config))
            method = _method(session, name, weights)
        if not epochs:
            continue
        training = StageTraining(
            stage.value, epochs, net, method, config, data, session.processes,
            teacher=None if method is None else teacher,
        )  # fmt: skip
        step = training.step_seconds()
        evaluations = 2 if method is not None and method.softens else 1
        measured = evaluations * _evaluation_seconds(session, net)
        stages[stage.value] = training.steps * step + training.epochs * measured
        if method is not None:
            an_epoch = an_epoch or training.batches * step + measured
    device_bytes = torch.cuda.max_memory_allocated(session.device) if session.device.type == "cuda" else 0
    return Estimate(stages, an_epoch, _peak_bytes(), device_bytes)


def _method(session: Session, name: str, weights: dict[str, torch.Tensor]) -> Method:
    """Let a method take over the network's weights as they were given."""
    network, config, budget = session.network, session.config, session.costs.budget
    if network.method is not None:
        network.make_plain()
        with torch.no_grad():
            for key, parameter in network.parameters.items():
                parameter.copy_(weights[key])
    if method_kind(name).searches:
        scheme = {key: uniform(planes) for key, planes in budget.max_planes.items()}
    else:
        planes = PLANES if config.target_bits is None else max(1, round(config.target_bits))
        scheme = {key: uniform(planes) for key in budget.max_planes}
    network.method = load_method(name)(
        MethodContext(
            network.weights, network.model, config, config.options_of(name), budget, scheme, session.curvature
        )
    )
    return network.method


@torch.no_grad()
def _evaluation_seconds(session: Session, net: QuantizedNet) -> float:
    """Return the seconds of one evaluation on the whole test set: those of a batch, the second time."""
    test, channels_last = session.data.test, bool(session.config.channels_last)
    seconds, count = 0.0, 1
    with evaluating(net):
        for _ in range(2):
            began = time.monotonic()
            inputs, _targets = next(batches_of(test, max_samples=EVALUATION_SAMPLES))
            outputs = call(net, laid_out(inputs, session.device, channels_last=channels_last))
            mapped(outputs, lambda tensor: tensor.cpu())  # a device has computed them then
            seconds, count = time.monotonic() - began, samples(inputs)
    return seconds * len(test) / count


def _peak_bytes() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
