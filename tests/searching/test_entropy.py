"""Training for the bytes of the packed file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from csqtool.csq import pack
from csqtool.errors import ConfigError
from csqtool.finalized_file import read_finalized
from csqtool.searching.config import SearchConfig
from csqtool.searching.entropy import Entropy
from tests.support.commands import DIGITS, invoke, ok
from tests.support.methods import made, small_net

SEARCH = ["search", DIGITS, "--data", "digits", "--batch-size", 64]


def packed(run: Path, *, inference: bool = False) -> int:
    """Return the bytes of the packed file of a finished search."""
    ok("finalize", run, "-o", run.parent / "m.safetensors")
    return len(pack(read_finalized(run.parent / "m.safetensors"), inference=inference))


def test_a_search_meets_its_size_and_resumes_to_the_same_result(tmp_path: Path) -> None:
    arguments = [*SEARCH, "--method", "entropy", "--target-size", "6KB", "--pretrain-epochs", 6, "--epochs", 3]
    summary = json.loads(ok(*arguments, "-o", tmp_path / "run", "--json").stdout)
    assert 5_900 < packed(tmp_path / "run") <= 6_000  # the smallest size that planes can promise is 7 kB
    assert summary["metric"] > 0.8
    model = (tmp_path / "m.safetensors").read_bytes()
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert json.loads(log.splitlines()[-2])["price"] > 0  # the checkpoint's state is not that of a start
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / "checkpoints" / "last.pt").unlink()
    resumed = json.loads(ok("search", "--resume", tmp_path / "run", "--json").stdout)
    assert {**resumed, "seconds": 0} == {**summary, "seconds": 0}
    assert (tmp_path / "run" / "log.jsonl").read_text() == log
    packed(tmp_path / "run")
    assert (tmp_path / "m.safetensors").read_bytes() == model


@pytest.mark.parametrize(
    "size", [5_500, pytest.param(6_500, marks=pytest.mark.long), pytest.param(8_000, marks=pytest.mark.long)]
)
def test_a_file_is_never_above_its_size_however_short_the_training(size: int, tmp_path: Path) -> None:
    ok(*SEARCH, "--method", "entropy", "--target-size", f"{size}B", "--epochs", 0.1, "-o", tmp_path / "run")
    assert packed(tmp_path / "run") <= size


@pytest.mark.long
def test_a_file_is_at_most_a_hundredth_below_a_size_that_needs_no_pressure(tmp_path: Path) -> None:
    # Steps grow in training: without a price of bits, which is never below zero, the file was 8 % too small.
    ok(*SEARCH, "--method", "entropy", "--target-size", "10KB", "--pretrain-epochs", 6, "--epochs", 6, "-o",
       tmp_path / "run")  # fmt: skip
    assert 9_900 <= packed(tmp_path / "run") <= 10_000


@pytest.mark.long
def test_an_inference_file_is_at_most_a_hundredth_below_a_size_that_counts_it(tmp_path: Path) -> None:
    ok(*SEARCH, "--method", "entropy", "--target-size", "4KB", "--size-profile", "inference", "--act-bits", 8,
       "--pretrain-epochs", 6, "--epochs", 3, "-o", tmp_path / "run")  # fmt: skip
    assert 3_960 <= packed(tmp_path / "run", inference=True) <= 4_000
    assert packed(tmp_path / "run") > 5_000


@pytest.mark.long
def test_finetuning_behind_csq_reaches_a_size_that_planes_cannot_promise(tmp_path: Path) -> None:
    arguments = [*SEARCH, "--method", "csq", "--target-size", "6.4KB", "--pretrain-epochs", 3, "--epochs", 0.5,
                 "--finetune-epochs", 2]  # fmt: skip
    refused = invoke(*arguments, "-o", tmp_path / "lsq")
    assert refused.exit_code == 2
    assert "the budget of 6,400 bytes cannot be met" in refused.stderr
    ok(*arguments, "--finetune-with", "entropy", "-o", tmp_path / "run")
    assert 6_000 < packed(tmp_path / "run") <= 6_400


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "entropy", "target_bits": 3}, "entropy trains for the packed file's bytes: give a target size"),
        ({"finetune_with": "entropy", "target_bits": 3}, "entropy trains for the packed file's bytes"),
        ({"method": "entropy", "target_size": "9KB", "min_bits": 2}, "min_bits does not go together with entropy"),
        ({"method": "entropy", "target_size": "9KB", "rate_planes": 8}, "rate_planes must be 1 to 7, got 8"),
        ({"method": "lsq", "target_bits": 3, "rate_start": 2.0}, "rate_start is not an option of lsq"),
        ({"method": "csq", "target_bits": 3, "rate_start": 2.0}, "and to finetuning with entropy"),
    ],
)
def test_what_it_needs_or_cannot_use_is_said(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SearchConfig.make(model="m", data="d", **settings)


def test_without_finetuning_its_finetuner_needs_no_size() -> None:
    config = SearchConfig.make(model="m", data="d", target_bits=3, finetune_with="entropy", finetune_epochs=0)
    assert not config.counts_bytes


def test_too_many_bits_raise_the_price_and_too_few_lower_it() -> None:
    method = made("entropy", 3, small_net())
    assert isinstance(method, Entropy)
    method.at_step(1.0)
    first = next(iter(method.sources.values()))
    for wanted, sign in ((0.5, 1), (2.0, -1)):
        for source in method.sources.values():
            source.price.fill_(0.1)
        first.course.fill_(wanted * method.entropy())
        method.after_step()
        assert (method.price - 0.1) * sign > 0
        assert method.pressure == pytest.approx(10 * method.price)


def test_the_course_falls_in_the_first_share_of_the_training_and_stays() -> None:
    method = made("entropy", 3, small_net(), rate_press=0.5)
    assert isinstance(method, Entropy)
    next(iter(method.sources.values())).course.copy_(torch.tensor([4.0, 2.0]))
    found = []
    for share in (0.0, 0.25, 0.5, 1.0):
        method.at_step(share)
        found.append(method.wanted_bits())
    assert found == pytest.approx([4, 3, 2, 2])


@pytest.mark.parametrize("limit", [0.003, 0.37, 5e4])
def test_the_last_rounding_has_the_lowest_price_at_which_the_file_fits(limit: float) -> None:
    method = made("entropy", 3, small_net())
    assert isinstance(method, Entropy)
    assert method.tighten(lambda: method.price < limit)
    assert limit <= method.price < 1.01 * limit


def entropy_bits(method: Entropy) -> float:
    """Return the bits that the present integers of all layers take at their entropy."""
    total = 0.0
    for found in method.integers().values():
        counts = np.unique(found.q, return_counts=True)[1]
        total -= float((counts * np.log2(counts / counts.sum())).sum())
    return total


@pytest.mark.parametrize(("bits", "share"), [(5.0, 1.05), (1.5, 1.0)])
def test_where_many_bits_have_no_price_the_last_steps_are_as_fine_as_the_size_allows(bits: float, share: float) -> None:
    method = made("entropy", bits, small_net())
    assert isinstance(method, Entropy)
    coarse = entropy_bits(method)
    assert method.tighten(lambda: entropy_bits(method) > 1.05 * coarse)
    assert 0.995 * share * coarse <= entropy_bits(method) <= share * coarse
    assert all((s.latent.abs().max() / s.scale).item() <= s.largest + 0.5 for s in method.sources.values())


def test_no_layer_begins_with_zeros_only() -> None:
    net = small_net()
    net[2].weight.data.mul_(1e-4)
    method = made("entropy", 1, net)
    assert all(found.q.any() for found in method.integers().values())


@pytest.mark.parametrize(("bits", "planes"), [(1.0, 4), (2.9, 6), (6.0, 7)])
def test_the_range_of_integers_is_wide_enough_for_the_bits(bits: float, planes: int) -> None:
    method = made("entropy", bits, small_net())
    assert isinstance(method, Entropy)
    assert {source.largest for source in method.sources.values()} == {2**planes - 1}
