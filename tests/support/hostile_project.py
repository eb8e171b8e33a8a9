"""A project with one file of every kind that csqtool reads, and the commands that read each."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import Result

from tests.support.commands import invoke
from tests.support.fuzz_targets import CORPUS, place_project
from tests.support.hostile_fields import (
    CSQ,
    FACTORIES,
    FAMILIES,
    JSON,
    LINES,
    NPZ,
    ONNX,
    PATHS,
    SAFETENSORS,
    TOML,
    TORCH,
    Codec,
    Place,
    named,
)
from tests.support.watch import watched

SWEEP = ["--data", "npz:data.npz", "--methods", "lsq", "--target-bits", 3, "--act-bits", 8, "--batch-size", 32,
         "--pretrain-epochs", 1, "--epochs", 1, "--finetune-epochs", 0, "--jobs", 1]  # fmt: skip
RUN = "lsq-3bits-seed0"
PIPELINE = """output = "build"
[model]
factory = "net.py:net"
args = {}
[data]
source = "npz:data.npz"
[search]
target_bits = 3
exclude = ["x"]
pin = {"5.weight" = 6}
[export]
formats = ["csq", "onnx"]
[export.onnx]
weights = "int8"
[verify]
samples = 16
min_agreement = 0.5
"""


@dataclass(frozen=True)
class Reader:
    """A command that reads the changed file.

    Attributes:
        arguments: of csqtool.
        one_in: it is given so many changed files less than others, because it takes long.
        writes: a folder of the project that it may write to, beside ``out``; set up again after it.
    """

    arguments: tuple[object, ...]
    one_in: int = 1
    writes: str | None = None


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        file: one of it, in the project.
        codec: how it is changed.
        readers: what reads it.
    """

    file: str
    codec: Codec
    readers: tuple[Reader, ...]


def reader(*arguments: object, one_in: int = 1, writes: str | None = None) -> Reader:
    return Reader(arguments, one_in, writes)


def looked_at(file: str, *more: Reader, shown: str | None = None) -> tuple[Reader, ...]:
    """Return the commands that read most files, and others."""
    return reader("inspect", file), reader("report", shown or file, "-o", "out/page.html", one_in=SOME), *more


