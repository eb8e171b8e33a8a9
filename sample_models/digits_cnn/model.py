"""A small convolutional network for 8×8 digits: what `csqtool` meets in real networks, in 9,000 weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv_bn(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a convolution and its BatchNorm."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with a shortcut around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv_bn(channels, channels, 3)
        self.conv2 = conv_bn(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to the same shape."""
        y = torch.relu(self.conv1(x))
        return torch.relu(self.conv2(y) + x)


class DigitsCNN(nn.Module):
    """[N, 1, 8, 8] → [N, classes]: stem, residual block, depthwise separable reduction, classifier."""

    def __init__(self, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.stem = conv_bn(1, width, 3)
        self.block = ResidualBlock(width)
        self.depthwise = conv_bn(width, width, 3, stride=2, groups=width)
        self.pointwise = conv_bn(width, 2 * width, 1)
        self.mix = conv_bn(2 * width, 2 * width, 3, groups=4)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = torch.relu(self.stem(x))
        x = self.block(x)
        x = torch.relu(self.depthwise(x))
        x = torch.relu(self.pointwise(x))
        x = torch.relu(self.mix(x))
        logits: Tensor = self.classifier(torch.flatten(self.pool(x), 1))
        return logits


def digits_cnn(width: int = 16) -> DigitsCNN:
    """Build the network; `width` is the number of channels after the stem."""
    return DigitsCNN(width)
