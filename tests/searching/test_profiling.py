from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import csqtool
from csqtool.errors import ConfigError
from csqtool.progress import Told
from csqtool.searching.result import SearchResult


def searched(run: Path | None, **settings: Any) -> tuple[SearchResult, list[str]]:
    generator, said = torch.Generator().manual_seed(0), list[str]()
    batches = [(torch.randn(8, 6, generator=generator), torch.arange(8) % 3) for _ in range(9)]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    found = csqtool.search(net, train=batches, test=batches, target_bits=3, epochs=1, device="cpu", run=run,
                           progress=Told(said.append), **settings)  # fmt: skip
    return found, said


def test_a_profile_names_the_parts_of_a_step_and_its_operators_and_changes_no_result(tmp_path: Path) -> None:
    plain, _ = searched(tmp_path / "plain", finetune_epochs=0.2)
    found, said = searched(tmp_path / "run", finetune_epochs=0.2, profile=True)
    assert [entry.loss for entry in found.log] == [entry.loss for entry in plain.log]
    assert found.scheme == plain.scheme
    folder = tmp_path / "run" / "profile"
    table = (folder / "search.txt").read_text()
    assert table.startswith("profile of search, 5 steps of ")
    whole, forward, backward, optimizer = (float(n) for n in re.findall(r"([\d.]+) ms", table.split("\n")[0]))
    assert 0 < forward + backward + optimizer < whole
    own = [float(line.split()[0]) for line in table.split("\n")[4:] if line]
    assert own == sorted(own, reverse=True)
    assert " aten::mm" in table or " aten::addmm" in table
    trace = json.loads(gzip.decompress((folder / "search.json.gz").read_bytes()))
    assert "csqtool: backward" in {event.get("name") for event in trace["traceEvents"]}
    assert set(table.split("\n")[:5]) <= set(said)
    # Two steps of finetuning are too few. The files of the search are all there is.
    assert "finetune: too few steps to profile" in said
    assert {path.name for path in folder.iterdir()} == {"search.txt", "search.json.gz"}


def test_a_profile_without_a_folder_is_refused_before_training() -> None:
    with pytest.raises(ConfigError, match="profile writes into the run directory"):
        searched(None, profile=True)
