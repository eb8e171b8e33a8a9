from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from csqtool.errors import ConfigError, DataError, ModelError
from csqtool.task import TASKS, Detection, Task, main_output, new_metric, task_by_name, value_of


def measured(task: Task, outputs: Any, targets: Any, sizes: tuple[int, ...]) -> float:
    """Return the metric of batches of these sizes."""
    metric, start = new_metric(task), 0
    for size in sizes:
        metric.update(outputs[start : start + size], targets[start : start + size])
        start += size
    assert start == len(targets)
    return value_of(metric)


def test_r2_is_one_for_perfect_outputs_and_zero_for_the_mean() -> None:
    task, targets = task_by_name("regression"), torch.randn(50, 3)
    assert measured(task, targets, targets, (50,)) == 1.0
    assert measured(task, targets.mean(0).expand(50, 3), targets, (50,)) == pytest.approx(0.0, abs=1e-6)
    assert measured(task, -targets, targets, (50,)) < 0


def classes(*shape: int, most: int = 4) -> torch.Tensor:
    return torch.randint(0, most, shape)


TOKENS = torch.where(torch.rand(30, 6) < 0.2, -100, classes(30, 6))
PIXELS = torch.where(torch.rand(30, 5, 5) < 0.2, 255, classes(30, 5, 5))
CASES: dict[str, tuple[torch.Tensor, torch.Tensor]] = {
    "classification": (torch.randn(30, 4), classes(30)),
    "regression": (torch.randn(30, 2), torch.randn(30, 2)),
    "multi-label": (torch.randn(30, 4), classes(30, 4, most=2)),
    "segmentation": (torch.randn(30, 4, 5, 5), PIXELS),
    "token-classification": (torch.randn(30, 6, 4), TOKENS),
    "language-modelling": (torch.randn(30, 6, 4), TOKENS),
    "super-resolution": (torch.rand(30, 3, 5, 5), torch.rand(30, 3, 5, 5)),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_metric_does_not_depend_on_how_samples_are_batched(name: str) -> None:
    task = task_by_name(name)
    whole = measured(task, *CASES[name], (30,))
    assert measured(task, *CASES[name], (7, 1, 20, 2)) == pytest.approx(whole, rel=1e-5)
    assert math.isfinite(float(task.loss(*CASES[name])))


def test_metrics_are_those_of_their_definitions() -> None:
    scores, pixels = CASES["segmentation"]
    chosen, seen = scores.argmax(1), pixels != 255
    shares = [float(((chosen == c) & (pixels == c)).sum() / (((chosen == c) | (pixels == c)) & seen).sum())
              for c in range(4)]  # fmt: skip
    assert measured(task_by_name("segmentation"), scores, pixels, (30,)) == pytest.approx(np.mean(shares), rel=1e-5)
    logits, tokens = CASES["language-modelling"]
    counted = tokens[:, 1:] != -100
    losses = -torch.log_softmax(logits[:, :-1], -1).gather(-1, tokens[:, 1:].clamp(0)[..., None])[..., 0][counted]
    perplexity = measured(task_by_name("language-modelling"), logits, tokens, (30,))
    assert perplexity == pytest.approx(-float(losses.mean().exp()), rel=1e-5)
    logits, tokens = CASES["token-classification"]
    share = (logits.argmax(-1) == tokens)[tokens != -100].double().mean()
    assert measured(task_by_name("token-classification"), logits, tokens, (30,)) == pytest.approx(
        float(share), rel=1e-6
    )
    scores, labels = CASES["multi-label"]
    found = scores > 0
    f1 = 2 * (found & (labels == 1)).sum() / (found.sum() + labels.sum())
    assert measured(task_by_name("multi-label"), scores, labels, (30,)) == pytest.approx(float(f1), rel=1e-6)
    images, wanted = CASES["super-resolution"]
    errors = (images - wanted).square().mean((1, 2, 3))
    psnr = float((-10 * errors.log10()).mean())
    assert measured(task_by_name("super-resolution"), images, wanted, (30,)) == pytest.approx(psnr, rel=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_targets_of_another_shape_are_refused(name: str) -> None:
    outputs, targets = CASES[name]
    task = task_by_name(name)
    with pytest.raises(DataError, match=f"{name} needs outputs"):
        task.loss(outputs, targets[..., None])
    with pytest.raises(DataError, match=f"{name} needs one tensor of targets, got dict of a, b"):
        task.loss(outputs, {"a": targets, "b": targets})
    assert torch.equal(task.loss(outputs, {"other": targets, "labels": targets}), task.loss(outputs, targets))


def test_the_main_output_is_what_a_built_in_task_judges_and_others_get_everything() -> None:
    class Mine:
        name, metric_name, labels = "mine", "mine", False

    main, other = torch.zeros(2, 3), torch.ones(2, 3)
    task = task_by_name("classification")
    for outputs in ({"aux": other, "logits": main}, (main, other), SimpleNamespace(out=main), [main]):
        assert main_output(outputs, task) is main
        assert main_output(outputs, Mine()) is outputs
    for outputs in ({"features": other}, (), None, {"logits": "text"}):
        with pytest.raises(ModelError, match="of which classification can judge nothing"):
            main_output(outputs, task)


def test_a_task_with_a_function_of_the_whole_set_gets_it_whole() -> None:
    class Largest:
        name, metric_name, labels = "largest", "largest", False

        def metric(self, outputs: Any, targets: Any) -> float:
            assert targets == ["a", "b", "c"]
            return float(outputs["x"].max())

    metric = new_metric(Largest())
    metric.update({"x": torch.tensor([1.0, 5.0])}, ["a", "b"])
    metric.update({"x": torch.tensor([3.0])}, ["c"])
    assert value_of(metric) == 5.0


def test_detection_finds_the_boxes_it_was_given() -> None:
    pytest.importorskip("faster_coco_eval")
    pytest.importorskip("torchvision")
    box = {"boxes": torch.tensor([[1.0, 1.0, 5.0, 5.0]]), "labels": torch.tensor([0])}
    task = Detection(lambda outputs, targets: outputs.sum(), boxes=lambda found: found)
    for score, shift, wanted in ((0.9, 0.0, 1.0), (0.9, 9.0, 0.0)):
        metric = new_metric(task)
        metric.update([{**box, "boxes": box["boxes"] + shift, "scores": torch.tensor([score])}], [box])
        assert value_of(metric) == pytest.approx(wanted)


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
