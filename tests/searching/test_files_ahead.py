"""What no file can hold is refused before anything is trained or written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import csqtool
from csqtool.csq import container
from csqtool.errors import ModelError

DATA = [(torch.randn(1, 4, 4), i % 2) for i in range(8)]


class Net(nn.Module):
    def __init__(self, name: str = "conv") -> None:
        super().__init__()
        self.add_module(name, nn.Conv2d(1, 2, 3))
        self.head = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        first = next(iter(self.children()))
        return self.head(torch.relu(first(x)).mean((2, 3)))


def with_buffer(owner: str, name: str, value: Tensor) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        net = Net()
        net.get_submodule(owner).register_buffer(name, value)
        return net

    return build


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (with_buffer("conv", "weight_scale", torch.ones(())), "conv.weight_scale"),
        (with_buffer("conv", "input_scale", torch.ones(3)), "conv.input_scale"),
        (with_buffer("head", "table", torch.zeros(3, dtype=torch.bfloat16)), "head.table is torch.bfloat16"),
        (with_buffer("head", "none", torch.zeros(0, 3)), "head.none: .*dimension"),
        (lambda: Net("a/b"), "'a/b.weight'|'a/b.bias'"),
        (lambda: Net("a\tb"), r"'a\\tb.bias'"),
        (lambda: Net('a"b'), 'a"b.*quotes'),
        (lambda: Net("n" * 260), "nnn.*1 to 255 bytes"),
    ],
    ids=["weight_scale", "input_scale", "bfloat16", "empty", "slash", "tab", "quote", "long"],
)
def test_what_no_file_can_hold_is_told_before_training(
    build: Callable[[], nn.Module], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=f"could be trained, but not written.*({message})|{message}") as raised:
        csqtool.search(build(), train=DATA, test=DATA, target_bits=2, act_bits=8, run=tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_more_tensors_than_a_packed_file_holds_are_told_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "MAX_TENSORS", 5)
    with pytest.raises(ModelError, match="tensors, at most 5"):
        csqtool.search(Net(), train=DATA, test=DATA, target_bits=2)
