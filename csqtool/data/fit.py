"""Whether a model and its data belong together, asked before hours of training instead of within them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from csqtool.data.data_source import DataSource, Part
from csqtool.data.datasets import Batch
from csqtool.data.reading import first_samples
from csqtool.errors import DataError, ModelError
from csqtool.nn.modes import evaluating


@torch.no_grad()
def check_fit(model: nn.Module, source: DataSource) -> None:
    """Run `model` on two samples and compare shapes, targets and labels.

    Labels are looked at in every sample of a data set that tells them without reading its inputs (`targets`).

    Raises:
        ModelError: the model returns anything but one tensor.
        DataError: training and test inputs differ in shape, targets do not fit the outputs, or a label has no class.
    """
    (train_inputs, _), (inputs, targets) = _two_samples(source, "train"), _two_samples(source, "test")
    if train_inputs.shape[1:] != inputs.shape[1:]:
        raise DataError(
            f"{source.name}: training inputs have shape {list(train_inputs.shape[1:])}, "
            f"test inputs {list(inputs.shape[1:])}; both go into one model"
        )
    device = next((p.device for p in model.parameters()), inputs.device)
    with evaluating(model):
        outputs = model(inputs.to(device))
    if not isinstance(outputs, Tensor):
        raise ModelError(
            f"the model returns {type(outputs).__name__}; search and verify take models with one tensor in and one "
            "tensor out"
        )
    try:
        source.task.loss(outputs, targets.to(device))
    except DataError as error:
        raise DataError(f"{source.name}: {error}") from error
    if source.task.labels:
        for part, dataset in (("training", source.train), ("test", source.test)):
            _check_labels(source.name, part, dataset, outputs.shape[-1])


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
