"""What a verification costs: seconds of `csqtool verify` on 1,000 samples, all levels, in a process of its own.

    python benchmarks/verify_cost.py model.safetensors [--samples 1000]      # prints Markdown; about a minute

Any finalized model can be named; it is exported first. Processor seconds are those of the process and of the ones that
it starts, user and system: on a machine that others use, only they can be compared.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BACKENDS = (("onnxruntime",), ("onnxruntime", "reference"))


def csqtool(*arguments: object) -> tuple[float, float]:
    """Run a verb and return its seconds, by the clock and of processors."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "csqtool", *map(str, arguments)], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--factory", help="of the module, instead of the recorded one")
    parser.add_argument("--data", help="instead of the recorded ones")
    arguments = parser.parse_args()
    model = ["--model", arguments.factory] if arguments.factory else []
    data = ["--data", arguments.data] if arguments.data else []
    print(
        f"| file, {arguments.samples} samples, {os.cpu_count()} cores | seconds | of processors |\n| --- | --- | --- |"
    )
    with tempfile.TemporaryDirectory() as name:
        for suffix, verb in ((".onnx", "export"), (".csq", "pack")):
            file = Path(name) / f"model{suffix}"
            csqtool(verb, arguments.model, *model, "-o", file)
            for backends in BACKENDS if suffix == ".onnx" else ((),):
                chosen = [word for backend in backends for word in ("--backend", backend)]
                seconds, used = csqtool(
                    "verify", file, "--against", arguments.model, "--samples", arguments.samples, *model, *data, *chosen
                )
                print(f"| {suffix} {' and '.join(backends)} | {seconds:.1f} | {used:.1f} |", flush=True)


if __name__ == "__main__":
    main()