SOME, RARE = 8, 60
NAMING = {"factory", "model", "data", "source"}
SAMPLES = ("--samples", 4)
FINALIZE = reader("finalize", "run", "-o", "out/f.safetensors", one_in=SOME, writes="run")
RESUME = reader("search", "--resume", "run", one_in=SOME, writes="run")
GO_ON = reader("search", "--resume", "begun", one_in=RARE, writes="begun")
SWEEP_AGAIN = reader("sweep", "net.py:net", *SWEEP, "-o", "sweep", one_in=SOME, writes="sweep")
OF_SWEEP = (
    reader("report", "sweep", "-o", "out/page.html", one_in=SOME),
    reader("best", "sweep", "-o", "out/best.safetensors", writes="sweep"),
)
KINDS = {
    "finalized": Kind("m.safetensors", SAFETENSORS, looked_at(
        "m.safetensors", reader("diff", "m.safetensors", "same.safetensors"),
        reader("pack", "m.safetensors", "-o", "out/p.csq"),
        reader("pack", "m.safetensors", "--float16", "-o", "out/h.csq", one_in=SOME),
        reader("verify", "m.csq", "--against", "m.safetensors", *SAMPLES, one_in=SOME),
        reader("pack", "m.safetensors", "--with-graph", "-o", "out/g.csq", one_in=RARE),
        reader("export", "m.safetensors", "-o", "out/e.onnx", one_in=RARE),
        reader("export", "m.safetensors", "--format", "c", "-o", "out/c", one_in=RARE),
    )),
    "archival csq": Kind("m.csq", CSQ, looked_at(
        "m.csq", reader("unpack", "m.csq", "-o", "out/u.safetensors"),
        reader("verify", "m.csq", "--against", "m.safetensors", *SAMPLES, one_in=SOME),
    )),
    "inference csq": Kind("i.csq", CSQ, looked_at(
        "i.csq", reader("verify", "i.csq", "--against", "m.safetensors", *SAMPLES, one_in=SOME),
    )),
    "csq with a graph": Kind("g.csq", CSQ, looked_at(
        "g.csq", reader("unpack", "g.csq", "-o", "out/u.onnx"),
        reader("verify", "g.csq", "--against", "m.safetensors", *SAMPLES, one_in=RARE),
    )),
    "onnx": Kind("m.onnx", ONNX, looked_at(
        "m.onnx", reader("bench", "m.onnx", "--rounds", 1, one_in=SOME),
        reader("verify", "m.onnx", "--against", "m.safetensors", *SAMPLES, one_in=RARE),
    )),
    "settings of a run": Kind("run/config.json", JSON, looked_at("run/config.json", reader("inspect", "run"), FINALIZE,
                                                                 RESUME, shown="run")),
    "scheme": Kind("run/scheme.json", JSON, looked_at("run/scheme.json", FINALIZE, RESUME, shown="run")),
    "summary": Kind("run/summary.json", JSON, looked_at("run/summary.json", FINALIZE, RESUME, shown="run")),
    "log": Kind("run/log.jsonl", LINES, looked_at("run/log.jsonl", FINALIZE, RESUME, shown="run")),
    "checkpoint": Kind("run/checkpoints/last.pt", TORCH, (
        reader("inspect", "run/checkpoints/last.pt"),
        reader("finalize", "run", "-o", "out/f.safetensors", one_in=SOME, writes="run"),
    )),
    "checkpoint of a search that goes on": Kind("begun/checkpoints/last.pt", TORCH, (GO_ON,)),
    "settings of a search that goes on": Kind("begun/config.json", JSON, (reader("inspect", "begun"), GO_ON)),
    "float weights": Kind("run/float.safetensors", SAFETENSORS, (
        reader("inspect", "run/float.safetensors"), reader("blame", "run", "--samples", 8, one_in=SOME, writes="run"),
    )),
    "start of a finetuning": Kind("tuned/start.json", JSON, (
        reader("inspect", "tuned/start.json"), reader("finalize", "tuned", "-o", "out/f.safetensors", writes="tuned"),
    )),
    "what a pipeline's search was begun from": Kind("run/begun-from.json", JSON, (
        reader("inspect", "run/begun-from.json"), FINALIZE, RESUME,
    )),
    "report of verify": Kind("report.json", JSON, looked_at(
        "report.json", reader("diff", "report.json", "same.json"),
        reader("verify", "m.csq", "--against", "m.safetensors", *SAMPLES, "--baseline", "report.json",
               "--max-regression", 1, one_in=SOME),
    )),
    "latencies": Kind("bench.json", JSON, looked_at("bench.json")),
    "sensitivities": Kind("sensitivity.json", JSON, looked_at("sensitivity.json")),
    "blames": Kind("blame.json", JSON, looked_at("blame.json")),
    "facts of an export": Kind("build/export-csq.json", JSON, looked_at("build/export-csq.json", shown="build")),
    "stages of a pipeline": Kind("build/stages.json", JSON, looked_at("build/stages.json", shown="build")),
    "sweep": Kind("sweep/sweep.json", JSON, (*OF_SWEEP, SWEEP_AGAIN)),
    "result of a sweep": Kind(f"sweep/results/{RUN}.json", JSON, (*OF_SWEEP, SWEEP_AGAIN)),
    "result of a comparison": Kind(f"sweep/verified/{RUN}.json", JSON, (
        reader("compare", "net.py:net", *SWEEP, "-o", "sweep", one_in=SOME, writes="sweep"),
    )),
    "plan of an arena": Kind("c/arena.json", JSON, (reader("report", "c", "-o", "out/page.html"),)),
    "pipeline": Kind("p.toml", TOML, looked_at("p.toml")),
    "data": Kind("data.npz", NPZ, (
        reader("verify", "m.csq", "--against", "m.safetensors", "--data", "npz:data.npz", *SAMPLES),
    )),
}  # fmt: skip


