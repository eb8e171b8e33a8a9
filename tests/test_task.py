from __future__ import annotations

import pytest
import torch

from csqtool.errors import ConfigError, DataError
from csqtool.task import task_by_name


def test_r2_is_one_for_perfect_outputs_and_zero_for_the_mean() -> None:
    task, targets = task_by_name("regression"), torch.randn(50, 3)
    assert task.metric(targets, targets) == 1.0
    assert task.metric(targets.mean(0).expand(50, 3), targets) == pytest.approx(0.0, abs=1e-6)
    assert task.metric(-targets, targets) < 0


def test_what_would_broadcast_is_refused() -> None:
    for outputs, targets in ((torch.zeros(4, 1), torch.zeros(4)), (torch.zeros(4), torch.zeros(4, 1))):
        with pytest.raises(DataError, match="regression needs outputs of the targets' shape"):
            task_by_name("regression").loss(outputs, targets)
    with pytest.raises(DataError, match=r"outputs \[N, classes\]"):
        task_by_name("classification").loss(torch.zeros(4, 2, 1), torch.zeros(4, dtype=torch.int64))


def test_labels_without_a_class_are_refused_with_their_number() -> None:
    with pytest.raises(DataError, match="label 7 is out of range: the model has 3 classes"):
        task_by_name("classification").loss(torch.zeros(2, 3), torch.tensor([1, 7]))


def test_an_unknown_task_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="regression"):
        task_by_name("regresion")
