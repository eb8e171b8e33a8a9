"""DS-CNN for keyword spotting, the small variant (Zhang et al., 2017, "Hello Edge")."""

from __future__ import annotations

from torch import Tensor, nn


def separable(channels: int) -> nn.Sequential:
    """Return a depthwise 3×3 and a pointwise convolution, each with BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


class DSCNN(nn.Module):
    """[N, 1, frames, coefficients], such as 49×10 for one second, → scores of keywords [N, classes]."""

    def __init__(self, classes: int, width: int, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, (10, 4), stride=2, padding=(5, 1), bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        self.blocks = nn.Sequential(*(separable(width) for _ in range(blocks)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores."""
        scores: Tensor = self.classifier(self.pool(self.blocks(self.stem(x))).flatten(1))
        return scores


def ds_cnn(classes: int = 12, width: int = 64, blocks: int = 4) -> nn.Module:
    """DS-CNN-S, 22 thousand weights."""
    return DSCNN(classes, width, blocks)
