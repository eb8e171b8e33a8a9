"""The systems of the CSQ paper's tables at one budget, each down to verified files: results/systems.md.

    OMP_NUM_THREADS=1 python -m benchmarks.systems digits FOLDER [METHOD,...]
    CIFAR10=DIR OMP_NUM_THREADS=1 nice python -m benchmarks.systems resnet20 FOLDER [METHOD,...] --weights FILE
    CIFAR10=DIR OMP_NUM_THREADS=1 nice python -m benchmarks.systems vgg19bn FOLDER [METHOD,...]

The folder is that of `csqtool compare`, so a run that was stopped goes on, and methods can be added later. On CIFAR-10
a float network is trained first, which all methods start from; ``float32``, in the place of a method, trains it further
for as many steps as the others. Each network writes its table into results/systems.md and keeps the others.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

import csqtool
from csqtool.data import DataSource, load_data
from csqtool.errors import InputError
from csqtool.quantizing import FirstSamples
from csqtool.searching.config import settings_used
from csqtool.searching.run_directory import RunDirectory
from sample_models.resnet_cifar.model import resnet20
from sample_models.vgg_cifar.model import vgg19_bn

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "systems.md"
METHODS = (
    "csq,bsq,msq,lsq,ste-uniform,dorefa,lq-nets,apot,zaq,measured,hawq,hawq-v2,hawq-v3,limpq,zeroq,quanos,"
    "gp,haq"  # need their extras
)
DIGITS: dict[str, Any] = {
    "model": f"{ROOT}/sample_models/digits_cnn/model.py:digits_cnn", "data": "digits", "jobs": 2, "act_bits": 8,
    "pretrain_epochs": 20, "epochs": 6, "finetune_epochs": 6, "importance_steps": 60,
}  # fmt: skip
STEPS = 60 / 781  # epochs, of the search and again of finetuning, in batches of 64
CIFAR: dict[str, Any] = {
    "jobs": 1, "epochs": STEPS, "finetune_epochs": STEPS, "batch_size": 64, "learning_rate": 0.02,
    "amp": "no", "compile": "no", "beta_schedule": "step", "repair_samples": 256, "allocation_samples": 128,
    "hessian_steps": 12, "trace_samples": 64, "trace_draws": 4, "importance_steps": 15, "synthetic_steps": 100,
    "gp_curves": 16, "gp_steps": 2, "haq_episodes": 100,
}  # fmt: skip
OWN = {"measured": {"allocation_samples": 256}}  # as many as settle the schemes of methods that search
FLOAT_TRAINING: dict[str, Any] = {"pretrain_epochs": 2, "batch_size": 128, "learning_rate": 0.02, "amp": "bf16"}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {  # and what differs in their float training
    "resnet20": (resnet20, {}),
    # From random weights, at a quarter of its width: what one core can do.
    "vgg19bn": (lambda: vgg19_bn(width=0.25), {"pretrain_epochs": 4, "learning_rate": 0.05}),
}
TEST_IMAGES = 1000


def cifar_part() -> DataSource:
    """Return CIFAR-10 from the folder in the variable CIFAR10, with its first test images alone."""
    source = load_data(f"cifar10:{os.environ['CIFAR10']}")
    return replace(source, test=FirstSamples(source.test, TEST_IMAGES))


def float_network(folder: Path, **training: Any) -> str:
    """Train the float network, unless the folder has it, and return the file of its weights."""
    if not (folder / "summary.json").is_file():
        csqtool.search(run=folder, overwrite=True, method="lsq", target_bits=7, epochs=0.001, progress=True, **training)
    return str(RunDirectory(folder).float_weights)


def compared(folder: Path, methods: Sequence[str], given: Mapping[str, Any]) -> None:
    """Compare methods, each with the settings that it has."""
    used = {name for method in methods for name in settings_used({**given, "method": method})}
    used |= {"jobs", "finetune_epochs"}  # the latter are added to the epochs of methods that do not search
    settings = {name: value for name, value in given.items() if name in used - {"model", "data"}}
    try:
        csqtool.compare(given["model"], folder, methods=methods, data=given["data"], progress=True, **settings)
    except InputError as error:  # its row says so
        print(f"{', '.join(methods)}: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=["digits", *NETWORKS])
    parser.add_argument("folder", type=Path)
    parser.add_argument("methods", nargs="?")
    parser.add_argument("--weights")
    given = parser.parse_args()
    folder: Path = given.folder
    if given.network == "digits":
        compared(folder, (given.methods or METHODS).split(","), {**DIGITS, "target_bits": 2})
    else:
        # Objects stay in one process: importing and reading once saves a fifth of the time.
        build, own_training = NETWORKS[given.network]
        settings = {**CIFAR, "model": build(), "data": cifar_part(), "target_bits": 2}
        common = {name: settings[name] for name in ("model", "data", "compile")}
        training = {**FLOAT_TRAINING, **own_training, "weights": given.weights}
        settings["weights"] = float_network(folder / "float", **common, **training)
        for method in (given.methods or f"{METHODS},float32").split(","):
            if method == "float32":
                rest = {name: settings[name] for name in ("batch_size", "learning_rate", "amp", "weights")}
                float_network(folder / "float32", pretrain_epochs=2 * settings["epochs"], **common, **rest)
            else:
                compared(folder, [method], settings | OWN.get(method, {}))
    table = (folder / "comparison.md").read_text()
    place = re.compile(rf"(<!-- table of {given.network} -->\n).*?(<!-- end of table -->)", re.DOTALL)
    RESULTS.write_text(place.sub(lambda marks: marks[1] + table + marks[2], RESULTS.read_text()))
    print(table)


if __name__ == "__main__":
    main()
