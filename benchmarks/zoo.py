"""Networks of torchvision, timm, transformers, ultralytics and smp on the whole way: search, finalize, export, verify.

``python -m benchmarks.zoo`` takes every network, with float and with 8-bit activations, each in a process of its own,
and appends a line to ``zoo.jsonl``; what is in it is not done again. ``--write`` makes the table. The networks have
their shipped form, random weights that learn the inputs for 20 steps, and BatchNorm statistics of the inputs; inputs
are small and random, and a search takes two steps: the question is whether a network comes through, and whether the
files compute the same. Images have large and small shapes, as photographs do. Extra ``zoo``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks.zoo_networks import SAMPLES, declare_missing_operators, networks

if TYPE_CHECKING:
    from csqtool import QuantizedModel

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "zoo.md"
OLD_ROWS = (
    " Rows marked older are from before that: with images of noise, weights that had learned nothing, and mostly a "
    "`verify` that also accepted values on a rounding boundary; they say how large and slow a network is, no more."
)


class AnyOutputs:
    """A task for outputs of any structure: the mean square of all of them, which says nothing about a network.

    The metric is its logarithm: `verify` allows a difference of 0.01, which must mean the same for outputs of any size.
    """

    name, metric_name, labels = "any", "-log10 of the mean square", False

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        from csqtool.trees import tensors

        values = [t.float().square().mean() for t in tensors(outputs) if t.is_floating_point()]
        return torch.stack(values).mean()

    def metric(self, outputs: Any, targets: Any) -> float:
        return -math.log10(max(float(self.loss(outputs, targets)), 1e-30))


def learn(module: nn.Module, inputs: Any) -> None:
    """Train a network for a few steps to tell its inputs apart, in place: to each it should answer random numbers.

    In a deep network with random weights the noise of rounding is a tenth of the outputs' spread, and two programs that
    round one value differently are as far apart. In networks that have learned something it is far less.
    """
    from csqtool.trees import call, tensors

    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    wanted: list[Tensor] = []
    module.train()
    for _ in range(20):
        outputs = [t for t in tensors(call(module, inputs)) if t.is_floating_point()]
        # Of a map one number a channel: it could not learn one for each place.
        wanted = wanted or [torch.randn((*t.shape[:2], 1, 1) if t.ndim == 4 else t.shape) for t in outputs]
        loss = torch.stack([(a - b).square().mean() for a, b in zip(outputs, wanted, strict=True)]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def sensitivity(net: nn.Module, images: Any) -> float | None:
    """Return by how much of their spread PyTorch's own outputs move with one value of each image, None without images.

    The value moves by 0.05, one or two steps of the input's quantizer. Where that moves outputs by a tenth of their
    spread, so does any rounding: nothing can be said about two programs from their outputs, only from their layers.
    """
    from csqtool.trees import tensors

    if not isinstance(images, Tensor) or images.ndim != 4:
        return None
    moved = images.clone()
    moved[:, 0, 10, 10] += 0.05
    before, after = (torch.cat([t.float().flatten(1) for t in tensors(net(x))], dim=1) for x in (images, moved))
    return float((after - before).abs().mean() / before.std())


def state_of_code() -> str:
    """Return the commit that a row is measured with, empty outside of a repository."""
    line = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(line, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def shares(module: nn.Module, model: QuantizedModel) -> dict[str, float]:
    """Return the shares of parameters that are quantized, and that are weights which forward never computes with."""
    from csqtool.nn.weights import unused_weights

    sizes = {name: p.numel() for name, p in module.named_parameters()}
    never = unused_weights(module, {layer.name for layer in model.layers} | set(model.tied))
    return {
        "coverage": sum(layer.q.size for layer in model.layers) / sum(sizes.values()),
        "never_computed": sum(sizes[name] for name in never) / sum(sizes.values()),
    }


def measure(name: str, act_bits: int | None) -> dict[str, Any]:
    """Take one network all the way; return the row."""
    import csqtool
    from csqtool.api.given import named_or_source
    from csqtool.evaluation import reestimate_batch_norm
    from csqtool.onnx_kernels import integer_share

    declare_missing_operators()
    build, example = networks()[name]
    torch.manual_seed(0)
    row: dict[str, Any] = {"network": name, "act_bits": act_bits, "code": state_of_code(), "stage": "build"}
    began = time.monotonic()
    try:
        module = build()
        inputs = example()
        learn(module, inputs)
        batch = [(inputs, torch.zeros(SAMPLES))]
        source, _ = named_or_source(None, batch, batch, AnyOutputs(), None)
        assert source is not None
        reestimate_batch_norm(module, source.for_model(module), torch.device("cpu"), batch_size=SAMPLES, seed=0)
        parameters = sum(p.numel() for p in module.parameters())
        row |= {"parameters": parameters, "stage": "search"}
        result = csqtool.search(
            module, train=batch, test=batch, task=AnyOutputs(), target_bits=3, planes=4, max_bits=4, act_bits=act_bits,
            epochs=1, finetune_epochs=1, learning_rate=1e-5, repair=False, compile="no", amp="no",
        )  # fmt: skip
        row["stage"] = "finalize"
        model = result.finalize()
        row |= shares(module, model) | {"stage": "export"}
        row["sensitivity"] = sensitivity(csqtool.to_torch(model, module), inputs)
        with tempfile.TemporaryDirectory() as folder:
            for suffix in ("onnx", "csq"):
                row["stage"] = f"export {suffix}"
                path = Path(folder) / f"m.{suffix}"
                done = csqtool.export(model, path, model=module)
                row[f"{suffix}_bytes"] = path.stat().st_size
                if suffix == "onnx":
                    row |= {"integer_share": integer_share(path.read_bytes()), "float32_bytes": done.float32_bytes}
                row["stage"] = f"verify {suffix}"
                report = csqtool.verify(path, model, model=module, data=batch, task=AnyOutputs())
                row[f"verify_{suffix}"] = report.passed
                failed = [f"{c.level} {c.name}: {c.detail}"[:200] for c in report.failures]
                if failed:
                    row[f"failed_{suffix}"] = failed[:3]
                    row["failed_levels"] = sorted({*row.get("failed_levels", ()), *(c.level for c in report.failures)})
        row["stage"] = "done"
    except csqtool.CsqtoolError as error:
        row["refused"] = str(error)[:300]
    except Exception as error:
        row["crashed"] = f"{type(error).__name__}: {error}"[:300]
    row |= {
        "seconds": round(time.monotonic() - began, 1),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    return row


def run_all(chosen: list[str], path: Path, workers: int, limit: float, bits: list[int | None]) -> None:
    """Measure what is not in `path` yet, each network in a process of its own."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    done = {(row["network"], row["act_bits"]) for row in rows}
    jobs = [(name, bits_) for bits_ in bits for name in chosen if (name, bits_) not in done]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def one(job: tuple[str, int | None]) -> None:
        name, act_bits = job
        line = [sys.executable, "-m", "benchmarks.zoo", "--one", name, "--act-bits", str(act_bits or 0)]
        try:
            made = subprocess.run(
                line, capture_output=True, text=True, timeout=limit, check=False, env=environment, cwd=ROOT
            )
            last = made.stdout.strip().splitlines()[-1:] or [""]
            row = json.loads(last[0]) if last[0].startswith("{") else {
                "network": name, "act_bits": act_bits, "crashed": f"exit {made.returncode}: {made.stderr[-200:]}"
            }  # fmt: skip
        except subprocess.TimeoutExpired:
            row = {"network": name, "act_bits": act_bits, "crashed": f"took more than {limit:g} s"}
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(verdict(row), row["network"], row["act_bits"], row.get("seconds"), row.get("refused") or
              row.get("crashed") or row.get("failed_onnx") or "", flush=True)  # fmt: skip

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, jobs))


