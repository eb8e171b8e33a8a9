"""The training loop of one stage (float training, search, finetuning), which can stop and resume at any step.

All random numbers of a step are a function of (seed, stage, epoch, batch), and checkpoints hold torch's random state.
The learning rate and a method's schedules are functions of the step. So a run that resumes gives the same result as
one that never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, mse_loss
from torch.nn.utils import parametrize

from csqtool.data import DataSource, batches_of, training_batches
from csqtool.data.datasets import Batch
from csqtool.errors import ConfigError, SearchInterrupted, TrainingError
from csqtool.evaluation import as_float, laid_out
from csqtool.gradient_sums import GradientSums
from csqtool.nn.kernels import Kernel
from csqtool.nn.quantized_net import QuantizedNet
from csqtool.processes import Processes
from csqtool.progress import Progress
from csqtool.randomness import hash_seed, seed_all
from csqtool.searching.config import SearchConfig
from csqtool.searching.method import Method
from csqtool.searching.profiling import part
from csqtool.searching.unreached import telling_unreached
from csqtool.task import main_output
from csqtool.trees import call, mapped, tensors

# Parameters with at least this many values take their optimizer step as soon as their gradient is computed, and the
# gradient is freed: together, the gradients of a large net's gates would take as much memory as the gates.
EARLY_FROM = 1 << 20
TIMED_STEPS = 3


@dataclass
class Position:
    """How far a stage is: `batch` batches of epoch `epoch` are done, with their summed loss."""

    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0


class StageTraining:
    """The training of one stage.

    Args:
        name: ``float``, ``search``, ``train`` or ``finetune``.
        epochs: its length, which may be a fraction; the learning rate is annealed to zero over it.
        net: the network to train.
        method: trains the quantized weights; None in float training.
        config: the search's settings.
        data: training and test sets.
        processes: the processes that train together.
        teacher: the float model, for distillation, and for methods that need no data.

    Raises:
        ConfigError: the method cannot be trained by several processes.
    """

    def __init__(
        self,
        name: str,
        epochs: float,
        net: QuantizedNet,
        method: Method | None,
        config: SearchConfig,
        data: DataSource,
        processes: Processes,
        *,
        teacher: nn.Module | None = None,
    ) -> None:
        self.name = name
        self.net = net
        self.method = method
        self.config = config
        self.data = data
        self.position = Position()
        self.measured: dict[str, float] = {}  # after the last epoch, shown with every step
        self.training_batches = training_batches(data, batch_size=config.batch_size, seed=config.seed)
        self.batches = self.training_batches.count
        self.steps = max(1, round(epochs * self.batches)) if epochs else 0
        self.processes = processes
        if method and method.data == "none" and processes.count > 1:
            raise ConfigError(f"{config.method} trains in one process: its generator is not shared between them")
        net.to(self.device)
        self._optimizer = make_optimizer(parameter_groups(net, method, config), config)
        self._parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        self._gradient_sums = GradientSums(processes, self._parameters)
        self._teacher = None if teacher is None else teacher.to(self.device).eval().requires_grad_(False)
        self._base_rates = [group["lr"] for group in self._optimizer.param_groups]
        self._choose_kernels()

    @property
    def device(self) -> torch.device:
        """The device that the net is on."""
        return self.processes.device

    @property
    def epochs(self) -> int:
        """The number of epochs, rounded up."""
        return math.ceil(self.steps / self.batches)

    def _choose_kernels(self) -> None:
        parameters = sum(p.numel() for p in self.net.parameters()) if self.method else 0
        values = 0
        if self.net.quantizers and self.steps:
            inputs, _ = next(batches_of(self.data.train, max_samples=1))
            inputs = laid_out(inputs, self.device, channels_last=False)
            values = self.training_batches.samples * self.net.quantized_values(inputs)
        steps = self.steps * (parameters + values)
        Kernel.choose(self.config.compile, element_steps=steps, device=self.device.type)

    def run(
        self,
        progress: Progress,
        after_epoch: Callable[[int, float], None],
        stop: Callable[[], bool],
        save: Callable[[], None],
        *,
        stepped: Callable[[], None] = lambda: None,
    ) -> bool:
        """Train to the end.

        Args:
            progress: is informed of every step.
            after_epoch: called with (epoch, mean loss) after every epoch; `position` is then the next epoch's.
            stop: called after every step; True stops the training.
            save: called within an epoch, every `checkpoint_minutes`.
            stepped: called after every step, when progress has been told.

        Returns:
            True if the stage is finished, False if it was stopped.

        Raises:
            TrainingError: the loss is not finite.
            SearchInterrupted: `after_epoch` was stopped; `position` is the end of that epoch.
        """
        saved = time.monotonic()
        while self.position.epoch < self.epochs:
            epoch = self.position.epoch
            training = self.training_batches.shares(self.name, epoch, self._mine, first=self.position.batch)
            self.net.train()
            if self.method:
                self.method.at_epoch(epoch / max(1, self.epochs - 1))
            batches = min(self.batches, self.steps - epoch * self.batches)
            for batch in range(self.position.batch, batches):
                if self.method:
                    self.method.at_step((epoch * self.batches + batch) / max(1, self.steps - 1))
                first = self.method is not None and epoch == batch == 0
                with telling_unreached(self.net, progress.line) if first else nullcontext():
                    loss = self._step(*next(training), epoch, batch)
                if not math.isfinite(loss):
                    where = f"{self.name} epoch {epoch + 1}, batch {batch + 1} of {batches}"
                    raise TrainingError(
                        f"the loss became {loss} in {where}: "
                        "lower the learning rates or check the data; earlier checkpoints are kept"
                    )
                self.position.batch += 1
                self.position.loss_sum += loss
                facts = {"loss": self.position.loss_sum / self.position.batch} | self.measured
                if self.method:
                    facts |= self.method.status()
                progress.step(self.name, epoch * self.batches + batch + 1, self.steps, facts)
                stepped()
                if batch + 1 < batches:
                    if self.processes.any(stop()):
                        return False
                    if time.monotonic() - saved > 60 * self.config.checkpoint_minutes:
                        save()
                        saved = time.monotonic()
            done = self.position
            self.position = Position(epoch + 1)
            try:
                after_epoch(epoch, done.loss_sum / batches)
            except SearchInterrupted:
                self.position = done  # all steps of the epoch are kept; it is measured when the run goes on
                raise
            saved = time.monotonic()
            if self.position.epoch < self.epochs and self.processes.any(stop()):
                return False
        return True

    def step_seconds(self) -> float:
        """Take a few steps, on the first batches, and return the mean seconds of one, with reading its batch.

        They change the network and are no part of the stage: its position stays.
        """
        self.net.train()
        if self.method:
            self.method.at_epoch(0.0)
            self.method.at_step(0.0)
        times: list[float] = []
        while len(times) <= TIMED_STEPS:
            began = time.monotonic()
            for own in self.training_batches.shares(self.name, 0, self._mine):
                self._step(*own, 0, 0)
                now = time.monotonic()
                times.append(now - began)
                began = now
                if len(times) > TIMED_STEPS:
                    break
        return sum(times[1:]) / TIMED_STEPS  # the first one allocates, and on some devices chooses algorithms

    def _annealing(self, epochs_done: float) -> float:
        """Return the factor of the learning rate: a linear warm-up, times a cosine that falls to zero."""
        warmup = self.config.warmup_epochs
        rising = min(1.0, (epochs_done + 1 / self.batches) / warmup) if warmup else 1.0
        return rising * 0.5 * (1 + math.cos(math.pi * epochs_done * self.batches / self.steps))

    def _mine(self, count: int) -> slice:
        """Return which of a batch's samples are this process's."""
        return self.processes.share(count)[0]

    def _step(self, own: Batch, count: int, epoch: int, batch: int) -> float:
        """Take a step on a batch of `count` samples, `own` being those of this process; return the loss of all."""
        seed = hash_seed(self.config.seed, self.name, epoch, batch)
        _, weight = self.processes.share(count)
        inputs, targets = own
        targets = mapped(targets, lambda tensor: tensor.to(self.device))
        seed_all(hash_seed(seed, self.processes.index))  # for dropout and so on, which differ between processes
        inputs = laid_out(inputs, self.device, channels_last=bool(self.config.channels_last))
        annealing = self._annealing(epoch + batch / self.batches)
        for group, rate in zip(self._optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * annealing
        self._optimizer.zero_grad()
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.amp == "bf16")
        with part("forward"), autocast, self.processes.whole_batch_norm(self.net), parametrize.cached():
            compute_small_weights(self.net)
            loss = self.method.own_loss(self.net, self._teacher, inputs) if self.method else None
            if loss is None:
                outputs, taught = self._outputs(inputs)
        if loss is None:
            loss = self._task_loss(outputs, taught, targets)
        extras = [self.method.regularization()] if self.method else []
        extras += [quantizer.regularization() for quantizer in self.net.quantizers.values()]
        penalty = sum(extra for extra in extras if extra is not None)
        value = float(self.processes.added_up(weight * loss.detach()))
        if not math.isfinite(value):
            return value  # the step is not taken
        with part("backward"), self._early_steps(), self._gradient_sums.of_backward():
            torch.autograd.backward(weight * loss + penalty / self.processes.count)
        with part("optimizer"):
            self._optimizer.step()
            if self.method:
                self.method.after_step()
            for quantizer in self.net.quantizers.values():
                quantizer.after_step()
        return value

    def _outputs(self, inputs: Any) -> tuple[Any, Any]:
        """Return the network's outputs, and the teacher's or None."""
        outputs, taught = as_float(main_output(call(self.net, inputs), self.data.task)), None
        if self._teacher is not None:
            with torch.no_grad():
                taught = as_float(main_output(call(self._teacher, inputs), self.data.task))
        return outputs, taught

    def _task_loss(self, outputs: Any, taught: Any, targets: Any) -> Tensor:
        loss = self.data.task.loss(outputs, targets)
        if taught is None:
            return loss
        share = self.config.distill
        return (1 - share) * loss + share * distillation(outputs, taught, labels=self.data.task.labels)

    @contextmanager
    def _early_steps(self) -> Iterator[None]:
        """Let large parameters take their step within the backward pass, once their gradient is computed.

        By then the gradient is complete, and the rest of the pass does not read the parameter: the step is the same as
        after the pass. Several processes exchange gradients, and take no early steps.
        """

        def step(_parameter: Tensor) -> None:
            self._optimizer.step()
            self._optimizer.zero_grad()

        alone = self.processes.count == 1
        handles = [p.register_post_accumulate_grad_hook(step) for p in self._parameters
                   if alone and p.numel() >= EARLY_FROM]  # fmt: skip
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def state(self) -> dict[str, Any]:
        """Return the part of a checkpoint that describes this stage."""
        position = self.position
        return {
            "stage": self.name,
            "position": [position.epoch, position.batch, position.loss_sum],
            "net": self.net.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "method": self.method.state() if self.method else {},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        epoch, batch, loss_sum = state["position"]
        self.position = Position(int(epoch), int(batch), float(loss_sum))
        self.net.restore(state["net"])
        self._optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        if self.method:
            self.method.load_state(state.get("method", {}))  # checkpoints of earlier versions have none


def compute_small_weights(net: nn.Module) -> None:
    """Compute the small parametrized weights before the net runs; `parametrize.cached` then returns them.

    Computed consecutively they take less time than between layers, whose data evicts them from the caches. The
    same holds for the backward pass, which computes their gradients consecutively at its end. Large weights are
    computed in their layers, so that their gradients can be used and freed one by one.
    """
    for module in net.modules():
        for name, sources in getattr(module, "parametrizations", {}).items():
            if all(p.numel() < EARLY_FROM for p in sources.parameters()):
                getattr(module, name)


def parameter_groups(net: QuantizedNet, method: Method | None, config: SearchConfig) -> list[dict[str, Any]]:
    """Return optimizer groups: the method's own, decayed weights, other parameters, activation scales."""
    groups = method.parameter_groups() if method else []
    own = {id(p) for group in groups for p in group["params"]}
    norms = {id(p) for m in net.modules() if isinstance(m, nn.modules.batchnorm._NormBase | nn.LayerNorm)
             for p in m.parameters(recurse=False)}  # fmt: skip
    scales = {id(q.scale) for q in net.quantizers.values()}
    rest = [p for p in net.parameters() if p.requires_grad and id(p) not in own]
    decayed = [p for p in rest if p.ndim >= 2 and id(p) not in norms]
    plain = [p for p in rest if not (p.ndim >= 2 and id(p) not in norms) and id(p) not in scales]
    steps = [p for p in rest if id(p) in scales]
    groups += [
        {"params": decayed, "lr": config.learning_rate, "weight_decay": config.weight_decay},
        {"params": plain, "lr": config.learning_rate, "weight_decay": config.weight_decay * config.decay_all},
        # A step size is orders of magnitude smaller than a weight; it is trained at a tenth of the rate.
        {"params": steps, "lr": 0.1 * config.learning_rate, "weight_decay": config.weight_decay * config.decay_all},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(groups: list[dict[str, Any]], config: SearchConfig) -> torch.optim.Optimizer:
    """Return the optimizer that a configuration names; it updates each parameter in one fused pass."""
    if config.optimizer == "adamw":
        for group in groups:
            group.pop("momentum", None)
        return torch.optim.AdamW(groups, lr=0.0, fused=True)
    for group in groups:
        group.setdefault("momentum", config.momentum)
    return torch.optim.SGD(groups, lr=0.0, fused=True)


DISTILLATION_TEMPERATURE = 4.0


def distillation(outputs: Any, taught: Any, *, labels: bool) -> Tensor:
    """Return the distillation loss, a scalar (Hinton et al. 2015: T²·KL of the softened class probabilities).

    Without class labels it is the mean squared difference, of several outputs the mean over them.

    Args:
        outputs: the network's, [B, …] or a tree of tensors.
        taught: the float model's, of the same structure.
        labels: whether outputs are scores of classes.
    """
    if not labels:
        losses = [mse_loss(one, other) for one, other in zip(tensors(outputs), tensors(taught), strict=True)
                  if one.is_floating_point()]  # fmt: skip
        return torch.stack(losses).mean()
    t = DISTILLATION_TEMPERATURE
    return t * t * kl_div(log_softmax(outputs / t, -1), log_softmax(taught / t, -1),
                          reduction="batchmean", log_target=True)  # fmt: skip
