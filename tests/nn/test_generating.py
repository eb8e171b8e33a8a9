"""The generator of images, and the relations of feature maps that ZAQ compares."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csqtool.nn.generating import NOISE, ImageGenerator, relation_difference, relations


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (2, 13, 7)])
def test_images_have_the_asked_shape_and_normalized_channels(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    images = ImageGenerator(shape)(torch.randn(16, NOISE))
    assert images.shape == (16, *shape)
    assert images.mean((0, 2, 3)).tolist() == pytest.approx([0.0] * shape[0], abs=1e-4)
    assert images.var((0, 2, 3), correction=0).tolist() == pytest.approx([1.0] * shape[0], abs=1e-2)


def softmax(rows: np.ndarray) -> np.ndarray:
    e = np.exp(rows - rows.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_relations_are_those_of_loops_over_places_and_channels() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 3, 2, 2)
    found = relations(features).numpy()
    for image, maps in enumerate(features.flatten(2).numpy()):
        x = maps / np.linalg.norm(maps, axis=0)
        spatial = np.stack([sum(softmax(x[:, i] @ x)[j] * x[:, j] for j in range(4)) for i in range(4)], 1)
        products = x @ x.T
        channel = np.stack([softmax(products[c].max() - products[c]) @ x for c in range(3)])
        assert found[image] == pytest.approx(x + 0.1 * (spatial + channel), abs=1e-5)


def test_equal_directions_of_features_have_no_difference_whatever_their_size() -> None:
    features = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert float(relation_difference(features, 5 * features)) == pytest.approx(0, abs=1e-6)
    assert float(relation_difference(features, features.flip(1))) > 0.1
