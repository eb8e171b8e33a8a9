"""The sample models as the benchmarks want them: with random weights, or ResNet-20 with a checkpoint's."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from csqtool.factories import build_model
from csqtool.nn.state_dict import load_weights

SAMPLES = Path(__file__).parent.parent / "sample_models"
RESNET20 = "resnet_cifar/model.py:resnet20"


def build(factory: str) -> nn.Module:
    """Return the model of a factory below ``sample_models/`` in evaluation mode, with random weights."""
    torch.manual_seed(0)
    net: nn.Module = build_model(f"{SAMPLES}/{factory}", {}).eval()
    return net


def resnet20(weights: Path | None) -> nn.Module:
    """Return ResNet-20 with the weights of a torch checkpoint, random ones without."""
    net = build(RESNET20)
    if weights is not None:
        load_weights(net, weights)
    return net
