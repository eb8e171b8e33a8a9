"""VGG-19 with BatchNorm for 32×32 images (Simonyan and Zisserman, 2015, column E, one linear layer at the end)."""

from __future__ import annotations

from torch import Tensor, nn

# Channels of the 3×3 convolutions; each stage ends in a 2×2 max pooling.
STAGES = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)


class VGG(nn.Module):
    """[N, 3, 32, 32] → class scores [N, classes]."""

    def __init__(self, classes: int, width: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels_in = 3
        for stage in STAGES:
            for channels in (int(width * full) for full in stage):
                convolution = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
                layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
                channels_in = channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels_in, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the class scores."""
        scores: Tensor = self.classifier(self.features(x).flatten(1))
        return scores


def vgg19_bn(classes: int = 10, width: float = 1.0) -> nn.Module:
    """VGG-19-BN, 20.0 million parameters; at a quarter of the width, a sixteenth of them."""
    return VGG(classes, width)
