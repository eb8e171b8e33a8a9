"""Compiles the C reader, strictly and under sanitizers."""

import shutil
import subprocess

import pytest

from tests.support.csq_files import TESTS

HEADER = TESTS.parent / "csqtool" / "csq" / "c"
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"]
SANITIZERS = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def compiler(name):
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    return name


def build(output, *options, cc="gcc", source=TESTS / "c" / "dump.c"):
    done = subprocess.run(
        [compiler(cc), *STRICT, *options, f"-I{HEADER}", str(source), "-o", str(output)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return output