class Project:
    """The project, in a folder of its own; beside it lies ``outside``, whose code leaves a file when it is imported."""

    def __init__(self, top: Path) -> None:
        from csqtool.csq import pack
        from csqtool.finalized_file import read_finalized

        self.top, self.folder, self.outside = top, top / "project", top / "outside"
        for folder in (self.folder, self.outside, self.folder / "out", self.folder / "tmp", self.folder / "build"):
            folder.mkdir(parents=True)
        (self.outside / "outside.py").write_text(
            "from pathlib import Path\nfrom torch import nn\n\nPath(__file__).with_name('ran').touch()\n\n\n"
            "def net(**arguments):\n    return nn.Linear(4, 3)\n"
        )
        place_project(self.folder)
        for name in ("report.json", "sensitivity.json", "model.onnx"):
            shutil.copy(CORPUS / name, self.folder)
        for name, other in (("model.safetensors", "m.safetensors"), ("model.onnx", "m.onnx")):
            (self.folder / name).rename(self.folder / other)
        shutil.copy(self.folder / "m.safetensors", self.folder / "same.safetensors")
        shutil.copy(self.folder / "report.json", self.folder / "same.json")
        model = read_finalized(self.folder / "m.safetensors")
        (self.folder / "m.csq").write_bytes(pack(model))
        (self.folder / "i.csq").write_bytes(pack(model, inference=True))
        (self.folder / "g.csq").write_bytes(pack(model, onnx=(self.folder / "m.onnx").read_bytes()))
        (self.folder / "p.toml").write_text(PIPELINE)
        self._write_documents()
        shutil.copytree(self.folder / "run", self.folder / "begun")
        (self.folder / "begun" / "summary.json").unlink()
        self._kept = {kind.file: (self.folder / kind.file).read_bytes() for kind in KINDS.values()}
        self._copies = top / "copies"
        for name in {one.writes for kind in KINDS.values() for one in kind.readers if one.writes}:
            shutil.copytree(self.folder / name, self._copies / name)
        self.tried = 0  # files that a command was given
        self._programs: dict[tuple[object, ...], frozenset[tuple[str, ...]]] = {}

    def _write_documents(self) -> None:
        from csqtool.documents import plain, read
        from csqtool.files import sha256, write_json
        from csqtool.searching.records import Summary
        from csqtool.sweeping.plan import Plan, SweepDirectory, compose
        from csqtool.sweeping.result import Outcome

        folder = self.folder
        part = {"name": "0.weight", "kind": "weights", "change": 0.01, "drop_alone": 0.1, "drop_restored": 0.1,
                "error_alone": 0.1, "error_restored": 0.1, "metric_share": 0.5, "error_share": None}  # fmt: skip
        measured = {"file": "m.onnx", "size_bytes": 1, "median_ms": 1.0, "ratio": 1.0, "load_ms": 1.0,
                    "load_peak_bytes": 1, "kernels": {"Conv": 1}}  # fmt: skip
        block = {"name": "x", "offset": 0, "bytes": 64, "first": 0, "last": 1}
        digest = sha256(folder / "m.safetensors")
        documents: dict[str, Any] = {
            "bench.json": {"threads": 1, "batch": 1, "rounds": 1, "files": [measured, measured]},
            "blame.json": {"kind": "blame", "data": "npz:data.npz", "samples": 64, "metric_name": "accuracy",
                           "metric_float": 0.5, "metric": 0.4, "output_error": 0.1, "parts": [part],
                           "groups": [{**part, "kind": "group"}]},
            "c/arena.json": {"finalized_sha256": digest, "arena_bytes": 64, "least_bytes": 64,
                             "steps": ["conv", "linear"], "blocks": [block, block]},
            "tuned/start.json": {"run": "earlier", "metric_float": 0.5},
            "run/begun-from.json": {"inputs": digest, "code": {"net.py": digest}},
            "build/export-csq.json": {"size_bytes": 1, "float32_bytes": 2, "notes": ["x"]},
            "build/stages.json": {"place": "x", "stages": {
                "search": {"inputs": digest, "outputs": {"run": digest}, "code": {"net.py": digest}}}},
        }  # fmt: skip
        for name, document in documents.items():
            write_json(folder / name, document)
        for name in ("build/run", "tuned"):
            shutil.copytree(folder / "run", folder / name, dirs_exist_ok=True)
        for name, start in (("float.safetensors", "start.safetensors"), ("scheme.json", "start-scheme.json")):
            shutil.copy(folder / "run" / name, folder / "tuned" / start)
        settings = {"model": "net.py:net", "data": "npz:data.npz", "act_bits": 8, "batch_size": 32,
                    "pretrain_epochs": 1.0, "epochs": 1.0, "finetune_epochs": 0.0}  # fmt: skip
        sweep = SweepDirectory(folder / "sweep")
        with contextlib.chdir(folder):
            sweep.path.mkdir()
            sweep.begin(Plan(compose(settings, methods=["lsq"], target_bits=[3.0]).runs))
        outcome = Outcome(None, read(Summary, folder / "run" / "summary.json"), 0.5, 1000)
        write_json(sweep.result(RUN), plain(outcome))
        write_json(folder / "sweep" / "verified" / f"{RUN}.json", {"model": digest, "onnx_bytes": 3050, "failed": []})
        for source, target in (("m.safetensors", sweep.model(RUN)), ("m.csq", sweep.packed(RUN)),
                               ("m.onnx", sweep.model(RUN).with_suffix(".onnx"))):  # fmt: skip
            target.parent.mkdir(exist_ok=True)
            shutil.copy(folder / source, target)

    def learn(self, one: Reader) -> Result:
        """Give a command the untouched files, and remember which programs it starts."""
        with contextlib.chdir(self.folder), watched([self.top]) as seen:
            result = invoke(*one.arguments)
        self._programs[one.arguments] = frozenset(seen.started)
        self._set_up_again(one)
        return result

    def wrong(self, kind: Kind, one: Reader, place: Place, value: Any) -> str | None:
        """Give a command a file with a hostile value; return what it did that it must not, or None.

        Args:
            kind: of the file.
            one: the command.
            place: of the value.
            value: the value.
        """
        content = kind.codec.changed(self._kept[kind.file], place, named(value, str(self.outside)))
        if content is None:
            return None
        self.tried += 1
        if one.arguments not in self._programs:
            self.learn(one)
        allowed = [self.folder / "out", self.folder / "tmp", *([self.folder / one.writes] if one.writes else [])]
        with contextlib.chdir(self.folder):
            Path(kind.file).write_bytes(content)
            with watched(allowed, self._programs[one.arguments]) as seen:
                result = invoke(*one.arguments)
        found = problem(result) or "; ".join(seen.wrong) or None
        if sorted(os.listdir(self.outside)) != ["outside.py"] or (self.folder / "ran").exists():
            found = f"code was run: {os.listdir(self.outside)}"
        self._set_up_again(one)
        (self.folder / kind.file).write_bytes(self._kept[kind.file])
        return found

    def _set_up_again(self, one: Reader) -> None:
        for path in (self.folder / "out").iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if one.writes:
            shutil.rmtree(self.folder / one.writes)
            shutil.copytree(self._copies / one.writes, self.folder / one.writes)

    def cases(self, kind: Kind) -> Iterator[tuple[Reader, Place, Any]]:
        """Yield each field of a file with hostile values, for each command.

        A field gets one of each family of values, one that may name code or a file gets all of those. Commands that
        take long are given some of them.
        """
        draw = random.Random(kind.file)
        for place in kind.codec.places(self._kept[kind.file]):
            for one in kind.readers:
                values = [draw.choice(family) for family in (*FAMILIES, *filter(None, [kind.codec.more]))]
                if NAMING & {str(step) for step in place}:
                    values = [*FACTORIES, *PATHS, *values[2:]]
                yield from ((one, place, value) for value in values if draw.random() < 1 / one.one_in)


def problem(result: Result) -> str | None:
    """Return what is wrong with how a command ended: neither done nor refused with one line, or a text that steers."""
    if result.exit_code not in (0, 1, 2):
        return f"exit code {result.exit_code}: {result.output[-300:]!r} {result.exception!r}"
    said = result.stderr.splitlines()
    errors = [line for line in said if line.startswith("error:")]
    if len(errors) != (result.exit_code == 2) or (errors and said[-1] != errors[0]):
        return f"not one error line: {result.stderr[-300:]!r}"
    for line in (result.stdout + result.stderr).split("\n"):
        if line.lstrip().startswith(("::", "##[")) or "Traceback" in line:
            return f"a line that steers: {line[:200]!r}"
        if any(unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Cs") for character in line):
            return f"control characters: {line[:200]!r}"
    return None
