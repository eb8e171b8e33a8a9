from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from csqtool.searching import automatic
from csqtool.searching.config import SearchConfig
from tests.support.commands import DIGITS, invoke, ok

CPU = torch.device("cpu")


def config(**more: object) -> SearchConfig:
    return SearchConfig.make(model="m", data="d", target_bits=3, batch_size=100, **more)


def test_a_large_net_of_images_is_trained_in_bf16_and_channels_last_where_the_processor_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, images = nn.Conv2d(3, 64, 3, padding=1), torch.zeros(2, 3, 64, 64)
    assert automatic.flops(net, images) == 2 * 2 * 64 * 64 * 3 * 64 * 9
    for native in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda native=native: {"avx512_bf16": native})
        found = automatic.resolve(config(), net, images, CPU)
        assert (found.amp, found.channels_last) == ("bf16" if native else "no", True)


def test_small_nets_and_chosen_settings_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    small = automatic.resolve(config(), nn.Conv2d(1, 4, 3), torch.zeros(2, 1, 8, 8), CPU)
    assert (small.amp, small.channels_last) == ("no", False)
    large, images = nn.Conv2d(3, 64, 3), torch.zeros(2, 3, 64, 64)
    chosen = automatic.resolve(config(amp="no", channels_last=False), large, images, CPU)
    assert (chosen.amp, chosen.channels_last) == ("no", False)
    assert automatic.resolve(config(), nn.Linear(4096, 4096), torch.zeros(2, 4096), CPU).channels_last is False


def test_what_was_decided_is_recorded_and_auto_does_not_change_it_on_resume(tmp_path: Path) -> None:
    ok("search", DIGITS, "--data", "digits", "--target-bits", 3, "--epochs", 0.1, "--finetune-epochs", 0, "-o",
       tmp_path / "run")  # fmt: skip
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (recorded["amp"], recorded["channels_last"]) == ("no", False)
    ok("search", "--resume", tmp_path / "run", "--amp", "auto")
    assert "amp 'no', not 'bf16'" in invoke("search", "--resume", tmp_path / "run", "--amp", "bf16").stderr
