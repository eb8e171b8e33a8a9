"""ResNet-20, -32 and -56 for 32×32 images (He et al., 2016, section 4.2), with parameter-free shortcuts.

Parameter names and shapes are those of the checkpoints that are widely shared for these networks.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import pad

WIDTHS = (16, 32, 64)


class Block(nn.Module):
    """Two 3×3 convolutions and a residual addition."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.stride = stride
        self.added = channels - channels_in

    def shortcut(self, x: Tensor) -> Tensor:
        """Subsample the image and pad the channels with zeros on both sides."""
        if not self.added:
            return x
        x = x[:, :, :: self.stride, :: self.stride]
        return pad(x, (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] → [N, channels, H / stride, W / stride]."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y = y + self.shortcut(x)
        out: Tensor = self.relu2(y)
        return out


class ResNet(nn.Module):
    """Three stages of `blocks` residual blocks each.

    Args:
        blocks: blocks a stage; the network has 6·blocks + 2 layers.
        classes: number of classes.
    """

    def __init__(self, blocks: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU()
        self.layer1 = self._stage(blocks, WIDTHS[0], WIDTHS[0], stride=1)
        self.layer2 = self._stage(blocks, WIDTHS[0], WIDTHS[1], stride=2)
        self.layer3 = self._stage(blocks, WIDTHS[1], WIDTHS[2], stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(WIDTHS[2], classes)

    @staticmethod
    def _stage(blocks: int, channels_in: int, channels: int, *, stride: int) -> nn.Sequential:
        first = Block(channels_in, channels, stride)
        return nn.Sequential(first, *(Block(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, 32, 32] → class scores [N, classes]."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        scores: Tensor = self.linear(self.pool(x).flatten(1))
        return scores


def resnet20(classes: int = 10) -> nn.Module:
    """ResNet-20, 269,722 parameters with ten classes."""
    return ResNet(3, classes)


def resnet32(classes: int = 10) -> nn.Module:
    """ResNet-32."""
    return ResNet(5, classes)


def resnet56(classes: int = 10) -> nn.Module:
    """ResNet-56."""
    return ResNet(9, classes)
