"""What a verification costs: seconds of `csqtool verify` on 1,000 samples, all levels, in a process of its own.

    python benchmarks/verify_cost.py model.safetensors [--samples 1000]      # prints Markdown; about a minute

Any finalized model can be named; it is exported first.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BACKENDS = (("onnxruntime",), ("onnxruntime", "reference"))


def csqtool(*arguments: object) -> float:
    """Run a verb and return its seconds."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "csqtool", *map(str, arguments)], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--samples", type=int, default=1000)
    arguments = parser.parse_args()
    print(f"| file, {arguments.samples} samples, {os.cpu_count()} cores | seconds |\n| --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        for suffix, verb in ((".onnx", "export"), (".csq", "pack")):
            file = Path(name) / f"model{suffix}"
            csqtool(verb, arguments.model, "-o", file)
            for backends in BACKENDS if suffix == ".onnx" else ((),):
                chosen = [word for backend in backends for word in ("--backend", backend)]
                seconds = csqtool("verify", file, "--against", arguments.model, "--samples", arguments.samples, *chosen)
                print(f"| {suffix} {' and '.join(backends)} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
