"""The bundled digits as an autoencoder needs them: the target of an image is the image."""

from __future__ import annotations

from csqtool.data import ArrayDataset, DataSource, load_data
from csqtool.task import task_by_name


def _part(part: object) -> ArrayDataset:
    assert isinstance(part, ArrayDataset)
    pixels = part.inputs.float().numpy() / 16
    return ArrayDataset(pixels, pixels, mean=0.305, std=0.376, stored="grey pixels 0 … 1")


def digits_as_targets() -> DataSource:
    """Return the digits with their pixels, 0 … 1, as targets [1, 8, 8]."""
    digits = load_data("digits")
    return DataSource("digits_as_targets", _part(digits.train), _part(digits.test), task_by_name("regression"))
