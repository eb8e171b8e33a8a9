"""A whole pipeline: search → finalize → export → verify, doing only what has changed.

The inputs and outputs of a stage are recorded in ``.stages.json``, after the stage. If a run is killed, either the
new record is there or the old one, which then does not match: its inputs differ, or the outputs' contents do. A
killed search is resumed only if its run directory records that it began with the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csqtool import documents
from csqtool.errors import ConfigError, InputError
from csqtool.files import locked, sha256, write_json
from csqtool.fingerprints import Code, ImportedCode, digest, fingerprint, is_current
from csqtool.pipeline_file import Pipeline, read_pipeline
from csqtool.pipeline_stages import ExportFacts, Stages, ToDoError
from csqtool.searching.records import BegunFrom
from csqtool.searching.run_directory import RunDirectory
from csqtool.trust import trusting
from csqtool.verifying.findings import VerifyReport
from csqtool.verifying.report_file import read_report

if TYPE_CHECKING:
    from csqtool.searching.rehearsal import Estimate


@dataclass
class PipelineResult:
    """The result of a pipeline.

    Attributes:
        pipeline: the pipeline.
        stages: ``done`` or ``unchanged``, by stage; in a dry run ``to do``, ``unchanged``, or ``perhaps`` where it
            depends on what an earlier stage then writes.
        took: seconds that each stage took when it last ran; only in a dry run.
        estimate: what a search would take; only in a dry run with `check`, where one is to do.
        exports: the exported file, by format.
        facts: its size and the float32 model's, by format.
        reports: its verification, by format.
    """

    pipeline: Pipeline
    stages: dict[str, str] = field(default_factory=dict)
    took: dict[str, float] = field(default_factory=dict)
    estimate: Estimate | None = None
    exports: dict[str, Path] = field(default_factory=dict)
    facts: dict[str, ExportFacts] = field(default_factory=dict)
    reports: dict[str, VerifyReport] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether all exports were verified and passed."""
        return bool(self.reports) and all(report.passed for report in self.reports.values())

    @property
    def finalized(self) -> Path:
        """The finalized model."""
        return self.pipeline.output / "model.safetensors"

    def to_json(self) -> dict[str, Any]:
        """Return the result as a JSON document."""
        return {
            "passed": self.passed,
            "stages": self.stages,
            "exports": {
                name: {"path": str(path), **documents.plain(self.facts[name])} for name, path in self.exports.items()
            },
            "reports": {name: report.to_json() for name, report in self.reports.items()},
        }


def run_pipeline(
    path: Path,
    *,
    check: bool = False,
    dry_run: bool = False,
    progress: Any = None,
    tell: Callable[[str], None] = lambda text: None,
) -> PipelineResult:
    """Run a pipeline; stages whose inputs and outputs have not changed are skipped.

    Args:
        path: the pipeline file.
        check: export and verify the untrained network before a search begins; in a dry run, time a few of its steps.
        dry_run: only find out which stages would be run; nothing is written, without `check` no user's code imported.
        progress: is informed of every training step.
        tell: called with a line for each stage.

    Raises:
        InputError: the pipeline file, or something it names, cannot be used.
        SearchInterrupted: Ctrl-C; the next run goes on.
    """
    runner = _Runner(read_pipeline(path), path, progress, tell, check=check, dry_run=dry_run)
    return runner.plan() if dry_run else runner.run()


