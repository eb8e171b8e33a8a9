"""What `test_processes` starts alone and under torchrun: an evaluation and a step, or a search that may be killed."""

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
from csqtool.searching.result import SearchResult
from csqtool.searching.runs import begin
from csqtool.searching.session import Session
from tests.support.sessions import opened


def two_steps(session: Session, output: Path) -> None:
    """Write the second step's gradients of the whole batch, the running statistics and the loss.

    In the second step gradients are exchanged while the backward pass computes others.
    """
    training = session.training
    training.net.train()
    count = session.config.batch_size
    own = session.data.training_share(range(count), seed=0, share=training._mine(count))
    training._gradient_sums._bucket_bytes = 1000
    for batch in range(2):
        loss = training._step(own, count, epoch=0, batch=batch)
    tensors = {name: p.grad for name, p in training.net.named_parameters() if p.grad is not None}
    tensors |= {name: buffer for name, buffer in training.net.named_buffers() if "running" in name}
    tensors |= {"loss": torch.tensor(loss), "processes": torch.tensor(session.processes.count)}
    if session.processes.first:
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, output / "step.safetensors")


def evaluation(session: Session, output: Path) -> None:
    """Write how many samples this process saw when the test set was evaluated by fours, and the metric of all."""
    evaluating.batches_of = partial(evaluating.batches_of, size=4)
    seen: list[int] = []
    session.network.net.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    metric = session._evaluate(session.network.net)
    (output / f"process{session.processes.index}.txt").write_text(f"{sum(seen)} {metric!r}")


def integers_of(result: SearchResult) -> str:
    """Return a digest of what a process ended with."""
    digest = hashlib.sha256()
    for layer in result.finalize().layers:
        digest.update(f"{layer.name} {layer.mask} {float(layer.scale)!r}".encode() + layer.q.tobytes())
    return digest.hexdigest()


class Killed(Silent):
    """Kills the process that it runs in, in the middle of the search."""

    def step(self, stage: str, done: int, total: int, facts: dict[str, float]) -> None:
        if stage == "search" and done == total // 2:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    what, model, folder = sys.argv[1:]
    config = SearchConfig.make(
        model=model, data="digits", target_bits=3.0, act_bits=4, batch_size=33, device="cpu", compile="no",
        pretrain_epochs=0.3, epochs=0.3, finetune_epochs=0.3, checkpoint_minutes=0.0001,
    )  # fmt: skip
    output = Path(folder)
    if what == "measurements":
        session = opened(config, output)
        session._enter(Stage.SEARCH)
        evaluation(session, output)
        two_steps(session, output)
        session.processes.wait()
    else:
        result = begin(config, output, progress=Killed() if what == "killed" else None)
        output.with_name(f"{output.name}-process{os.environ['RANK']}.txt").write_text(integers_of(result))
