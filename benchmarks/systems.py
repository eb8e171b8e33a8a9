"""The systems of the CSQ paper's tables at one budget on digits, each down to verified files: results/systems.md.

    OMP_NUM_THREADS=1 python -m benchmarks.systems FOLDER [METHOD,...]

The folder is that of `csqtool compare`, so a run that was stopped goes on, and methods can be added later.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import csqtool

ROOT = Path(__file__).resolve().parent.parent
METHODS = "csq,bsq,lsq,measured,hawq,hawq-v2,hawq-v3,zeroq,quanos,msq,lq-nets,apot,zaq"
SETTINGS: dict[str, Any] = {"target_bits": 2, "act_bits": 8, "pretrain_epochs": 20, "epochs": 6, "finetune_epochs": 6}
TEXT = """# The systems of the paper's tables on digits

`python -m benchmarks.systems FOLDER`: `csqtool compare` of `sample_models/digits_cnn` (8,032 weights) on the bundled
digits (1,347 training and 450 test images), 2 planes a weight on average, 8-bit activations. All start from one float
network, trained for 20 epochs{level}. `csq`, `bsq` and `msq` search for 6 epochs and finetune for 6;
allocators and trainers train for 12 at their scheme. Seed 0 alone, one thread, a machine of two cores that others used
too: seconds compare poorly, and with one seed and 450 images differences below a point mean nothing.

{table}
Planes that learned step sizes train at a scheme of the float model did better here than those that `csq` and `bsq`
search in so few epochs, and the allocators hardly differ from each other, nor from equal planes (`lsq`).

Every ONNX and `.csq` file was verified by `csqtool verify` against PyTorch, on all test images.

`msq` with three seeds: 0.981 on average at `--lsb-strength 1`, 0.971 at 0.1; without the L1, two seeds, 0.984. So the
dropping by the Hessian's trace does the work here, not the sparse bits: 6 epochs are too short for these.

`lq-nets` and `apot` have as many levels as planes say, of integers with more bits: the packed file stores which level,
the ONNX file the integer. `zaq` trains on no image and no label. What draws the generated images to BatchNorm's
statistics is ours: without it (`--statistics-strength 0`, as published) the accuracy moved between 0.86 and 0.95 from
epoch to epoch and ended at 0.87; after 6 epochs it was 0.971 at a strength of 1 and 0.984 at 10, the default.

Rows that are missing: HAQ (a reinforcement learner) and the multi-task GP are not in csqtool; nor is
LIMPQ. `hawq`, `hawq-v2`, `hawq-v3`, `zeroq` and `quanos` allot planes as [methods](../../docs/methods.md#allocators)
says, and `lsq` trains at their schemes: their own quantizers and finetuning are not repeated. ResNet-20 and VGG19-BN on
CIFAR-10, and DoReFa and STE-Uniform, were not run.
"""


def main() -> None:
    folder = Path(sys.argv[1])
    methods = (sys.argv[2] if len(sys.argv) > 2 else METHODS).split(",")
    model = f"{ROOT}/sample_models/digits_cnn/model.py:digits_cnn"
    found = csqtool.compare(model, folder, data="digits", methods=methods, jobs=2, progress=True, **SETTINGS)
    metric = found.sweep.metric_float
    level = "" if metric is None else f" (accuracy {metric:.4f})"
    (ROOT / "benchmarks" / "results" / "systems.md").write_text(TEXT.format(level=level, table=found.table()))
    print(found.table())


if __name__ == "__main__":
    main()
