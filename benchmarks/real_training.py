"""Networks of other people's libraries, trained for their task: float32 beside 3 bits with 8-bit activations.

``python -m benchmarks.real_training NAME… --data cifar10:DIR`` trains each network from random weights: half of the
epochs in float32, and from there the other half in float32, and with quantized weights (``--method csq``: a search and
its finetuning; ``lsq``: three planes in each layer). The learning rate falls to zero in each half, which may help or
harm; so all epochs in float32 with a single fall are beside it. Runs are kept in ``--work``, and go on there after a
stop. ``--write`` makes the table of what is finished. Extras ``zoo`` and ``detection``. Sizes are those that one CPU
core trains in an hour.

- ``resnet18``: torchvision's, on CIFAR-10 images of 32 pixels.
- ``distilbert``: transformers' DistilBERT with fewer and narrower layers, with a vocabulary of 64 words, on made
  sentences: two clauses, negations, and a conjunction that decides which clause counts.
- ``yolov8n``: Ultralytics' in its whole width, by its own loss, on made images: discs, squares and triangles.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks.zoo_networks import declare_missing_operators

RESULTS = Path(__file__).parent / "results" / "real_training.md"
GOOD, BAD, PLAIN = range(2, 18), range(18, 34), range(34, 62)  # words
NOT, BUT, ALTHOUGH, LENGTH = 62, 63, 1, 16
METHODS = ("csq", "lsq", "measured")
PIXELS, KINDS = 64, 3  # of made images, and of shapes in them


class Sentences(Dataset[tuple[dict[str, Tensor], int]]):
    """Made sentences of two clauses, each of plain words, one good or bad word, and perhaps a "not" in front of it.

    The label is the mood of the clause that counts: with "but" between them or "although" in front the second,
    otherwise the first.
    """

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def pick(words: Any) -> int:
            return int(torch.randint(min(words), max(words) + 1, (1,), generator=generator))

        def clause() -> tuple[list[int], bool]:
            good, negated = pick((0, 1)) == 1, pick((0, 1)) == 1
            words = [pick(PLAIN) for _ in range(pick((1, 3)))] + [NOT] * negated + [pick(GOOD if good else BAD)]
            return words, good != negated

        self.items = []
        for _ in range(count):
            (first, mood), (second, other), form = clause(), clause(), pick((0, 2))
            words = [[*first, BUT, *second], [ALTHOUGH, *first, *second], [*first, *second]][form]
            self.items.append((words, int(mood if form == 2 else other)))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], int]:
        words, label = self.items[index]
        ids = torch.tensor(words + [0] * (LENGTH - len(words)))
        return {"input_ids": ids, "attention_mask": (ids != 0).long()}, label


class Shapes(Dataset[tuple[Tensor, Tensor]]):
    """Made images [3, 64, 64] of one or two shapes of any colour on noise, and targets [2, 5]: kind and corners.

    A row that stands for no shape has kind −1.
    """

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        rows, columns = torch.meshgrid(torch.arange(PIXELS) + 0.5, torch.arange(PIXELS) + 0.5, indexing="ij")
        self.items = []
        for _ in range(count):
            image = torch.rand(3, PIXELS, PIXELS, generator=generator) * 0.3 + torch.rand(3, 1, 1, generator=generator)
            target = torch.full((2, 5), -1.0)
            for row in target[: int(torch.randint(1, 3, (1,), generator=generator))]:
                size = 14 + 18 * float(torch.rand((), generator=generator))
                left, top = ((PIXELS - size) * torch.rand(2, generator=generator)).tolist()
                kind = int(torch.randint(KINDS, (1,), generator=generator))
                across, down = (columns - left) / size, (rows - top) / size  # 0 … 1 inside of the box
                inside = (across >= 0) & (across <= 1) & (down >= 0) & (down <= 1)
                if kind == 0:
                    inside = (across - 0.5).square() + (down - 0.5).square() <= 0.25
                elif kind == 2:
                    inside &= (across - 0.5).abs() <= down / 2
                image = torch.where(inside, 1.5 * torch.rand(3, 1, 1, generator=generator), image)
                row[:] = torch.tensor([kind, left, top, left + size, top + size])
            self.items.append((image, target))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.items[index]


class First:
    """The first samples of a data set that makes whole batches."""

    def __init__(self, whole: Any, count: int) -> None:
        self.whole = whole
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.whole[index]

    def batch(self, indices: Sequence[int]) -> Any:
        return self.whole.batch(indices)


def cifar(name: str) -> Any:
    """Return the first 5,000 training and 2,000 test images, with the data's own augmentation."""
    from csqtool.data import as_source

    source = as_source(name)
    return replace(source, train=First(source.train, 5_000), test=First(source.test, 2_000), source=None)


