"""The command line: parses, calls the library, prints and exits. Heavy packages are imported by the verbs."""

from __future__ import annotations

import gc
import sys
import traceback
from typing import Any

import click

from csqtool.cli.output import process_index
from csqtool.errors import CheckFailed, CsqtoolError, SearchInterrupted, nearest
from csqtool.forks import allow_forks
from csqtool.interruption import ignore_signals, signals_interrupt, was_interrupted
from csqtool.text import printable
from csqtool.version import __version__

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_BUG = 70
EXIT_INTERRUPTED = 130
STOPPED = "stopped; what was finished is kept, nothing is half-written"

_VERBS = {
    "check": "csqtool.cli.check_verb:check",
    "quantize": "csqtool.cli.quantize_verb:quantize",
    "search": "csqtool.cli.search_verb:search",
    "finetune": "csqtool.cli.search_verb:finetune",
    "sweep": "csqtool.cli.sweep_verb:sweep",
    "compare": "csqtool.cli.compare_verb:compare",
    "best": "csqtool.cli.sweep_verb:best",
    "finalize": "csqtool.cli.model_verbs:finalize",
    "pack": "csqtool.cli.model_verbs:pack",
    "unpack": "csqtool.cli.model_verbs:unpack",
    "export": "csqtool.cli.model_verbs:export",
    "verify": "csqtool.cli.verify_verb:verify",
    "run": "csqtool.cli.run_verb:run",
    "bench": "csqtool.cli.bench_verb:bench",
    "sensitivity": "csqtool.cli.sensitivity_verb:sensitivity",
    "blame": "csqtool.cli.blame_verb:blame",
    "report": "csqtool.cli.report_verb:report",
    "diff": "csqtool.cli.diff_verb:diff",
    "init": "csqtool.cli.init_verb:init",
    "inspect": "csqtool.cli.model_verbs:inspect",
    "methods": "csqtool.cli.model_verbs:methods",
    "formats": "csqtool.cli.model_verbs:formats",
    "doctor": "csqtool.cli.doctor_verb:doctor",
}


class Verbs(click.Group):
    """Imports a verb when it is called, and turns every error into its documented exit code."""

    debug = False

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of the pipeline."""
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a verb's command."""
        if cmd_name not in _VERBS:
            return None
        import importlib

        module, _, name = _VERBS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return a verb and its arguments, or name the verb that was probably meant."""
        if args[0] not in _VERBS and not args[0].startswith("-"):
            raise click.UsageError(f"no verb {args[0]!r}; {nearest(args[0], _VERBS)}", ctx)
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a verb and exit."""
        kwargs["standalone_mode"] = False
        self.debug = False
        try:
            code = super().main(*args, **kwargs)
        except click.exceptions.Exit as exit_:
            code = exit_.exit_code
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            code = EXIT_USAGE
        except click.ClickException as error:
            code = self._fail(error.format_message(), EXIT_USAGE)
        except SearchInterrupted as error:
            code = self._fail(str(error), EXIT_INTERRUPTED, word="interrupted")
        except CheckFailed as error:
            code = self._fail(str(error), EXIT_FAILED, word="failed")
        except CsqtoolError as error:
            code = self._fail(str(error), EXIT_USAGE)
        except (click.Abort, KeyboardInterrupt):
            code = self._fail(STOPPED, EXIT_INTERRUPTED, word="interrupted")
        except BrokenPipeError:
            sys.stderr.close()  # nobody reads our output any more, so nothing can be reported
            code = EXIT_FAILED
        except Exception as error:
            where = "csqtool --debug … shows the traceback; please report it with that in the project's issue tracker"
            code = self._fail(f"unexpected {type(error).__name__}: {error} ({where})", EXIT_BUG)
        sys.exit(code if isinstance(code, int) else 0)

    def _fail(self, message: str, code: int, *, word: str = "error") -> int:
        if self.debug:
            traceback.print_exc()
        if was_interrupted() and code != EXIT_INTERRUPTED:  # Python's class statement, say, makes a RuntimeError of it
            message, code, word = STOPPED, EXIT_INTERRUPTED, "interrupted"
        where = f"[process {process_index()}] " if process_index() else ""
        click.echo(f"{where}{word}: {printable(' '.join(message.split()))}", err=True)
        return code


def _show_versions(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    """Print the versions that a report of a problem needs; read from the packages' metadata, without importing them."""
    if not wanted or ctx.resilient_parsing:
        return
    import platform
    from importlib import metadata

    found = [f"Python {platform.python_version()}"]
    for name in ("torch", "onnx", "onnxruntime", "numpy"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} missing")
    click.echo(f"csqtool {__version__} ({', '.join(found)})")
    ctx.exit()


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_versions,
              help="Show the versions of csqtool and of what its results depend on.")  # fmt: skip
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Search bit widths, ship small integer models, prove that they compute the same.

    search → finalize → pack / export → verify, or all of it with run.

    Exit codes: 0 done, all checks hold; 1 a check failed; 2 bad usage or input; 70 a bug; 130 interrupted.
    """
    assert isinstance(ctx.command, Verbs)
    ctx.command.debug = debug


def main() -> None:
    """Run the command line."""
    signals_interrupt()
    allow_forks()
    gc.set_threshold(100_000)  # imports and captures make objects that stay: at 700, looking for garbage takes a fifth
    try:
        cli(prog_name="csqtool")
    finally:
        ignore_signals()
        gc.freeze()  # at its end Python looks for garbage among all objects, which takes as long as importing them
