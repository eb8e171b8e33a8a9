"""A generator of images, and the relations of features, for training without data (ZAQ, Liu et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, l1_loss, normalize

NOISE = 256  # values that an image is made from
WIDTH = 128  # channels of the generator's first feature map; the second has half as many
LEAK = 0.2
ATTENTION = 0.1  # share of the relations that is added to the features


class ImageGenerator(nn.Module):
    """Makes images from noise: a quarter of their size, upsampled twice; mean 0 and variance 1 by a BatchNorm.

    Args:
        shape: of an image, [C, H, W].
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = list(shape)
        channels, *size = shape
        self._first = [-(-side // 4) for side in size]  # rounded up
        self.start = nn.Linear(NOISE, WIDTH * self._first[0] * self._first[1])
        self.norm = nn.BatchNorm2d(WIDTH)
        self.middle = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.LeakyReLU(LEAK))
        self.end = nn.Sequential(
            nn.Conv2d(WIDTH, WIDTH // 2, 3, padding=1), nn.BatchNorm2d(WIDTH // 2), nn.LeakyReLU(LEAK),
            nn.Conv2d(WIDTH // 2, channels, 3, padding=1), nn.Tanh(),
            nn.BatchNorm2d(channels, affine=False),
        )  # fmt: skip

    def forward(self, noise: Tensor) -> Tensor:
        """Return images [N, C, H, W] from noise [N, 256]."""
        x = self.norm(self.start(noise).reshape(len(noise), WIDTH, *self._first))
        x = self.middle(interpolate(x, scale_factor=2))
        x = interpolate(x, size=self.shape[1:])
        images: Tensor = self.end(x)
        return images


def relations(features: Tensor) -> Tensor:
    """Return features with their relations in space and between channels, each of unit length (ZAQ, section 3.3).

    Args:
        features: [N, C, H, W].

    Returns:
        x + 0.1·(spatial + channel attention), [N, C, H·W].
    """
    x = normalize(features.flatten(2), dim=1)  # (N, C, HW), unit vectors over channels
    spatial = torch.softmax(x.transpose(1, 2) @ x, -1)  # (N, HW, HW)
    likeness = x @ x.transpose(1, 2)  # (N, C, C)
    channel = torch.softmax(likeness.amax(-1, keepdim=True) - likeness, -1)
    return x + ATTENTION * (x @ spatial.transpose(1, 2) + channel @ x)


def relation_difference(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean absolute difference of two networks' relations, a scalar."""
    return l1_loss(relations(found), relations(wanted))