def resnet18() -> nn.Module:
    from csqtool import hubs

    module: nn.Module = hubs.build("torchvision:resnet18", {"num_classes": 10})
    return module


def distilbert() -> nn.Module:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(
        vocab_size=64, max_position_embeddings=LENGTH, num_labels=2, n_layers=2, dim=128, hidden_dim=512, n_heads=4
    )
    module: nn.Module = DistilBertForSequenceClassification(config)
    return module


def yolov8n() -> nn.Module:
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel

    module: nn.Module = DetectionModel("yolov8n.yaml", nc=KINDS, verbose=False)
    module.args = get_cfg()  # the loss's gains
    return module


def shapes(_: str) -> Any:
    """Return training and test sets, and YOLOv8's own loss with the mean average precision of its boxes."""
    from ultralytics.utils.loss import v8DetectionLoss
    from ultralytics.utils.nms import TorchNMS

    from csqtool.task import Detection

    loss_of = v8DetectionLoss(yolov8n())

    def loss(outputs: Any, targets: Tensor) -> Tensor:
        image, place = torch.nonzero(targets[..., 0] >= 0, as_tuple=True)
        kind, corners = targets[image, place, 0], targets[image, place, 1:] / PIXELS
        middle, size = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
        batch = {"batch_idx": image.float(), "cls": kind, "bboxes": torch.cat([middle, size], dim=1)}
        total: Tensor = loss_of(outputs, batch)[0].sum() / len(targets)
        return total

    def boxes(outputs: Any) -> list[dict[str, Tensor]]:
        return [one_image(*decoded.split((4, KINDS))) for decoded in outputs[0]]

    def one_image(middle_and_size: Tensor, scores: Tensor) -> dict[str, Tensor]:
        labels, places = torch.nonzero(scores > 0.001, as_tuple=True)
        middle, size = middle_and_size[:, places].T.split(2, dim=1)
        corners, found = torch.cat([middle - size / 2, middle + size / 2], dim=1), scores[labels, places]
        kept = TorchNMS.nms(corners + labels[:, None] * 2 * PIXELS, found, 0.7)  # each kind apart from the others
        return {"boxes": corners[kept], "scores": found[kept], "labels": labels[kept]}

    def wanted(targets: Tensor) -> list[dict[str, Tensor]]:
        rows = [one[one[:, 0] >= 0] for one in targets]
        return [{"boxes": one[:, 1:], "labels": one[:, 0].long()} for one in rows]

    return Shapes(1_000, 0), Shapes(500, 1), Detection(loss, boxes, wanted)


@dataclass(frozen=True)
class Case:
    """What is trained: network, data, metric, test samples, epochs of each row, settings, and further ones of csq."""

    build: Callable[[], nn.Module]
    data: Callable[[str], Any]
    about: str
    metric: str
    tests: int
    epochs: int
    settings: dict[str, Any]
    csq: dict[str, Any] = field(default_factory=dict)


# AdamW moves each logit of a gate by the learning rate, ten steps of the default's 0.1 from one end to the other: too
# fast for trained weights and a few hundred steps (DistilBERT: 92.1 %, and 94.1 % with this).
GATES = {"gate_learning_rate": 0.005}
CASES = {
    "resnet18": Case(resnet18, cifar, "torchvision ResNet-18, CIFAR-10 (JPEG) at 32 pixels, 5,000 images", "accuracy",
                     2_000, 6, {"batch_size": 64, "learning_rate": 0.02, "warmup_epochs": 0.5}),
    "distilbert": Case(distilbert, lambda _: (Sentences(8_000, 0), Sentences(4_000, 1)),
                       "transformers DistilBERT of 2 layers of 128, 8,000 made sentences", "accuracy", 4_000, 8,
                       {"batch_size": 32, "optimizer": "adamw", "learning_rate": 5e-4, "warmup_epochs": 0.5}, GATES),
    "yolov8n": Case(yolov8n, shapes, "Ultralytics YOLOv8n, `dfl` in float, 1,000 made images of 64 pixels",
                    "mAP 50–95", 500, 16,
                    {"batch_size": 16, "optimizer": "adamw", "learning_rate": 4e-3, "warmup_epochs": 0.5,
                     "exclude": ("*.dfl.*",)}, GATES),  # constants that decode boxes, and that the loss does not see
}  # fmt: skip


def trained(name: str, run: str, given: Any, work: Path, **more: Any) -> Any:
    """Train a network of `CASES` in a run of its own, or finish that; return the result."""
    import csqtool

    case = CASES[name]
    folder = work / f"{name}-{case.epochs}-{run}"
    torch.manual_seed(0)
    if (folder / "config.json").is_file():
        return csqtool.search(case.build(), resume=folder, data=given, progress=True)
    settings: dict[str, Any] = {"act_bits": 8, "target_bits": 3, "checkpoint_minutes": 2.0, **case.settings, **more}
    return csqtool.search(case.build(), run=folder, progress=True, data=given, **settings)


