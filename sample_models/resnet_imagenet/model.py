"""ResNet-18 and ResNet-50 for ImageNet (He et al., 2016); names and shapes of parameters are torchvision's.

So torchvision's weights load unchanged: ``--weights resnet50.pth``.
"""

from __future__ import annotations

from torch import Tensor, nn


def conv(channels_in: int, channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution without bias that keeps the image's size at stride 1."""
    return nn.Conv2d(channels_in, channels, kernel, stride, padding=kernel // 2, bias=False)


class Residual(nn.Module):
    """A shortcut around some layers; where shapes change it is a 1×1 convolution."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        changes = stride != 1 or channels_in != channels
        self.downsample = (
            nn.Sequential(conv(channels_in, channels, 1, stride), nn.BatchNorm2d(channels)) if changes else None
        )

    def body(self, x: Tensor) -> Tensor:
        """Return what is added to the shortcut."""
        raise NotImplementedError  # abstract

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels_in, H, W] → [N, channels, H / stride, W / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(self.body(x) + shortcut)
        return out


class Basic(Residual):
    """Two 3×3 convolutions."""

    expansion = 1

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__(channels_in, width, stride)
        self.conv1 = conv(channels_in, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)

    def body(self, x: Tensor) -> Tensor:
        """Return what is added to the shortcut."""
        out: Tensor = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return out


class Bottleneck(Residual):
    """1×1, 3×3 and 1×1 convolutions; the middle one has the stride."""

    expansion = 4

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        channels = self.expansion * width
        super().__init__(channels_in, channels, stride)
        self.conv1 = conv(channels_in, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, channels, 1)
        self.bn3 = nn.BatchNorm2d(channels)

    def body(self, x: Tensor) -> Tensor:
        """Return what is added to the shortcut."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        out: Tensor = self.bn3(self.conv3(y))
        return out


class ResNet(nn.Module):
    """[N, 3, H, W] → class scores [N, classes]; made for 224×224.

    Args:
        block: what its stages consist of.
        depths: blocks in each of the four stages.
        classes: number of classes.
    """

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def __init__(self, block: type[Basic] | type[Bottleneck], depths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.conv1 = conv(3, 64, 7, 2)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        channels = 64
        for stage, depth in enumerate(depths):
            width = 64 * 2**stage
            blocks = []
            for i in range(depth):
                blocks.append(block(channels, width, 2 if stage and not i else 1))
                channels = block.expansion * width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the class scores."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        scores: Tensor = self.fc(self.avgpool(x).flatten(1))
        return scores


def resnet18(classes: int = 1000) -> nn.Module:
    """ResNet-18, 11,689,512 parameters with a thousand classes."""
    return ResNet(Basic, (2, 2, 2, 2), classes)


def resnet50(classes: int = 1000) -> nn.Module:
    """ResNet-50, 25,557,032 parameters with a thousand classes."""
    return ResNet(Bottleneck, (3, 4, 6, 3), classes)