def verdict(row: Mapping[str, Any]) -> str:
    """Return a word for how a network ended."""
    if "crashed" in row:
        return "CRASH"
    if "refused" in row:
        return "refused" if row["stage"] in ("build", "search") else f"LATE ({row['stage']})"
    return "PASS" if row.get("verify_onnx") and row.get("verify_csq") else "FAIL"


def is_older(row: Mapping[str, Any]) -> bool:
    """Tell whether a row is from before rows named their commit."""
    return "code" not in row


def counted(found: list[str]) -> str:
    """Return how often each verdict was found."""
    return ", ".join(f"{found.count(word)} {word}" for word in dict.fromkeys(found))


def reasons(row: Mapping[str, Any]) -> str:
    """Return why a network did not pass."""
    failed = row.get("failed_onnx") or row.get("failed_csq") or []
    if row.get("failed_levels") == ["outputs"] and row.get("sensitivity"):
        failed = [*failed, "all layers hold, but PyTorch's own outputs move by "
                  f"{row['sensitivity']:.0%} of their spread where one value of each image moves by 0.05"]  # fmt: skip
    return str(row.get("refused") or row.get("crashed") or "; ".join(failed))


def covered(row: Mapping[str, Any]) -> str:
    """Return the share of parameters that are quantized, and the share that is never computed."""
    if "coverage" not in row:
        return ""
    never = row.get("never_computed", 0)
    return f"{row['coverage']:.0%}" + (f" ({never:.0%} never computed)" if never >= 0.01 else "")


