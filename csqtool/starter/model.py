"""The network; replace it with your own. A factory returns a torch.nn.Module."""

from __future__ import annotations

from torch import nn


def build(width: int = 16, classes: int = 3) -> nn.Module:
    """Return a small convolutional network: [N, 1, 12, 12] → class scores [N, classes]."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, classes),
    )
