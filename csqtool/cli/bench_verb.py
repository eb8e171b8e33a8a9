"""``csqtool bench``."""

from __future__ import annotations

from pathlib import Path

import click

from csqtool.cli.output import print_json, show
from csqtool.errors import ConfigError
from csqtool.text import size, table

FILE = click.Path(path_type=Path)


@click.command()
@click.argument("model", type=FILE)
@click.option("--against", type=FILE, multiple=True, help="Another file to measure in the same run.")
@click.option("--threads", type=int, default=1, show_default=True, help="Threads of one operator.")
@click.option("--batch", type=int, default=1, show_default=True, help="Samples a run.")
@click.option("--size", "sizes", multiple=True, metavar="AXIS=N", help="Size of another dynamic axis. Repeatable.")
@click.option("--rounds", type=int, default=50, show_default=True, help="Runs of each file, interleaved.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def bench(
    model: Path,
    against: tuple[Path, ...],
    threads: int,
    batch: int,
    sizes: tuple[str, ...],
    rounds: int,
    as_json: bool,
) -> None:
    """Measure the ONNX file MODEL in onnxruntime: latency, load time, memory, bytes, kernels."""
    import csqtool
    from csqtool.benchmarking import BenchDocument
    from csqtool.documents import plain

    results = csqtool.bench([model, *against], threads=threads, batch=batch, sizes=_sizes(sizes), rounds=rounds)
    if as_json:
        print_json(plain(BenchDocument(threads, batch, rounds, results)))
        return
    rows = [
        (r.file, size(r.size_bytes), f"{r.median_ms:.3f}", f"{r.ratio:.2f}", f"{r.load_ms:.1f}",
         f"{r.load_peak_bytes / 1e6:.1f}")
        for r in results
    ]  # fmt: skip
    show(f"onnxruntime, {threads} threads, batch {batch}, medians of {rounds} interleaved runs\n")
    show(table(("file", "bytes", "ms a run", "ratio", "load ms", "load peak MB"), rows))
    for r in results:
        show(f"\n{r.file}: " + ", ".join(f"{count} {name}" for name, count in r.kernels.items()))


def _sizes(sizes: tuple[str, ...]) -> dict[str, int]:
    found = {}
    for given in sizes:
        axis, equals, number = given.rpartition("=")
        if not equals or not axis or not number.isdecimal():
            raise ConfigError(f"--size {given!r}: write AXIS=N, such as 2=224")
        found[axis] = int(number)
    return found
