"""Layers that the loss does not reach are named when training begins."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import csqtool
from csqtool.progress import Silent

UNREACHED = "the loss did not reach 1 layers in the first step, so nothing trains their rounding"


class BoxesAfterTheLoss(nn.Module):
    """A classifier that passes its outputs through constants when it does not train, as detectors decode boxes."""

    def __init__(self, *, always: bool = False) -> None:
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.head = nn.Linear(8, 3)
        self.decode = nn.Linear(3, 3, bias=False)
        self.always = always
        with torch.no_grad():
            self.decode.weight.copy_(torch.eye(3))

    def forward(self, x: Tensor) -> Tensor:
        out = self.head(torch.relu(self.body(x)))
        return self.decode(out) if self.always or not self.training else out


class Lines(Silent):
    """Keeps the lines that are told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def line(self, text: str) -> None:
        self.told.append(text)


def searched(model: nn.Module, method: str) -> list[str]:
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    data = torch.utils.data.TensorDataset(x, x[:, :3].argmax(-1))
    lines = Lines()
    csqtool.search(
        model, train=data, test=data, task="classification", method=method, target_bits=3, epochs=1, batch_size=16,
        check=False, progress=lines, **({} if method == "lsq" else {"finetune_epochs": 0}),
    )  # fmt: skip
    return [line for line in lines.told if "did not reach" in line]


@pytest.mark.parametrize("method", ["lsq", "csq"])
def test_constants_behind_the_loss_are_named_once(method: str) -> None:
    (line,) = searched(BoxesAfterTheLoss(), method)
    assert line.startswith(UNREACHED)
    assert line.endswith(": decode.weight")


def test_nothing_is_said_where_the_loss_reaches_every_layer() -> None:
    assert searched(BoxesAfterTheLoss(always=True), "lsq") == []
