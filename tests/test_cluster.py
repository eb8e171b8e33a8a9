"""Sweeps on a Ray cluster; skipped where Ray is not installed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import csqtool
from csqtool.errors import CheckFailed, ConfigError
from tests.support.commands import DIGITS

SWEEP: dict[str, Any] = {"methods": ["lsq", "entropy"], "target_sizes": ["9KB", "2KB"], "data": "digits",
                         "pretrain_epochs": 1, "epochs": 0.3, "finetune_epochs": 0}  # fmt: skip


def test_without_ray_a_cluster_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ConfigError, match=r"a cluster needs Ray: pip install 'csqtool\[ray\]'"):
        csqtool.sweep(DIGITS, tmp_path / "s", cluster="auto", **SWEEP)


@pytest.fixture
def two_workers() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield ray
    ray.shutdown()


@pytest.mark.long
def test_two_workers_give_the_table_of_one_process(two_workers: Any, tmp_path: Path) -> None:
    tables = [
        re.sub(r"\d+ \|$", "", csqtool.sweep(DIGITS, tmp_path / name, **where, **SWEEP).table(), flags=re.MULTILINE)
        for name, where in (("cluster", {"cluster": "auto"}), ("here", {"jobs": 1}))  # without the seconds
    ]
    assert tables[0] == tables[1]
    assert tables[0].count("| 1 |") == 2
    names = sorted(path.name for path in (tmp_path / "here" / "files").iterdir())
    assert len(names) == 4
    for name in names:
        assert (tmp_path / "cluster" / "files" / name).read_bytes() == (tmp_path / "here" / "files" / name).read_bytes()


@pytest.mark.long
def test_a_run_whose_machine_is_lost_is_told(two_workers: Any, tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "import os\ndef build():\n    os.kill(os.getppid(), 9)\n    os.kill(os.getpid(), 9)\n"  # the actor, and the run
    )
    with pytest.raises(CheckFailed, match="ended by signal 9"):
        csqtool.sweep(f"{tmp_path / 'm.py'}:build", tmp_path / "s", cluster="auto", **{**SWEEP, "methods": "lsq"})
