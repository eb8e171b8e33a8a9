"""What `test_processes` starts alone and under torchrun: a step, an evaluation, or a search that may be killed."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from csqtool import evaluation as evaluating
from csqtool.progress import Silent
from csqtool.searching.config import SearchConfig
from csqtool.searching.records import Stage
from csqtool.searching.runs import begin
from csqtool.searching.session import Session
from tests.support.sessions import opened


def one_step(session: Session, output: Path) -> None:
    """Write the gradients of the whole batch, the running statistics and the loss."""
    session._enter(Stage.SEARCH)
    training = session.training
    training.net.train()
    loss = training._step(session.data.training_batch(range(session.config.batch_size), seed=0), epoch=0, batch=0)
    tensors = {name: p.grad for name, p in training.net.named_parameters() if p.grad is not None}
    tensors |= {name: buffer for name, buffer in training.net.named_buffers() if "running" in name}
    tensors |= {"loss": torch.tensor(loss), "processes": torch.tensor(session.processes.count)}
    if session.processes.first:
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, output / "step.safetensors")


def evaluation(session: Session, output: Path) -> None:
    """Write how many samples this process saw when the test set was evaluated by fours, and the metric of all."""
    session._enter(Stage.SEARCH)
    evaluating.batches_of = partial(evaluating.batches_of, size=4)
    seen: list[int] = []
    session.network.net.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    metric = session._evaluate(session.network.net)
    (output / f"process{session.processes.index}.txt").write_text(f"{sum(seen)} {metric!r}")


def whole_search(session: Session, output: Path) -> None:
    """Write what each process ended with."""
    if session.processes.first:
        (output / "checkpoints").mkdir()
    session.processes.wait()
    session.to_end(lambda: False)
    digest = hashlib.sha256()
    for name, (q, scale, mask) in session.method.integers().items():
        digest.update(f"{name} {mask} {float(scale)!r}".encode() + q.tobytes())
    (output / f"process{session.processes.index}.txt").write_text(digest.hexdigest())


class Killed(Silent):
    """Kills the process that it runs in, in the middle of the search."""

    def step(self, stage: str, done: int, total: int, facts: dict[str, float]) -> None:
        if stage == "search" and done == total // 2:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    what, model, folder = sys.argv[1:]
    config = SearchConfig.make(
        model=model, data="digits", target_bits=3.0, act_bits=4, batch_size=33, device="cpu", compile="no",
        pretrain_epochs=1, epochs=1, finetune_epochs=1, checkpoint_minutes=0.0001,
    )  # fmt: skip
    if what in ("run", "killed"):
        begin(config, Path(folder), progress=Killed() if what == "killed" else None)
        sys.exit()
    run = opened(config, Path(folder))
    {"step": one_step, "evaluation": evaluation, "search": whole_search}[what](run, Path(folder))
    run.processes.wait()
