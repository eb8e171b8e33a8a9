"""What a search will take is measured by a few of its steps, before it begins."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from csqtool.data import as_source
from csqtool.model_source import ModelSource
from csqtool.progress import Silent
from csqtool.searching import rehearsal
from csqtool.searching.config import SearchConfig
from csqtool.searching.loop import StageTraining
from csqtool.searching.rehearsal import Estimate, rehearse
from csqtool.searching.run_directory import RunDirectory
from csqtool.searching.session import Session
from csqtool.searching.start import Start

WAIT = 0.02


class Slow:
    """Four batches of eight samples, each after a wait; counts how many were read."""

    def __init__(self, wait: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(0)
        self.batches = [(torch.randn(8, 6, generator=generator), torch.arange(8) % 3) for _ in range(4)]
        self.wait, self.read = wait, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            time.sleep(self.wait)
            self.read += 1
            yield batch


def session(folder: Path, train: Any = None, **settings: Any) -> Session:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    given = {"device": "cpu", **({} if "target_size" in settings else {"target_bits": 3}), **settings}
    config = SearchConfig.make("", **given)
    data = as_source(train=train or Slow(), test=Slow())
    return Session(config, RunDirectory(folder / "run"), Start.of_settings(config), Silent(),
                   model=ModelSource.of(net), data=data)  # fmt: skip


def test_steps_and_evaluations_of_every_stage_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StageTraining, "step_seconds", lambda self: 2.0)
    monkeypatch.setattr(rehearsal, "_evaluation_seconds", lambda *given: 3.0)
    found = rehearse(session(tmp_path, pretrain_epochs=1, epochs=2, finetune_epochs=1.5, act_bits=8))
    # Four steps an epoch. Gates are evaluated soft and hard; a begun epoch is evaluated too.
    assert found.stages == {"float": 4 * 2 + 3, "search": 8 * 2 + 2 * 6, "finetune": 6 * 2 + 2 * 3}
    assert found.seconds == 57
    assert found.seconds_an_epoch == 4 * 2 + 6
    assert found.peak_bytes > 10_000_000
    assert not (tmp_path / "run").exists()


def test_reading_a_batch_is_part_of_its_step_and_the_stage_does_not_move(tmp_path: Path) -> None:
    made = session(tmp_path, train := Slow(WAIT), method="lsq", epochs=10)
    made._enter(made.stages[0])
    training = made.training
    assert training is not None
    before = train.read
    assert WAIT <= training.step_seconds() < 50 * WAIT
    assert train.read - before == 4  # one step that does not count, and three that do
    assert (training.position.epoch, training.position.batch) == (0, 0)


@pytest.mark.parametrize(
    ("settings", "stages"),
    [
        ({"method": "csq", "target_size": "4KB"}, ["search", "finetune"]),
        ({"method": "csq", "finetune_with": "csq", "pretrain_epochs": 1, "distill": 0.5, "act_bits": 4},
         ["float", "search", "finetune"]),
        ({"method": "bsq", "finetune_epochs": 0}, ["search"]),
        ({"method": "entropy", "target_size": "4KB"}, ["train"]),
        ({"method": "csq-uniform", "act_bits": 8}, ["train"]),
        ({"method": "zeroq"}, ["finetune"]),
        ({"method": "measured", "epochs": 0}, []),
    ],
)  # fmt: skip
def test_every_kind_of_search_can_be_rehearsed(settings: dict[str, Any], stages: list[str], tmp_path: Path) -> None:
    found = rehearse(session(tmp_path, **{"epochs": 1, **settings}))
    assert list(found.stages) == stages
    assert all(0 < seconds < 60 for seconds in found.stages.values())


def test_an_estimate_is_told_in_the_units_that_people_use() -> None:
    found = Estimate({"search": 600.0, "finetune": 120.0}, 30.0, 1_204_000_000, 0)
    assert str(found) == "about 12 min (search 10 min, finetune 2 min), 1,204 MB of memory"
    assert "2,000 MB of the GPU's" in str(Estimate({}, 0.0, 0, 2 * 10**9))
