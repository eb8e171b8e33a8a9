from __future__ import annotations

import torch
from torch import Tensor, nn

from csqtool.nn.activation import ActivationFakeQuantizer
from csqtool.nn.placement import place_quantizers
from csqtool.nn.quantized_net import QuantizedNet, make_quantizers
from csqtool.nn.sites import record


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv1(x))
        return self.head(torch.relu(self.bn(self.conv2(y)) + y))


def test_quantizers_see_the_same_values_in_training_and_in_evaluation() -> None:
    # BatchNorm counts its batches in training, with an addition that is no residual one.
    model = Residual()
    x = torch.randn(5, 4, 6, 6)
    placement = place_quantizers(record(model.eval(), [x]), 4)
    net = QuantizedNet(model, make_quantizers(placement, ActivationFakeQuantizer))
    seen: dict[bool, dict[str, tuple[int, ...]]] = {True: {}, False: {}}
    for training, shapes in seen.items():
        net.train(training)

        def observe(name: str, value: Tensor, shapes: dict[str, tuple[int, ...]] = shapes) -> Tensor:
            shapes[name] = tuple(value.shape)
            return value

        net.observed(x, observe)
    assert seen[True] == seen[False]
    assert seen[True]["bn.output"] == (5, 4, 6, 6)
