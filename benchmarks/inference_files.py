"""Bytes of archival and inference files of `.csq`: what they consist of, the metric of each, and target sizes met.

    python benchmarks/inference_files.py model.safetensors … [--data cifar10:DIR --model FILE.py:FACTORY]   # Markdown
    python benchmarks/inference_files.py --digits [--epochs 12]                 # ten target sizes; minutes

The first form takes finalized models of classifiers. With data, it compares the outputs of each with those of its
inference file, with and without --float16, on the first samples of the test set.
"""

from __future__ import annotations

import argparse
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from csqtool.csq import CsqFile, pack, read_csq
from csqtool.finalized_file import read_finalized
from csqtool.quantized_model import QuantizedModel

DIGITS = f"{Path(__file__).parent.parent}/sample_models/digits_cnn/model.py:digits_cnn"
WAYS: dict[str, dict[str, Any]] = {
    "archival": {}, "archival, context": {"encoding": "context"}, "inference": {"inference": True},
    "inference, context": {"inference": True, "encoding": "context"},
    "inference, float16": {"inference": True, "half": True},
    "inference, context, float16": {"inference": True, "encoding": "context", "half": True},
}  # fmt: skip
PARTS = ("BatchNorm, scales and biases", "counters of batches", "tensor table", "metadata", "preamble and padding")
TARGETS = ("3.4KB", "3.7KB", "4KB", "4.4KB", "4.8KB", "5.2KB", "5.6KB", "6KB", "6.5KB", "7KB")


def integer_bytes(content: bytes) -> int:
    return sum(entry.length for entry in CsqFile(content, where="m").entries.values() if entry.is_quantized)


def parts(content: bytes) -> dict[str, int]:
    """Return what a file consists of beside its integers, in bytes."""
    others = {e.name: e.length for e in CsqFile(content, where="m").entries.values() if not e.is_quantized}
    counters = sum(length for name, length in others.items() if name.endswith("num_batches_tracked"))
    table, metadata = struct.unpack_from("<II", content, 16)
    found = [sum(others.values()) - counters, counters, table, metadata]
    rest = len(content) - integer_bytes(content) - sum(found)
    return dict(zip(PARTS, [*found, rest], strict=True))


def parts_table(label: str, model: QuantizedModel) -> None:
    columns = [parts(pack(model, **WAYS[way])) for way in ("archival", "inference", "inference, float16")]
    print(f"\n| {label}: bytes beside the integers | archival | inference | inference, float16 |")
    print("| --- |" + " ---: |" * 3)
    for part in PARTS:
        print(f"| {part} | " + " | ".join(f"{column[part]:,}" for column in columns) + " |")
    print("| **together** | " + " | ".join(f"**{sum(column.values()):,}**" for column in columns) + " |", flush=True)


def sizes_table(models: dict[str, QuantizedModel]) -> None:
    print("\n| model | integers | " + " | ".join(WAYS) + " |")
    print("| --- |" + " ---: |" * (1 + len(WAYS)))
    for label, model in models.items():
        files = [pack(model, **way) for way in WAYS.values()]
        cells = [f"{integer_bytes(files[0]):,}", *(f"{len(file):,}" for file in files)]
        print(f"| {label} | " + " | ".join(cells) + " |", flush=True)


def outputs_table(models: dict[str, QuantizedModel], data: str, factory: str, count: int) -> None:
    """Compare the outputs of finalized models with those of their inference files."""
    from csqtool.data import first_samples
    from csqtool.rebuild import rebuilt_data, rebuilt_net
    from csqtool.verifying.outputs import agreement, reference_outputs, spread_of

    found = first_samples(rebuilt_data(next(iter(models.values())), data=data).test, count)
    assert found is not None
    inputs, targets = found
    print(f"\n| {count:,} samples | accuracy, finalized | inference | agreement | mean difference / spread ", end="")
    print("| inference, float16 | agreement | mean difference / spread |")
    print("| --- |" + " ---: |" * 7)
    for label, model in models.items():
        (wanted,) = reference_outputs(rebuilt_net(model, factory=factory), inputs).values()
        cells = [f"{100 * (wanted.argmax(1) == targets.numpy()).mean():.2f} %"]
        for way in ("inference", "inference, float16"):
            net = rebuilt_net(read_csq(pack(model, **WAYS[way]), where=label), factory=factory)
            (outputs,) = reference_outputs(net, inputs).values()
            off = np.abs(outputs.astype(np.float64) - wanted).mean() / spread_of(wanted)
            accuracy = 100 * (outputs.argmax(1) == targets.numpy()).mean()
            cells += [f"{accuracy:.2f} %", f"{100 * agreement(outputs, wanted):.2f} %", f"{off:.1e}"]
        print(f"| {label} | " + " | ".join(cells) + " |", flush=True)


def targets_table(epochs: int) -> None:
    from csqtool.searching.config import SearchConfig
    from csqtool.searching.runs import begin

    base: dict[str, Any] = {"model": DIGITS, "data": "digits", "act_bits": 8}
    print("\n| target | inference file | of it | accuracy | the same, archival |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        start = SearchConfig.make(**base, method="lsq", target_bits=7, pretrain_epochs=30, epochs=1)
        begin(start, Path(folder) / "start")
        weights = str(Path(folder) / "start" / "float.safetensors")
        for target in TARGETS:
            config = SearchConfig.make(
                **base, method="entropy", epochs=epochs, target_size=target, size_profile="inference", weights=weights
            )
            found = begin(config, Path(folder) / target)
            model = found.finalize()
            size, limit = len(pack(model, inference=True)), 1000 * float(target.removesuffix("KB"))
            row = f"{size:,} | {100 * size / limit:.2f} % | {100 * found.summary.metric:.1f} % | {len(pack(model)):,}"
            print(f"| {target} | {row} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, help="finalized models")
    parser.add_argument("--data")
    parser.add_argument("--model", help="factory of the models")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--digits", action="store_true")
    parser.add_argument("--epochs", type=int, default=12)
    arguments = parser.parse_args()
    models = {path.stem: read_finalized(path) for path in arguments.models}
    if models:
        parts_table(*next(iter(models.items())))
        sizes_table(models)
    if arguments.data:
        outputs_table(models, arguments.data, arguments.model, arguments.samples)
    if arguments.digits:
        targets_table(arguments.epochs)


if __name__ == "__main__":
    main()
