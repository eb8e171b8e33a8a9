"""Models of any signature, from data to a verified file: several inputs, keywords, integers, nested outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import csqtool
from csqtool.data import load_data
from csqtool.errors import DataError, ModelError
from csqtool.finalized_file import read_finalized
from csqtool.nn.post_training import post_training_model
from tests.support.commands import ok

COUNT = 96
SHORT = {"epochs": 1, "finetune_epochs": 1, "pretrain_epochs": 1, "batch_size": 32, "learning_rate": 0.01}
GENERATOR = torch.Generator().manual_seed(0)
LABELS = torch.randint(0, 4, (COUNT,), generator=GENERATOR)
X = torch.randn(COUNT, 6, generator=GENERATOR) + LABELS[:, None]
Y = torch.randn(COUNT, 5, generator=GENERATOR)
IDS = torch.randint(0, 11, (COUNT, 7), generator=GENERATOR)
MASK = torch.rand(COUNT, 7, generator=GENERATOR) < 0.8
MASK[:, 0] = True


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(5, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(torch.relu(self.a(x) + self.b(y)))


@dataclass
class Found:
    logits: Tensor
    features: tuple[Tensor, dict[str, Tensor]]
    loss: Tensor | None = None


class Text(nn.Module):
    """Tokens, a mask of booleans and an argument that nobody gives; returns a dataclass with nested parts."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.mix, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None) -> Found:
        h = self.embedding(input_ids)
        if attention_mask is not None:
            h = h * attention_mask[..., None]
        h = torch.relu(self.mix(h))
        loss = None if labels is None else h.sum()
        return Found(self.head(h.mean(1)), (h, {"deep": h.amax(1)}), loss)


