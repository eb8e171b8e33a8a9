"""MobileNetV2 (Sandler et al., 2018); names and shapes of parameters are torchvision's, so its weights load."""

from __future__ import annotations

from torch import Tensor, nn

# Expansion, channels, blocks and first stride of each stage (table 2 of the paper).
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def conv_bn_relu(channels_in: int, channels: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a convolution, its BatchNorm and ReLU6."""
    convolution = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Expand by a 1×1 convolution, filter by a depthwise 3×3 one, project by a 1×1 one without activation."""

    def __init__(self, channels_in: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        self.conv = nn.Sequential(
            *([conv_bn_relu(channels_in, hidden, 1)] if expansion > 1 else []),
            conv_bn_relu(hidden, hidden, 3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.adds = stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels_in, H, W] → [N, channels, H / stride, W / stride]."""
        y: Tensor = self.conv(x)
        return x + y if self.adds else y


class MobileNetV2(nn.Module):
    """[N, 3, H, W] → class scores [N, classes]; made for 224×224."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn_relu(3, 32, 3, stride=2)]
        channels_in = 32
        for expansion, channels, blocks, stride in STAGES:
            for i in range(blocks):
                layers.append(InvertedResidual(channels_in, channels, 1 if i else stride, expansion))
                channels_in = channels
        self.features = nn.Sequential(*layers, conv_bn_relu(channels_in, 1280, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return the class scores."""
        scores: Tensor = self.classifier(self.pool(self.features(x)).flatten(1))
        return scores


def mobilenet_v2(classes: int = 1000) -> nn.Module:
    """MobileNetV2 of width 1, 3,504,872 parameters with a thousand classes."""
    return MobileNetV2(classes)
