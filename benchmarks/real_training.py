"""Networks of other people's libraries, trained for their task: float32 beside 3 bits with 8-bit activations.

``python -m benchmarks.real_training NAME… --data cifar10:DIR`` trains each network twice from random weights, for as
many epochs: in float32, and half of them in float32 with a search and its finetuning after it. Both runs are kept in
``--work``, and go on there after a stop. ``--write`` makes the table of what is finished. Extra ``zoo``.

- ``resnet18``: torchvision's, on CIFAR-10 images of 32 pixels.
- ``distilbert``: transformers' DistilBERT at its size (6 layers of 768), with a vocabulary of 64 words, on made
  sentences: two clauses, negations, and a conjunction that decides which clause counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks.zoo_networks import declare_missing_operators

RESULTS = Path(__file__).parent / "results" / "real_training.md"
GOOD, BAD, PLAIN = range(2, 18), range(18, 34), range(34, 62)  # words
NOT, BUT, ALTHOUGH, LENGTH = 62, 63, 1, 16


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


def resnet18() -> nn.Module:
    from csqtool import hubs

    module: nn.Module = hubs.build("torchvision:resnet18", {"num_classes": 10})
    return module


def distilbert() -> nn.Module:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(vocab_size=64, max_position_embeddings=LENGTH, num_labels=2)
    module: nn.Module = DistilBertForSequenceClassification(config)
    return module


@dataclass(frozen=True)
class Case:
    """What is trained: the network, its data, the epochs of both rows, and settings of the search."""

    build: Callable[[], nn.Module]
    data: Callable[[str], Any]
    about: str
    epochs: int
    settings: dict[str, Any]


CASES = {
    "resnet18": Case(resnet18, lambda data: data, "torchvision ResNet-18, CIFAR-10 (JPEG) at 32 pixels", 12,
                     {"batch_size": 128, "learning_rate": 0.05}),
    "distilbert": Case(distilbert, lambda _: (Sentences(12_000, 0), Sentences(4_000, 1)),
                       "transformers DistilBERT, made sentences (12,000 and 4,000 for the test)", 4,
                       {"batch_size": 64, "optimizer": "adamw", "learning_rate": 1e-4, "warmup_epochs": 0.2}),
}  # fmt: skip


def measure(name: str, data: str, work: Path) -> dict[str, Any]:
    """Train both rows of a case, or finish them; verify the exported file; return what was found."""
    import csqtool

    case = CASES[name]
    declare_missing_operators()
    half = case.epochs / 2

    def searched(row: str, **more: Any) -> Any:
        run = work / f"{name}-{row}"
        torch.manual_seed(0)
        common: dict[str, Any] = {"data": case.data(data), "act_bits": 8, "target_bits": 3, **case.settings, **more}
        if (run / "config.json").is_file():
            return csqtool.search(case.build(), resume=run, data=common["data"], progress=True)
        return csqtool.search(case.build(), run=run, progress=True, **common)

    found = searched("3-bits", pretrain_epochs=half, epochs=half / 2, finetune_epochs=half / 2)
    plain = searched("float", pretrain_epochs=case.epochs, epochs=0.01, method="lsq")
    model = found.finalize()
    path = work / f"{name}.onnx"
    csqtool.export(model, path, model=case.build())
    report = csqtool.verify(path, model, model=case.build(), data=case.data(data))
    return {
        "name": name, "float": plain.metric_float, "halfway": found.metric_float, "bits": found.metric,
        "planes": found.average_precision, "passed": report.passed, "bytes": path.stat().st_size,
        "failures": [f"{c.level} {c.name}: {c.detail}"[:200] for c in report.failures][:3],
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table as Markdown."""
    lines = [
        "# Networks of other people's libraries, trained", "",
        f"`benchmarks/real_training.py`; random weights, seed 0, 8-bit activations, torch {torch.__version__}, "
        f"{platform.machine()}, {os.cpu_count()} CPUs. Both columns are trained for as many epochs: float32 all of "
        "them; the other half of them in float32, a quarter in the search (csq, at most 3 planes), a quarter in "
        "finetuning.", "",
        "| network and data | epochs | float32 | 3 bits, 8-bit activations | difference | planes | ONNX | verify |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]  # fmt: skip
    for row in rows:
        case = CASES[row["name"]]
        lines.append(
            f"| {case.about} | {case.epochs} | {row['float']:.2%} | {row['bits']:.2%} | "
            f"{100 * (row['bits'] - row['float']):+.2f} | {row['planes']:.2f} | {row['bytes'] / 1e6:.2f} MB | "
            f"{'PASS' if row['passed'] else 'FAIL: ' + '; '.join(row['failures'])} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=list(CASES))
    parser.add_argument("--data", default="cifar10:cifar", help="CIFAR-10 for resnet18")
    parser.add_argument("--work", type=Path, default=Path("real_training"))
    parser.add_argument("--write", action="store_true", help="write the table of what is finished")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        (options.work / f"{name}.json").write_text(json.dumps(measure(name, options.data, options.work)))
    if options.write:
        done = [options.work / f"{name}.json" for name in CASES]
        RESULTS.write_text(table([json.loads(path.read_text()) for path in done if path.is_file()]))


if __name__ == "__main__":
    main()