class Heads(nn.Module):
    """A list of feature maps in evaluation and a tuple in training, as detectors return them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.one, self.two = nn.Conv2d(8, 3, 1), nn.Conv2d(8, 3, 1, stride=2)

    def forward(self, images: Tensor) -> Any:
        h = self.stem(images)
        maps = [self.one(h), self.two(h)]
        return (maps, h) if self.training else maps


class Detecting:
    """A task of the user's own, which sees what the model returns, and a batch's other parts."""

    name, metric_name, labels = "maps", "negative error", False

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        maps = outputs[0] if isinstance(outputs, tuple) else outputs
        return sum((m.mean((1, 2, 3)) - targets["level"]).square().mean() for m in maps)

    def metric(self, outputs: Any, targets: Any) -> float:
        return -float(self.loss(outputs, targets))


class Rows:
    """A map-style data set of dicts, as those of Hugging Face are."""

    def __init__(self, columns: dict[str, Tensor]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: values[index] for name, values in self.columns.items()}


class Pairs(Rows):
    """The same, each sample a tuple of inputs and a label."""

    def __getitem__(self, index: int) -> Any:  # type: ignore[override]
        row = super().__getitem__(index)
        return (row["x"], row["y"]), row["label"]


IMAGES = torch.randn(COUNT, 1, 8, 8, generator=GENERATOR)
ROWS = Rows({"labels": LABELS, "attention_mask": MASK, "input_ids": IDS, "length": MASK.sum(1)})
CASES: dict[str, tuple[Callable[[], nn.Module], Any, Any, list[str], list[str]]] = {
    "positional": (TwoInputs, Pairs({"x": X, "y": Y, "label": LABELS}), None, ["input_0", "input_1"], ["output"]),
    "keywords": (TwoInputs, [({"y": Y, "x": X}, LABELS)], None, ["x", "y"], ["output"]),
    "dicts": (Text, ROWS, None, ["input_ids", "attention_mask"], ["logits", "features.0", "features.1.deep"]),
    "loader of dicts": (Text, DataLoader(ROWS, batch_size=20), None, ["input_ids", "attention_mask"],
                        ["logits", "features.0", "features.1.deep"]),
    "nested outputs": (Heads, Rows({"images": IMAGES, "level": torch.rand(COUNT)}), Detecting(), ["images"],
                       ["output_0", "output_1"]),
}  # fmt: skip


QUICK = {("positional", 8), ("keywords", None), ("loader of dicts", 8), ("nested outputs", 8)}


@pytest.mark.parametrize(
    ("name", "act_bits"),
    [pytest.param(name, bits, marks=[pytest.mark.long] * ((name, bits) not in QUICK))
     for name in CASES for bits in (8, None)],
)  # fmt: skip
def test_a_model_of_any_signature_goes_from_data_to_verified_files(
    name: str, act_bits: int | None, tmp_path: Path
) -> None:
    make, data, task, inputs, outputs = CASES[name]
    torch.manual_seed(0)
    module = make()
    settings = {**SHORT}
    if isinstance(data, DataLoader | list):
        del settings["batch_size"]
    found = csqtool.search(module, train=data, test=data, task=task, target_bits=4, act_bits=act_bits, **settings)
    model = found.finalize()
    csqtool.save(model, tmp_path / "m.safetensors")
    assert [i.name for i in read_finalized(tmp_path / "m.safetensors").info.inputs or ()] == inputs
    for suffix in ("onnx", "csq"):
        path = tmp_path / f"m.{suffix}"
        csqtool.export(model, path, model=module)
        report = csqtool.verify(path, model, model=module, data=data, task=task)
        assert report.passed, [(check.name, check.detail) for check in report.failures]
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert ([i.name for i in graph.input], [o.name for o in graph.output]) == (inputs, outputs)
    if len(outputs) > 1:
        assert {c.name.rpartition(": ")[2] for c in report.checks if "optimizations off" in c.name} <= set(outputs)


def wrong(model: Any, module: nn.Module, tmp_path: Path, output: str) -> list[str]:
    """Return the checks that fail once one output of the file is negated."""
    csqtool.export(model, tmp_path / "m.onnx", model=module)
    proto = onnx.load(tmp_path / "m.onnx")
    maker = next(node for node in proto.graph.node if output in node.output)
    maker.output[list(maker.output).index(output)] = "honest"
    for node in proto.graph.node:
        for position, name in enumerate(node.input):
            if name == output:
                node.input[position] = "honest"
    proto.graph.node.append(onnx.helper.make_node("Neg", ["honest"], [output]))
    onnx.save(proto, tmp_path / "m.onnx")
    report = csqtool.verify(tmp_path / "m.onnx", model, model=module, data=ROWS)
    return [f"{check.level} {check.name}" for check in report.failures]


@pytest.mark.parametrize(
    "output",
    [*(pytest.param(name, marks=pytest.mark.slow) for name in ("logits", "features.0")), "features.1.deep"],
)
def test_every_output_is_compared_and_a_wrong_one_is_named(output: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Text().eval()
    batch = {"input_ids": IDS[:20], "attention_mask": MASK[:20]}
    model = post_training_model(module, [batch], act_bits=8)
    failed = wrong(model, module, tmp_path, output)
    assert any(name.startswith("outputs onnxruntime") and name.endswith(f": {output}") for name in failed)
    assert not any(name.endswith(f": {other}") for name in failed for other in {"logits", "features.0"} - {output})


def test_outputs_that_are_kept_are_those_of_the_files_and_of_every_later_command(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Text()
    found = csqtool.search(module, train=ROWS, test=ROWS, target_bits=4, act_bits=8, keep_output=["logits"], **SHORT)
    csqtool.save(found.finalize(), tmp_path / "m.safetensors")
    csqtool.export(tmp_path / "m.safetensors", tmp_path / "m.onnx", model=module)
    assert [o.name for o in onnx.load(tmp_path / "m.onnx").graph.output] == ["logits"]
    report = csqtool.verify(tmp_path / "m.onnx", tmp_path / "m.safetensors", model=module, data=ROWS)
    assert report.passed, report.failures
    with pytest.raises(ModelError, match=r"no output 'logit'; its outputs are logits, features\.0"):
        csqtool.search(module, train=ROWS, test=ROWS, target_bits=4, keep_output=["logit"], **SHORT)


def test_an_npz_keeps_integers_and_several_inputs_by_name(tmp_path: Path) -> None:
    parts = {}
    for part in ("train", "test"):
        parts |= {
            f"x_{part}.input_ids": IDS.numpy(),
            f"x_{part}.attention_mask": MASK.numpy(),
            f"y_{part}": LABELS.numpy(),
        }
    np.savez(tmp_path / "text.npz", **parts)
    source = load_data(f"npz:{tmp_path}/text.npz")
    inputs, _ = source.test.batch([0, 1])  # type: ignore[union-attr]
    assert {name: values.dtype for name, values in inputs.items()} == {
        "input_ids": torch.int64, "attention_mask": torch.bool
    }  # fmt: skip
    (tmp_path / "text.py").write_text("from tests.test_signatures import Text\n\ndef text(): return Text()\n")
    ok("search", f"{tmp_path}/text.py:text", "--data", f"npz:{tmp_path}/text.npz", "--target-bits", 4, "--act-bits", 8,
       "--epochs", 1, "--finetune-epochs", 0, "--keep-output", "logits", "-o", tmp_path / "run")  # fmt: skip
    ok("finalize", tmp_path / "run", "-o", tmp_path / "m.safetensors")
    ok("export", tmp_path / "m.safetensors", "-o", tmp_path / "m.onnx")
    ok("verify", tmp_path / "m.onnx", "--against", tmp_path / "m.safetensors")
    ok("bench", tmp_path / "m.onnx", "--rounds", 2)
    parts.pop("x_test.attention_mask")
    np.savez(tmp_path / "text.npz", **parts)
    with pytest.raises(DataError, match=r"the inputs are .* in training and"):
        load_data(f"npz:{tmp_path}/text.npz")


def test_dicts_that_the_model_or_the_task_cannot_use_are_refused() -> None:
    for columns, said in (({"labels": LABELS, "a": X, "b": Y}, "none of them is an input; the model takes x, y"),
                          ({"x": X, "y": Y}, "the model takes all, and no labels are left")):  # fmt: skip
        data = Rows(columns)
        with pytest.raises(DataError, match=said):
            csqtool.search(TwoInputs(), train=data, test=data, target_bits=4, **SHORT)


def test_the_dynamic_axes_of_tokens_are_those_of_their_mask(tmp_path: Path) -> None:
    module = Text().eval()
    batch = {"input_ids": IDS[:20], "attention_mask": MASK[:20]}
    model = post_training_model(module, [batch], act_bits=8)
    csqtool.export(model, tmp_path / "m.onnx", model=module, dynamic=(1,))
    for value in onnx.load(tmp_path / "m.onnx").graph.input:
        assert all(not dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)
    report = csqtool.verify(tmp_path / "m.onnx", model, model=module, data=ROWS)
    assert report.passed, report.failures
    assert any(check.name.startswith("axis 1 of size 14") for check in report.checks)
