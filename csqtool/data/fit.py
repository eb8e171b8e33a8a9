"""Whether a model and its data belong together, asked before hours of training instead of within them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from csqtool.data.data_source import DataSource, Part
from csqtool.data.datasets import Batch
from csqtool.data.reading import first_samples
from csqtool.errors import DataError
from csqtool.nn.modes import evaluating
from csqtool.task import main_output
from csqtool.trees import call, mapped, shapes, tensors


@torch.no_grad()
def check_fit(model: nn.Module, source: DataSource) -> None:
    """Run `model` on two samples and compare shapes, targets and labels.

    Labels are looked at in every sample of a data set that tells them without reading its inputs (`targets`).

    Raises:
        ModelError: the task can judge nothing that the model returns, or an output has no axis of samples.
        DataError: training and test inputs differ in shape, targets do not fit the outputs, or a label has no class.
    """
    (train_inputs, _), (inputs, targets) = _two_samples(source, "train"), _two_samples(source, "test")
    if shapes(train_inputs) != shapes(inputs):
        raise DataError(
            f"{source.name}: training inputs have shape {_shown(train_inputs)}, "
            f"test inputs {_shown(inputs)}; both go into one model"
        )
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with evaluating(model):
        outputs = call(model, mapped(inputs, lambda tensor: tensor.to(device)))
    main = main_output(outputs, source.task)
    try:
        source.task.loss(main, mapped(targets, lambda tensor: tensor.to(device)))
    except DataError as error:
        raise DataError(f"{source.name}: {error}") from error
    if source.task.labels and isinstance(main, Tensor):
        for part, dataset in (("training", source.train), ("test", source.test)):
            _check_labels(source.name, part, dataset, main.shape[-1])


def _shown(inputs: Any) -> str:
    return ", ".join(str(list(tensor.shape[1:])) for tensor in tensors(inputs))


def _two_samples(source: DataSource, part: str) -> Batch:
    samples = first_samples(getattr(source, part), 2)
    if samples is None:
        raise DataError(f"{source.part_name(part)} is empty")
    return samples


def _check_labels(name: str, part: str, dataset: Part, classes: int) -> None:
    labels = getattr(dataset, "targets", None)
    if isinstance(labels, list):
        labels = torch.tensor(labels)
    if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
        return
    wrong = torch.nonzero((labels < 0) | (labels >= classes)).flatten()
    if len(wrong):
        raise DataError(
            f"{name}: {part} sample {int(wrong[0])} has label {int(labels[wrong[0]])}, "
            f"the model's {classes} classes are 0 … {classes - 1}"
        )
