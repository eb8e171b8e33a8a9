from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

import csqtool
from tests.support.networks import NETWORKS, samples

SHORT = {"epochs": 1, "finetune_epochs": 1, "pretrain_epochs": 1, "batch_size": 32, "learning_rate": 0.01}
# What stays in float: of what the forward pass does not reach in evaluation.
LAYERS = {"resnet": 4, "mobilenet v3": 7, "efficientnet": 7, "convnext": 5, "shared activation": 4,
          "ignored results": 4, "auxiliary head": 3, "gpt-2": 7, "swin": 4, "attention": 4, "recurrent": 5,
          "norms of several axes": 3, "two names": 3, "reparametrized": 3, "reparametrized, old style": 3,
          "own names": 3, "anchors": 4}  # fmt: skip


# The others are slow tests.
QUICK = {("ignored results", 8), ("anchors", 8), ("own names", None)}
LONG = {("resnet", 8), ("auxiliary head", 8), ("recurrent", 8),
        ("reparametrized", 8), ("shared activation", 8)}  # fmt: skip


def marks(case: tuple[str, int | None]) -> list[pytest.MarkDecorator]:
    return [] if case in QUICK else [pytest.mark.long if case in LONG else pytest.mark.slow]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    ("name", "act_bits"),
    [pytest.param(name, bits, marks=marks((name, bits))) for name in NETWORKS for bits in (None, 8)],
)
def test_a_network_is_searched_exported_and_verified(name: str, act_bits: int | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = NETWORKS[name]()
    data = TensorDataset(*samples(name, 96)), TensorDataset(*samples(name, 80, seed=1))
    found = csqtool.search(module, data=data, target_bits=4, act_bits=act_bits, **SHORT)
    model = found.finalize()
    assert len(model.layers) == LAYERS[name]
    assert bool(model.activations) == (act_bits is not None)
    path = tmp_path / "model.onnx"
    csqtool.export(model, path, model=module)
    report = csqtool.verify(path, model, model=module, data=data)
    assert report.passed, [(check.name, check.detail) for check in report.failures]
