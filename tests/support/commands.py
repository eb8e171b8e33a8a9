"""Running commands in this process, and models built with them."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

from click.testing import CliRunner, Result

from csqtool.cli import cli
from csqtool.searching.options import BUILT_IN

ROOT = Path(__file__).parents[2]
DIGITS = f"{ROOT}/sample_models/digits_cnn/model.py:digits_cnn"
# Of a method that searches; one of fixed bits trains as long in all.
QUICK = ["--pretrain-epochs", "3", "--epochs", "2", "--finetune-epochs", "2", "--batch-size", "64"]
QUICK_FIXED = ["--pretrain-epochs", "3", "--epochs", "4", "--batch-size", "64"]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def ok(*arguments: object) -> Result:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result


def wait_for(path: Path, process: subprocess.Popen[str] | subprocess.Popen[bytes], *, seconds: float = 60) -> None:
    """Wait until a process has written a file."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise TimeoutError(f"{path} was not written; the process ended with {process.poll()}")
        time.sleep(0.02)


class Built:
    """A searched, finalized and exported digits network."""

    def __init__(self, folder: Path, act_bits: str, *more: object, method: str = "csq") -> None:
        self._name_files(folder)
        epochs = QUICK if BUILT_IN[method].searches else QUICK_FIXED
        ok("search", DIGITS, "--data", "digits", "--target-bits", 3, "--act-bits", act_bits, "--method", method,
           *epochs, *more, "-o", self.run)  # fmt: skip
        ok("finalize", self.run, "-o", self.model)
        ok("export", self.model, "--format", "onnx", "-o", self.onnx)
        ok("pack", self.model, "-o", self.csq)

    @classmethod
    def copied(cls, original: Path, folder: Path) -> Built:
        """Return what was built in a folder, copied to another one."""
        built = cls.__new__(cls)
        built._name_files(Path(shutil.copytree(original, folder, dirs_exist_ok=True)))
        return built

    def _name_files(self, folder: Path) -> None:
        self.run, self.model = folder / "run", folder / "model.safetensors"
        self.onnx, self.csq = folder / "model.onnx", folder / "model.csq"

    def verify(self, file: Path, *more: object) -> tuple[int, dict[str, object]]:
        result = invoke("verify", file, "--against", self.model, "--json", *more)
        return result.exit_code, json.loads(result.stdout)
