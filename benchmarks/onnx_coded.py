"""What coded weights cost in ONNX: bytes, load time and latency beside the packed form of the same finalized models.

    python benchmarks/onnx_coded.py --module resnet_cifar/model.py:resnet20 FINALIZED.safetensors …   # prints Markdown

Times are those of the process on one core, the smallest of interleaved loads and runs: other work counts little.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import samples

from csqtool import csq
from csqtool.finalized_file import read_finalized
from csqtool.onnx_session import session
from exporters.onnx import OnnxOptions, rewritten_proto
from exporters.onnx.capture import capture

FORMS = ("packed", "auto")


def seconds(work: Callable[[], Any]) -> float:
    """Return the processor time of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def main() -> None:
    """Print a row for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--module", default=samples.RESNET20, help="a factory below sample_models/")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    net = samples.build(given.module)
    row("model", "bits a weight", "integers' entropy-coded bytes in .csq", "packed", "auto", "auto / packed",
        "layers coded", "load, packed ms", "load, auto / packed", "latency, auto / packed")  # fmt: skip
    row(*["---"] * 10)
    for file in given.files:
        model = read_finalized(file)
        content, coded = {}, 0
        for form in FORMS:
            proto, _, storage = rewritten_proto(
                capture(model, copy.deepcopy(net), ()), model, OnnxOptions(weights=form)
            )
            content[form] = proto.SerializeToString(deterministic=True)
            coded = sum(text.startswith("coded") for text in storage.values())
        loads: dict[str, list[float]] = {form: [] for form in FORMS}
        runs: dict[str, list[float]] = {form: [] for form in FORMS}
        loaded = {form: session(content[form], threads=1) for form in FORMS}
        shape = (1, *(model.info.inputs or ())[0].shape)
        inputs = {"input": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
        for _ in range(given.rounds):
            for form in FORMS:
                loads[form].append(seconds(partial(session, content[form], threads=1)))
                for _ in range(10):
                    runs[form].append(seconds(partial(loaded[form].run, None, inputs)))
        sizes = {form: len(content[form]) for form in FORMS}
        integers = sum(csq.integer_bytes(layer.q) for layer in model.layers)
        load, run = ({form: min(times[form]) for form in FORMS} for times in (loads, runs))
        row(file.stem, f"{8 * integers / sum(layer.elements for layer in model.layers):.2f}", f"{integers:,}",
            f"{sizes['packed']:,}", f"{sizes['auto']:,}", f"{sizes['auto'] / sizes['packed']:.3f}",
            f"{coded} of {len(model.layers)}", f"{1e3 * load['packed']:.1f}",
            f"{load['auto'] / load['packed']:.2f}", f"{run['auto'] / run['packed']:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
