"""Reconstruction of blocks one after the other (BRECQ, QDrop) against that of the whole network, which `quantize` does.

    python -m benchmarks.post_training_blocks --cache DIR [--data cifar10:DIR --weights resnet20.th] [--only lsq-1 …]

A block is trained against the float block's output, and those of its layers as in `csqtool.reconstruction`; its inputs
come from the blocks before it, which are quantized and trained. The forward pass ends with the block, so a step costs
less than one of the whole network: steps are chosen so that processor seconds are about equal. The network is the
narrow MobileNetV2 on digits, or, with data and weights, ResNet-20 on the first 3,000 test images. Rows are kept in the
cache as JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.nn.utils import parametrize

import csqtool
from benchmarks.post_training import MODEL
from benchmarks.post_training_digits import BLOCKS, trained
from csqtool import quantizing
from csqtool.data import load_data
from csqtool.evaluation import as_float, evaluate
from csqtool.model_source import ModelSource
from csqtool.nn.state_dict import load_weights
from csqtool.nn.watched import Watched
from csqtool.progress import Progress
from csqtool.reconstruction import Reconstruction, difference, dropping, layers_compared, optimizer_of
from csqtool.searching.loop import compute_small_weights
from csqtool.searching.network import Network
from csqtool.trees import call

TEST_SAMPLES = 3000
# Paths of the modules of each block, of which the last gives the block's output.
DIGITS_BLOCKS = [("0",), *((str(i + 1),) for i in range(len(BLOCKS))), (str(len(BLOCKS) + 1),), (str(len(BLOCKS) + 4),)]
RESNET_BLOCKS = [("conv1", "bn1"), *((f"layer{i}.{j}",) for i in (1, 2, 3) for j in (0, 1, 2)), ("linear",)]


class _Passed(Exception):
    """The forward pass has reached the end of the block."""


def _stop(*_: Any) -> None:
    raise _Passed


def train_blocks(
    blocks: Sequence[tuple[str, ...]],
    network: Network,
    method: Reconstruction[Any],
    teacher: nn.Module,
    batches: Iterable[Any],
    steps: int,
    told: Progress,
    *,
    drop: float = 0.0,
) -> None:
    """Train blocks in their order, each for an equal share of the steps; else as `csqtool.reconstruction.train`."""
    network.net.eval()
    sources, stream = method.sources, iter(batches)
    for block in blocks:
        method.sources = {name: source for name, source in sources.items() if _within(name, block)}
        _train_block(block, network, method, teacher, islice(stream, steps // len(blocks)), steps // len(blocks), drop)
        method.set_hard(True)
    method.sources = sources


def _within(name: str, block: Sequence[str]) -> bool:
    return any(name.startswith(f"{path}.") for path in block)


def _train_block(
    block: Sequence[str],
    network: Network,
    method: Reconstruction[Any],
    teacher: nn.Module,
    batches: Iterator[Any],
    steps: int,
    drop: float,
) -> None:
    net = network.net
    scales = [quantizer.scale for name, quantizer in net.quantizers.items() if _within(name, block)]
    plain = {name: p for name, p in network.model.named_parameters() if "parametrizations" not in name.split(".")}
    optimizer, rate = optimizer_of(method, scales, [p for name, p in plain.items() if _within(name, block)], steps)
    compared = {path for path in layers_compared(network) if path in block or _within(path, block)}
    end = block[-1]
    ours, theirs = Watched(network.model, compared | {end}), Watched(teacher, compared | {end})
    with ours, theirs:
        stops = [model.get_submodule(end).register_forward_hook(_stop) for model in (network.model, teacher)]
        for number, inputs in enumerate(batches):
            method.at_step(number / steps)
            with torch.no_grad():
                _passed(partial(call, teacher, inputs))
            with parametrize.cached():
                compute_small_weights(net)
                _passed(partial(net.observed, inputs, dropping(net, drop)) if drop else partial(call, net, inputs))
            errors = {
                name: difference(as_float(ours.outputs[name]), as_float(theirs.outputs[name])) for name in ours.outputs
            }
            error = errors[end] + sum(errors[name] for name in compared) / len(compared)
            added = method.regularization()
            optimizer.zero_grad()
            torch.autograd.backward(error if added is None else error + added)
            optimizer.step()
            rate.step()
            method.after_step()
            for quantizer in net.quantizers.values():
                quantizer.after_step()
        for handle in stops:
            handle.remove()


def _passed(run: Any) -> None:
    try:
        run()
    except _Passed:
        return
    raise AssertionError("the forward pass did not reach the end of the block")


def rows(steps: Mapping[bool, Sequence[int]]) -> dict[str, dict[str, Any]]:
    """Return the settings of every row, by its name.

    Args:
        steps: of the whole network at once, and in all of its blocks (True) together.
    """
    return {
        f"{kind}-{planes}-{'blocks' if blocks else 'whole'}-{count}": {
            "reconstruct": kind, "target_bits": planes, "steps": count, "blocks": blocks}
        for planes in (1, 2) for kind in ("lsq", "adaround") for blocks, counts in steps.items() for count in counts
    }  # fmt: skip


def main() -> None:
    """Measure the rows that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--only", nargs="*", help="names of rows")
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    data = load_data(arguments.data)
    if arguments.weights is None:
        net, blocks = trained(arguments.cache / "float.safetensors"), DIGITS_BLOCKS
        known = rows({False: (100, 400), True: (300, 1200)})
    else:
        net, blocks = ModelSource.of(MODEL).build(), RESNET_BLOCKS
        load_weights(net, arguments.weights)
        known = rows({False: (150, 250), True: (500,)})
    print("| row | steps | accuracy % | processor s |\n| --- | --- | --- | --- |")
    for name in known if arguments.only is None else arguments.only:
        path, settings = arguments.cache / f"{name}.json", dict(known[name])
        if not path.exists():
            one_by_one = settings.pop("blocks")
            train = partial(train_blocks, blocks) if one_by_one else quantizing.train
            before = time.process_time()
            with mock.patch.object(quantizing, "train", train):
                quantized = csqtool.quantize(
                    net, arguments.data, samples=1024, device="cpu", equalize=False, **settings
                )
            seconds = time.process_time() - before
            test = quantizing.FirstSamples(data.test, min(TEST_SAMPLES, len(data.test)))
            found = evaluate(csqtool.to_torch(quantized, net), test, data.task)
            path.write_text(json.dumps({"accuracy": found, "seconds": seconds}))
        row = json.loads(path.read_text())
        print(f"| {name} | {settings['steps']} | {100 * row['accuracy']:.2f} | {row['seconds']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
