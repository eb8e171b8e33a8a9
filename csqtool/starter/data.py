"""The data; replace them with your own. A factory returns a training and a test set of (input, target)."""

from __future__ import annotations

import numpy as np

from csqtool.data import ArrayDataset

CLASSES = 3  # a horizontal, a vertical and a diagonal line, in noise


def _lines(count: int, seed: int) -> ArrayDataset:
    generator = np.random.default_rng(seed)
    images = generator.normal(0, 0.5, (count, 1, 12, 12)).astype(np.float32)
    labels = generator.integers(0, CLASSES, count)
    for image, label, place in zip(images, labels, generator.integers(2, 10, count), strict=True):
        if label == 0:
            image[0, place, :] += 1
        elif label == 1:
            image[0, :, place] += 1
        else:
            image[0, np.arange(12), (np.arange(12) + place) % 12] += 1
    return ArrayDataset(images, labels)


def data() -> tuple[ArrayDataset, ArrayDataset]:
    """Return 1,500 training and 500 test images."""
    return _lines(1500, seed=1), _lines(500, seed=2)