def float_only(name: str, run: str, given: Any, work: Path, **more: Any) -> float | None:
    """Return the metric of a network that is trained in float; what follows in the run is not looked at."""
    metric: float | None = trained(name, run, given, work, epochs=0.01, method="lsq", **more).metric_float
    return metric


def measure(name: str, method: str, data: str, work: Path) -> dict[str, Any]:
    """Train all rows of a case, or finish them; verify the exported file; return what was found."""
    import csqtool

    case = CASES[name]
    declare_missing_operators()
    given = case.data(data)
    half = case.epochs / 2
    both = {"epochs": half / 2, "finetune_epochs": half / 2, **case.csq}
    later = both if method == "csq" else {"epochs": half}
    found = trained(name, method, given, work, pretrain_epochs=half, method=method, **later)
    begun = work / f"{name}-{case.epochs}-{method}" / "float.safetensors"
    twice = float_only(name, "float-twice", given, work, weights=str(begun), pretrain_epochs=half)
    once = float_only(name, "float", given, work, pretrain_epochs=case.epochs)
    model = found.finalize()
    path = work / f"{name}-{method}.onnx"
    csqtool.export(model, path, model=case.build())
    report = csqtool.verify(path, model, model=case.build(), data=given)
    return {
        "name": name, "method": method, "epochs": case.epochs, "once": once, "halfway": found.metric_float,
        "float": twice, "bits": found.metric,
        "planes": found.average_precision, "passed": report.passed, "bytes": path.stat().st_size,
        "failures": [f"{c.level} {c.name}: {c.detail}"[:200] for c in report.failures][:3],
    }  # fmt: skip


def difference(row: dict[str, Any]) -> str:
    """Return the difference in points; of an accuracy with the standard error of two test sets."""
    points = f"{100 * (row['bits'] - row['float']):+.2f}"
    if CASES[row["name"]].metric != "accuracy":
        return points
    variance = sum(row[key] * (1 - row[key]) for key in ("float", "bits")) / CASES[row["name"]].tests
    return f"{points} (± {100 * math.sqrt(variance):.2f})"


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table as Markdown."""
    lines = [
        "# Networks of other people's libraries, trained", "",
        f"`benchmarks/real_training.py`; random weights, one seed, torch {torch.__version__}, {platform.machine()}, "
        f"{os.cpu_count()} CPUs, one thread. All columns are trained for as many epochs. The first half is float32; "
        "the second is float32 from there, or quantized from there: csq searches for at most 3 planes on average in "
        "one half of it and finetunes in the other, lsq trains step sizes for 3 planes in each layer, "
        "measured for 3 planes on average that it allots by measured loss. Each part has a learning rate that falls to "
        "zero; float32 with one fall over all epochs is beside it. The difference, in points, is to float32 in two "
        "parts, of accuracies with the standard error of two test sets of this size. "
        "`CASES` in the script has the settings.", "",
        "| network and data | epochs | method | metric | float32, one part | float32, two parts | 3 bits, 8-bit "
        "activations | difference | planes | ONNX | verify |",
        "| --- | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]  # fmt: skip
    for row in rows:
        case = CASES[row["name"]]
        lines.append(
            f"| {case.about}, {case.tests:,} for the test | {row['epochs']} | {row['method']} | {case.metric} | "
            f"{row['once']:.2%} | {row['float']:.2%} | {row['bits']:.2%} | {difference(row)} | {row['planes']:.2f} | "
            f"{row['bytes'] / 1e6:.2f} MB | "
            f"{'PASS' if row['passed'] else 'FAIL: ' + '; '.join(row['failures'])} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *CASES], metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--method", choices=METHODS, default=METHODS[0])
    parser.add_argument("--data", default="cifar10:cifar", help="CIFAR-10 for resnet18")
    parser.add_argument("--epochs", type=int, help="instead of the case's own")
    parser.add_argument("--work", type=Path, default=Path("real_training"))
    parser.add_argument("--write", action="store_true", help="write the table of what is finished")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        if options.epochs is not None:
            CASES[name] = replace(CASES[name], epochs=options.epochs)
        row = measure(name, options.method, options.data, options.work)
        (options.work / f"{name}-{options.method}-{row['epochs']:02}.json").write_text(json.dumps(row))
    if options.write:
        done = [path for name in CASES for path in sorted(options.work.glob(f"{name}-*.json"))]
        RESULTS.write_text(table([json.loads(path.read_text()) for path in done]))


if __name__ == "__main__":
    main()
