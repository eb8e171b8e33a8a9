"""The training loop: one phase (float training, or a search) of epochs, exact to resume at any step.

Everything random is a function of (seed, phase, epoch, batch) or of the random state that checkpoints carry;
learning rate and temperature are functions of the step. So a run that stops and resumes is the same run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from csqtool.data.arrays import Dataset, DataSource, take
from csqtool.errors import InputError, ModelError
from csqtool.nn.net import QuantizedNet
from csqtool.search.config import SearchConfig
from csqtool.search.method import Method
from csqtool.search.progress import Progress
from csqtool.task import Task

EVALUATION_BATCH = 500


@dataclass
class Position:
    """Where a phase stands: `batch` batches of epoch `epoch` are done, and their summed loss."""

    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0


class Phase:
    """One training phase over a net.

    Args:
        name: ``float`` or ``search``.
        cycles: its lengths in epochs; the learning rate is annealed to zero in each.
        net: what is trained.
        method: the search method, None in float training.
        config: the search's settings.
        data: training and test sets.
    """

    def __init__(
        self,
        name: str,
        cycles: tuple[int, ...],
        net: QuantizedNet,
        method: Method | None,
        config: SearchConfig,
        data: DataSource,
    ) -> None:
        from accelerate import Accelerator

        self.name = name
        self.cycles = cycles
        self.epochs = sum(cycles)
        self.net = net
        self.method = method
        self.config = config
        self.data = data
        self.position = Position()
        self._accelerator = Accelerator()
        self._optimizer: Any
        self._trained, self._optimizer = self._accelerator.prepare(net, torch.optim.SGD(self._groups(), lr=0.0))
        self._base_rates = [group["lr"] for group in self._optimizer.param_groups]
        if batches_per_epoch(len(data.train), config.batch_size) * self.epochs == 0:
            raise InputError("there is nothing to train: no training samples")

    @property
    def device(self) -> torch.device:
        """Where the net lives."""
        device: torch.device = self._accelerator.device
        return device

    def _groups(self) -> list[dict[str, Any]]:
        """Return optimizer groups: the method's own, decayed weights, undecayed rest."""
        config = self.config
        groups = self.method.parameter_groups() if self.method else []
        own = {id(p) for group in groups for p in group["params"]}
        norms = {id(p) for m in self.net.modules() if isinstance(m, nn.modules.batchnorm._NormBase | nn.LayerNorm)
                 for p in m.parameters(recurse=False)}  # fmt: skip
        scales = {id(q.scale) for q in self.net.quantizers.values()}
        rest = [p for p in self.net.parameters() if p.requires_grad and id(p) not in own]
        decayed = [p for p in rest if p.ndim >= 2 and id(p) not in norms]
        plain = [p for p in rest if not (p.ndim >= 2 and id(p) not in norms) and id(p) not in scales]
        steps = [p for p in rest if id(p) in scales]
        groups += [
            {"params": decayed, "lr": config.learning_rate, "weight_decay": config.weight_decay},
            {"params": plain, "lr": config.learning_rate, "weight_decay": 0.0},
            # A step size is orders of magnitude smaller than a weight; LSQ trains it at a tenth of the rate.
            {"params": steps, "lr": 0.1 * config.learning_rate, "weight_decay": 0.0},
        ]
        return [{"momentum": config.momentum, **group} for group in groups if group["params"]]

    def run(self, progress: Progress, after_epoch: Callable[[int, float], None], stop: Callable[[], bool]) -> bool:
        """Train to the end.

        Args:
            progress: told about every step.
            after_epoch: called with (epoch, mean loss) behind every epoch, `position` already moved on.
            stop: asked after every step; True ends the run where it stands.

        Returns:
            True if the phase is finished, False if it was stopped.

        Raises:
            ModelError: the loss is not finite.
        """
        batches = batches_per_epoch(len(self.data.train), self.config.batch_size)
        total = self.epochs * batches
        while self.position.epoch < self.epochs:
            epoch = self.position.epoch
            if self.method:
                if self.position.batch == 0:
                    self.method.begin_epoch(epoch)
                self.method.set_epoch(epoch)
            order = epoch_order(len(self.data.train), self.config.seed, self.name, epoch)
            self._trained.train()
            for batch in range(self.position.batch, batches):
                chosen = order[batch * self.config.batch_size : (batch + 1) * self.config.batch_size]
                loss = self._step(chosen, epoch, batch, self._annealing(epoch + batch / batches))
                if not math.isfinite(loss):
                    raise ModelError(
                        f"the loss became {loss} in {self.name} epoch {epoch + 1}, batch {batch + 1}; "
                        "lower the learning rates or check the data"
                    )
                self.position.batch += 1
                self.position.loss_sum += loss
                facts = {"loss": self.position.loss_sum / self.position.batch}
                if self.method:
                    facts |= self.method.status()
                progress.step(self.name, epoch * batches + batch + 1, total, facts)
                if batch + 1 < batches and stop():
                    return False
            loss = self.position.loss_sum / batches
            self.position = Position(epoch + 1)
            after_epoch(epoch, loss)
            if self.position.epoch < self.epochs and stop():
                return False
        return True

    def _annealing(self, epochs_done: float) -> float:
        """Return the cosine-annealed share of the learning rate."""
        start = 0
        for length in self.cycles:
            if epochs_done < start + length:
                return 0.5 * (1 + math.cos(math.pi * (epochs_done - start) / length))
            start += length
        return 0.0

    def _step(self, chosen: Tensor, epoch: int, batch: int, annealing: float) -> float:
        inputs, targets = self.data.training_batch(
            chosen.tolist(), hash_seed(self.config.seed, self.name, epoch, batch)
        )
        for group, rate in zip(self._optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * annealing
        self._optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.amp == "bf16"):
            outputs = self._trained(inputs.to(self.device))
        loss = self.data.task.loss(as_float(outputs), targets.to(self.device))
        extra = self.method.regularization() if self.method else None
        self._accelerator.backward(loss if extra is None else loss + extra)
        self._optimizer.step()
        if self.method:
            self.method.after_step()
        for quantizer in self.net.quantizers.values():
            quantizer.scale.data.clamp_(min=1e-8)
        return float(loss.detach())

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of this phase."""
        position = self.position
        return {
            "phase": self.name,
            "position": [position.epoch, position.batch, position.loss_sum],
            "net": self.net.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        epoch, batch, loss_sum = state["position"]
        self.position = Position(int(epoch), int(batch), float(loss_sum))
        self.net.load_state_dict(state["net"])
        for quantizer in self.net.quantizers.values():
            quantizer.set_zero_point(int(quantizer.zero_point_))
        self._optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])


def as_float(outputs: Any) -> Any:
    """Return model outputs in float32 (autocast leaves them in bfloat16)."""
    return outputs.float() if isinstance(outputs, Tensor) and outputs.is_floating_point() else outputs


def batches_per_epoch(samples: int, batch_size: int) -> int:
    """Return the number of batches; a last batch of one sample is dropped, BatchNorm cannot train on it."""
    full, rest = divmod(samples, batch_size)
    return full + (rest > 1 or full == 0)


def hash_seed(*parts: object) -> int:
    """Return a 63-bit seed that is a function of `parts` alone."""
    import hashlib

    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


def epoch_order(samples: int, seed: int, phase: str, epoch: int) -> Tensor:
    """Return the order of the training samples in an epoch."""
    return torch.randperm(samples, generator=torch.Generator().manual_seed(hash_seed(seed, phase, epoch)))


def batches_of(
    dataset: Dataset, *, most: int | None = None, size: int = EVALUATION_BATCH
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a data set's inputs and targets in order, at most `most` samples."""
    count = len(dataset) if most is None else min(most, len(dataset))
    for start in range(0, count, size):
        yield take(dataset, range(start, min(start + size, count)))


@torch.no_grad()
def evaluate(net: nn.Module, dataset: Dataset, task: Task, device: torch.device | None = None) -> float:
    """Return the task's metric of `net` over `dataset`, in evaluation mode."""
    was_training = net.training
    net.eval()
    outputs, targets = [], []
    for x, y in batches_of(dataset):
        outputs.append(as_float(net(x.to(device) if device else x)).cpu())
        targets.append(y)
    net.train(was_training)
    return task.metric(torch.cat(outputs), torch.cat(targets))
