"""The networks that `benchmarks/onnx_files.py` measures, in their published shapes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812 - the name that everybody knows
from torch import Tensor, nn


def conv_bn(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([nn.ReLU()] if act else []))


class CifarBlock(nn.Module):
    """Two 3×3 convolutions; the shortcut strides and pads with zero channels, without parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.padding = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.padding:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return torch.relu(y + x)


class ResNet20(nn.Module):
    """[N, 3, 32, 32] → [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        widths = [16, 16, 32, 64]
        for i in (1, 2, 3):
            blocks = [CifarBlock(widths[i - 1] if j == 0 else widths[i], widths[i], 2 if i > 1 and j == 0 else 1)
                      for j in range(3)]  # fmt: skip
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.avg_pool2d(x, 8).flatten(1))


class Residual(nn.Module):
    """A body with a shortcut; `final` is the activation behind the addition."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None, final: bool = True) -> None:
        super().__init__()
        self.body, self.shortcut, self.final = body, shortcut or nn.Identity(), final

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x) + self.shortcut(x)
        return torch.relu(y) if self.final else y


def resnet(blocks: list[int], *, bottleneck: bool) -> nn.Module:
    layers: list[nn.Module] = [conv_bn(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage, count in enumerate(blocks):
        width, outputs = 64 << stage, (64 << stage) * (4 if bottleneck else 1)
        for i in range(count):
            stride = 2 if stage and i == 0 else 1
            if bottleneck:
                body = nn.Sequential(conv_bn(inputs, width, 1), conv_bn(width, width, 3, stride),
                                     conv_bn(width, outputs, 1, act=False))  # fmt: skip
            else:
                body = nn.Sequential(conv_bn(inputs, width, 3, stride), conv_bn(width, width, 3, act=False))
            shortcut = conv_bn(inputs, outputs, 1, stride, act=False) if stride > 1 or inputs != outputs else None
            layers.append(Residual(body, shortcut))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


def mobilenet_v2() -> nn.Module:
    def conv(i: int, o: int, k: int, s: int = 1, g: int = 1) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(o), nn.ReLU6())

    layers: list[nn.Module] = [conv(3, 32, 3, 2)]
    inputs = 32
    table = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expansion, outputs, count, first in table:
        for i in range(count):
            hidden, stride = inputs * expansion, first if i == 0 else 1
            expand = [conv(inputs, hidden, 1)] if expansion > 1 else []
            body = nn.Sequential(
                *expand, conv(hidden, hidden, 3, stride, hidden), conv_bn(hidden, outputs, 1, act=False)
            )
            layers.append(Residual(body, None, final=False) if stride == 1 and inputs == outputs else body)
            inputs = outputs
    return nn.Sequential(*layers, conv(inputs, 1280, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))


def vgg19_bn() -> nn.Module:
    """The CIFAR form: one linear layer behind the convolutions."""
    layers: list[nn.Module] = []
    inputs = 3
    for width, count in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for _ in range(count):
            layers.append(conv_bn(inputs, width, 3))
            inputs = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


def ds_cnn() -> nn.Module:
    """Keyword spotting: [N, 1, 49, 10] → [N, 12]."""
    layers: list[nn.Module] = [nn.Conv2d(1, 64, (10, 4), 2, (5, 1), bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    for _ in range(4):
        layers += [conv_bn(64, 64, 3, groups=64), conv_bn(64, 64, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 12))


class VisionTransformer(nn.Module):
    """[N, 3, 32, 32] → [N, 10]: patches of 4, width 64, four blocks."""

    def __init__(self, width: int = 64, heads: int = 4, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 64, width) * 0.02)
        self.norms1 = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.attentions = nn.ModuleList(nn.MultiheadAttention(width, heads, batch_first=True) for _ in range(depth))
        self.norms2 = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(depth)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        for norm1, attention, norm2, mlp in zip(self.norms1, self.attentions, self.norms2, self.mlps, strict=True):
            y = norm1(x)
            x = x + attention(y, y, y, need_weights=False)[0]
            x = x + mlp(norm2(x))
        return self.head(x.mean(1))


def autoencoder() -> nn.Module:
    """Anomaly detection: [N, 640] → [N, 640]."""
    widths = [640, 128, 128, 128, 128, 8, 128, 128, 128, 128]
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        layers += [nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 640))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MobileNetV2": (mobilenet_v2, (3, 96, 96)),
    "VGG19-BN": (vgg19_bn, (3, 32, 32)),
    "ResNet-18": (lambda: resnet([2, 2, 2, 2], bottleneck=False), (3, 64, 64)),
    "ResNet-50": (lambda: resnet([3, 4, 6, 3], bottleneck=True), (3, 64, 64)),
    "DS-CNN": (ds_cnn, (1, 49, 10)),
    "vision transformer": (VisionTransformer, (3, 32, 32)),
    "autoencoder": (autoencoder, (640,)),
}