class _Runner:
    """The stages of one pipeline."""

    def __init__(
        self, pipeline: Pipeline, path: Path, progress: Any, tell: Callable[[str], None], *, check: bool, dry_run: bool
    ) -> None:
        from csqtool.exporting import load_exporter

        self._pipeline = pipeline
        self._progress = progress
        self._check = check
        self._tell = tell
        self._suffixes = {name: load_exporter(name, options).suffix for name, options in pipeline.formats.items()}
        if folders := [name for name, suffix in self._suffixes.items() if not suffix]:
            raise ConfigError(f"{path}: a pipeline verifies one file a format; {folders[0]} is for csqtool export")
        self._result = PipelineResult(pipeline)
        self._imported = ImportedCode(pipeline.folder)
        self._stages = Stages(
            pipeline.folder, pipeline.output, self._imported, self._result.stages, tell, dry_run=dry_run
        )
        self._run = RunDirectory(pipeline.output / "run")

    def run(self) -> PipelineResult:
        """Run every stage that has to run."""
        output = self._pipeline.output
        alone = locked(output, f"another process is at work in {output}; wait for it, or give another output")
        with alone, self._trusted():
            before = self._search()
            finalized = self._finalize(before)
            for name, options in self._pipeline.formats.items():
                target = self._export(name, options, finalized, before)
                self._verify(name, target, finalized, before)
        return self._result

    def _trusted(self) -> AbstractContextManager[None]:
        config = self._pipeline.config  # the user wrote the pipeline, and means what it names
        return trusting(name for name in (config.model, config.data) if name is not None)

    def plan(self) -> PipelineResult:
        """Find out which stages `run` would run."""
        stages, config = self._result.stages, self._pipeline.config
        self._plan_stages(stages)
        self._result.took = self._stages.took()
        if self._check and stages["search"] == "to do":
            from csqtool.checking import estimate

            with self._trusted():
                self._result.estimate = estimate(config)
        return self._result

    def _plan_stages(self, stages: dict[str, str]) -> None:
        try:
            before = self._search()
            finalized = self._finalize(before)
        except ToDoError:
            exports = [f"{verb} {name}" for name in self._suffixes for verb in ("export", "verify")]
            for name in ("finalize", *exports):
                stages.setdefault(name, self._stages.after_another(name))
            return
        for name, options in self._pipeline.formats.items():
            try:
                self._verify(name, self._export(name, options, finalized, before), finalized, before)
            except ToDoError:
                stages.setdefault(f"verify {name}", self._stages.after_another(f"verify {name}"))

    def _search(self) -> dict[str, Any]:
        """Search, and return the inputs that all later stages depend on, too."""
        pipeline, run = self._pipeline, self._run
        inputs = digest({**pipeline.settings, "files": fingerprint(pipeline.config)})

        def work() -> None:
            from csqtool.searching import runs

            begun = run.read_begun_from()
            if run.is_run and begun is not None and begun.inputs == inputs and is_current(begun.code, pipeline.folder):
                runs.resume(run.path, progress=self._progress)
                return
            runs.begin(pipeline.config, run.path, overwrite=True, progress=self._progress,
                       begun_from=lambda: BegunFrom(inputs, self._imported()),
                       look_ahead=look_ahead if self._check else None)  # fmt: skip

        def look_ahead() -> None:
            from csqtool import checking
            from csqtool.progress import Silent

            checking.look_ahead(pipeline.config, self._progress or Silent())

        def begun_code() -> Code:  # a finished search is not built again, so nothing is imported
            begun = run.read_begun_from()
            return {} if begun is None else begun.code

        outputs = [run.summary, run.scheme, run.last_checkpoint]
        record = self._stages.run("search", inputs, outputs, work, code=begun_code)
        return {"inputs": inputs, "code": record.code}

    def _finalize(self, before: Mapping[str, Any]) -> str:
        """Finalize, and return the SHA-256 of the model."""
        target = self._result.finalized

        def work() -> None:
            from csqtool.finalized_file import write_finalized
            from csqtool.searching import runs

            write_finalized(runs.load_finished(self._run.path).finalize(), target)

        inputs = digest({"run": sha256(self._run.last_checkpoint), "before": before})
        self._stages.run("finalize", inputs, [target], work)
        return sha256(target)

    def _export(self, name: str, options: Mapping[str, Any], finalized: str, before: Mapping[str, Any]) -> Path:
        from csqtool.exporting import export

        target = self._pipeline.output / f"model{self._suffixes[name]}"
        facts = self._pipeline.output / f"export-{name}.json"

        def work() -> None:
            done = export(self._result.finalized, target, format=name, options=options)
            for note in done.notes:
                self._tell(f"  {note}")
            if done.report.float_nodes:
                nodes = [node.name for node in done.report.float_nodes]
                more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
                self._tell(f"  run in float: {', '.join(nodes[:3])}{more} (csqtool export says why)")
            write_json(facts, documents.plain(ExportFacts(done.size_bytes, done.float32_bytes, done.notes)))

        inputs = digest({"model": finalized, "options": options, "before": before})
        self._stages.run(f"export {name}", inputs, [target, facts], work)
        self._result.exports[name] = target
        self._result.facts[name] = documents.read(ExportFacts, facts)
        return target

    def _verify(self, name: str, target: Path, finalized: str, before: Mapping[str, Any]) -> None:
        pipeline, model = self._pipeline, self._result.finalized
        path = pipeline.output / f"verify-{name}.json"

        def work() -> None:
            from csqtool.verifying.verification import verify_file

            path.unlink(missing_ok=True)
            report = verify_file(
                target,
                model,
                gates=pipeline.gates.for_file(target),
                samples=pipeline.samples,
                backends=pipeline.backends if target.suffix == ".onnx" else ("onnxruntime",),
                tolerances=pipeline.tolerances,
                allow_unaccounted=pipeline.allow_unaccounted,
                cc=pipeline.cc if target.is_dir() else None,
                target=pipeline.target if target.is_dir() else None,
            )
            write_json(path, report.to_json())

        checks = {
            "file": sha256(target),
            "model": finalized,
            "gates": documents.plain(pipeline.gates),
            # Files that gates compare with; a latency is measured every time.
            "compared": [sha256(Path(f)) for f in (pipeline.gates.baseline, pipeline.gates.latency_against) if f],
            "samples": pipeline.samples,
            "backends": pipeline.backends,
            "tolerances": documents.plain(pipeline.tolerances),
            "allow_unaccounted": pipeline.allow_unaccounted,
            "compiled": [pipeline.cc, pipeline.target],
            "before": before,
        }
        again = bool(pipeline.gates.latency_against) or not _is_believed(path, target, model)
        self._stages.run(f"verify {name}", digest(checks), [path], work, again=again)
        self._result.reports[name] = read_report(path)


def _is_believed(path: Path, target: Path, model: Path) -> bool:
    """Return whether an earlier report may be reused: it passed according to its checks, and is about these files."""
    try:
        report = read_report(path)
    except InputError:
        return False
    about = (Path(report.file).name, Path(report.against).name, report.size_bytes)
    return report.passed and report.holds and about == (target.name, model.name, target.stat().st_size)