def commits(plain: Mapping[str, Any], eight: Mapping[str, Any]) -> str:
    """Return the commits that a network was measured with, that of float activations apart where it is another one."""
    own, other = (row.get("code", "older") if row else None for row in (eight, plain))
    return " ".join([own] if own and other in (None, own) else [*([own] if own else []), f"(float: {other})"])


def table(path: Path) -> str:
    """Return the table as Markdown."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    latest = {(row["network"], row["act_bits"]): row for row in rows}
    names = list(dict.fromkeys(name for name, _ in latest))
    counts = {
        f"{'float' if bits is None else f'{bits}-bit'} activations{', older rows' if is_old else ''}": counted(
            [verdict(latest[n, bits]) for n in names if (n, bits) in latest and is_old == is_older(latest[n, bits])]
        )
        for bits in (None, 8) for is_old in (False, True)
    }  # fmt: skip
    heads = ["network", "parameters", "coverage", "float: verdict", "8 bits: verdict", "integer share", "ONNX", ".csq",
             "of float32", "seconds", "peak memory", "commit"]  # fmt: skip
    lines = [
        "# Networks that people deploy", "", __doc__.strip().splitlines()[0], "",
        "Random weights that learned the inputs for 20 steps, BatchNorm statistics of the inputs, small random inputs, "
        "a search of two steps; torch "
        + torch.__version__
        + f", {platform.machine()}, {os.cpu_count()} CPUs, one thread a network, one or two at a time. Coverage is the "
        "share of parameters that are quantized, beside it the share in layers that forward never computes, where it "
        "is 1 % and more; integer share that of compute nodes on onnxruntime's integer kernels; "
        "bytes, seconds of the clock, also beside much other work, and memory are those with 8-bit activations. "
        "What is refused is refused before training. "
        "Each row names the commit it was measured with." + (OLD_ROWS if any(map(is_older, latest.values())) else "")
        + " Repeat: `python -m benchmarks.zoo`.", "",
        *(f"- {which}: {found}" for which, found in counts.items() if found),
        "", "| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads),
    ]  # fmt: skip
    for name in names:
        plain, eight = latest.get((name, None), {}), latest.get((name, 8), {})
        best = eight if "onnx_bytes" in eight else plain
        cells = [
            name, f"{best['parameters'] / 1e6:.2f} M" if "parameters" in best else "",
            covered(best),
            verdict(plain) if plain else "", verdict(eight) if eight else "",
            f"{eight['integer_share']:.0%}" if "integer_share" in eight else "",
            f"{best['onnx_bytes'] / 1e6:.2f} MB" if "onnx_bytes" in best else "",
            f"{best['csq_bytes'] / 1e6:.2f} MB" if "csq_bytes" in best else "",
            f"{best['onnx_bytes'] / best['float32_bytes']:.2f}" if best.get("float32_bytes") else "",
            str(best.get("seconds", "")), f"{best['peak_bytes'] / 1e9:.1f} GB" if "peak_bytes" in best else "",
            commits(plain, eight),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    wrong = [row for row in latest.values() if verdict(row) != "PASS"]
    if wrong:
        lines += ["", "What did not pass:", ""]
        lines += [
            f"- {row['network']}, {'float' if row['act_bits'] is None else '8-bit'} activations, "
            f"{row.get('code', 'older')}: {verdict(row)}: {reasons(row)}"
            for row in wrong
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="networks as library:name, or libraries; all by default")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--act-bits", type=int, help="8, or 0 for float; both by default")
    parser.add_argument("--results", type=Path, default=Path("zoo.jsonl"))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--limit", type=float, default=600, help="seconds a network")
    parser.add_argument("--write", action="store_true", help="write the table of what is in the results")
    options = parser.parse_args()
    bits = [8, None] if options.act_bits is None else [options.act_bits or None]
    if options.one:
        print(json.dumps(measure(options.one, bits[0])))
        return
    if options.write:
        RESULTS.write_text(table(options.results))
        return
    everything = list(networks())
    wanted = options.names or everything
    chosen = dict.fromkeys(n for w in wanted for n in everything if w in (n, n.partition(":")[0]))
    run_all(list(chosen), options.results, options.workers, options.limit, bits)


if __name__ == "__main__":
    main()
