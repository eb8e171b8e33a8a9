"""The bundled digits as an autoencoder needs them: the target of an image is the image."""

from __future__ import annotations

from csqtool.data import ArrayDataset, DataSource, load_data
from csqtool.task import task_by_name


def digits_as_targets() -> DataSource:
    """Return the digits with their pixels, 0 … 1, as targets [1, 8, 8]."""
    digits = load_data("digits")
    parts = []
    for part in (digits.train, digits.test):
        assert isinstance(part, ArrayDataset)
        pixels = part.inputs.float().numpy() / 16
        parts.append(ArrayDataset(pixels, pixels, mean=0.305, std=0.376, stored="grey pixels 0 … 1"))
    return DataSource("digits_as_targets", *parts, task_by_name("regression"))
