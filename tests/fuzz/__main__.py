"""Fuzzes the readers of files: ``python -m tests.fuzz --minutes 60 csq``.

Changes repair checksums and lengths, see `tests.support.fuzz_mutators`. Anything but a `CsqtoolError` is a finding, and
so is a file on which the readers of `.csq` differ. The exit code is 1 if there is one; its file is kept, for
``tests/golden_bad``.
`tests/fuzz/csq_readers.py` fuzzes the Python readers of `.csq` guided by coverage.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.support.fuzz_targets import TARGETS, fuzz


def main() -> int:
    """Fuzz the targets that are named, and print what was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="+", metavar="TARGET", choices=[*TARGETS, "all"], help=", ".join(TARGETS))
    parser.add_argument("--minutes", type=float, default=1.0, help="for each target [default: 1]")
    parser.add_argument("--runs", type=int, help="stop after so many files of each target")
    parser.add_argument("--seed", type=int, default=0, help="another one gives other files")
    parser.add_argument("--keep", type=Path, default=Path("findings"), help="folder for files with a finding")
    given = parser.parse_args()
    count = 0
    for name in TARGETS if "all" in given.targets else given.targets:
        found = fuzz(name, seconds=60 * given.minutes, runs=given.runs, seed=given.seed, keep=given.keep / name)
        rate = found.executions / max(found.seconds, 1e-9)
        print(f"{name}: {found.executions} files in {found.seconds:.0f} s ({rate:.1f} a second), "
              f"{len(found.findings)} findings", flush=True)  # fmt: skip
        for kind, path in found.findings.items():
            print(f"  {kind}  {path}", flush=True)
        count += len(found.findings)
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
