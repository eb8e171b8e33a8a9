"""The systems of the CSQ paper's tables at one budget, each down to verified files: results/systems.md.

    OMP_NUM_THREADS=1 python -m benchmarks.systems digits FOLDER [METHOD,...]
    CIFAR10=DIR OMP_NUM_THREADS=1 nice python -m benchmarks.systems resnet20 FOLDER [METHOD,...] --weights FILE

The folder is that of `csqtool compare`, so a run that was stopped goes on, and methods can be added later. Both write
their table into results/systems.md and keep the other one.
"""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import csqtool
from csqtool.data import DataSource, load_data
from csqtool.quantizing import FirstSamples
from csqtool.searching.config import settings_used

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "systems.md"
METHODS = (
    "csq,bsq,msq,lsq,ste-uniform,dorefa,lq-nets,apot,zaq,measured,hawq,hawq-v2,hawq-v3,limpq,zeroq,quanos,"
    "gp,haq"  # need their extras
)
DIGITS: dict[str, Any] = {
    "model": f"{ROOT}/sample_models/digits_cnn/model.py:digits_cnn", "data": "digits", "jobs": 2,
    "pretrain_epochs": 20, "epochs": 6, "finetune_epochs": 6, "importance_steps": 60,
}  # fmt: skip
RESNET20: dict[str, Any] = {
    "model": f"{ROOT}/sample_models/resnet_cifar/model.py:resnet20", "data": f"{ROOT}/benchmarks/systems.py:cifar_part",
    "jobs": 1, "epochs": 0.0128, "finetune_epochs": 0.0128, "learning_rate": 0.01, "batch_size": 64, "amp": "bf16",
    "allocation_samples": 128, "hessian_steps": 10, "importance_steps": 10,
}  # fmt: skip
TEST_IMAGES = 2000


def cifar_part() -> DataSource:
    """Return CIFAR-10 from the folder in the variable CIFAR10, with its first test images alone."""
    source = load_data(f"cifar10:{os.environ['CIFAR10']}")
    return replace(source, test=FirstSamples(source.test, TEST_IMAGES))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=["digits", "resnet20"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("methods", nargs="?", default=METHODS)
    parser.add_argument("--weights")
    given = parser.parse_args()
    settings = dict(DIGITS if given.network == "digits" else RESNET20)
    settings |= {"target_bits": 2, "act_bits": 8} | ({"weights": given.weights} if given.weights else {})
    model, methods = settings.pop("model"), given.methods.split(",")
    used = {name for method in methods for name in settings_used({**settings, "method": method})}
    used |= {"jobs", "finetune_epochs"}  # the latter are added to the epochs of methods that do not search
    settings = {name: value for name, value in settings.items() if name in used}
    found = csqtool.compare(model, given.folder, methods=methods, progress=True, **settings)
    place = re.compile(rf"(<!-- table of {given.network} -->\n).*?(<!-- end of table -->)", re.DOTALL)
    before = RESULTS.read_text()
    RESULTS.write_text(place.sub(lambda marks: marks[1] + found.table() + marks[2], before))
    print(found.table())


if __name__ == "__main__":
    main()
