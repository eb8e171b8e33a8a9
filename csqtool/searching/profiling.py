"""Where the time of a training step goes: a few steps of each stage under PyTorch's profiler."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from csqtool.files import replacing, write_bytes
from csqtool.text import table

STEPS = 5  # that are recorded, after two that allocate memory and start the profiler
SHOWN = 10  # operators that are told; the file has all
PARTS = "csqtool: "


def part(name: str) -> AbstractContextManager[object]:
    """Name a part of a training step in profiles."""
    return record_function(PARTS + name)


@contextmanager
def profiled(folder: Path | None, stage: str, tell: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Profile a few steps of a stage; yields what is to be called after each step.

    ``STAGE.txt`` in the folder is a table of operators by their own time, ``STAGE.json.gz`` a trace that
    https://ui.perfetto.dev and Chrome's tracing page show.

    Args:
        folder: where the files go; None profiles nothing.
        stage: its name.
        tell: called with the beginning of the table.

    Raises:
        InputError: a file cannot be written.
    """
    if folder is None:
        yield lambda: None
        return
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise it writes lines of its own to stderr
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)

    def write(profiler: profile) -> None:
        if not any(event.key.startswith(PARTS) for event in profiler.key_averages()):
            return  # the stage ended just when the first step was to be recorded
        text = _text(profiler, stage)
        write_bytes(folder / f"{stage}.txt", f"{text}\n".encode())
        with replacing(folder / f"{stage}.json.gz") as temporary:
            trace = temporary.with_suffix(".json.gz")  # the suffix decides whether it is compressed
            try:
                profiler.export_chrome_trace(str(trace))
                trace.replace(temporary)
            finally:
                trace.unlink(missing_ok=True)
        for line in text.split("\n")[: SHOWN + 4]:
            tell(line)
        tell(f"all operators are in {folder / stage}.txt, and a trace in {folder / stage}.json.gz")
        written.append(stage)

    written: list[str] = []
    plan = schedule(wait=1, warmup=1, active=STEPS, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write) as profiler:
        yield profiler.step
    if not written:
        tell(f"{stage}: too few steps to profile")


def _text(profiler: profile, stage: str) -> str:
    """Return the parts of a step and the operators, those that take most time by themselves first.

    What a step takes beyond its parts is reading its batch, and Python.
    """
    events = profiler.key_averages()
    on_device = any(event.self_device_time_total for event in events)
    parts, operators = [], []
    steps, step_time = 1, 0.0  # all steps are one event
    for event in events:
        own = event.self_device_time_total if on_device else event.self_cpu_time_total
        if event.key.startswith(PARTS):
            parts.append(
                (event.key.removeprefix(PARTS), event.device_time_total if on_device else event.cpu_time_total)
            )
        elif event.key.startswith("ProfilerStep"):
            steps, step_time = event.count, event.cpu_time_total
        else:
            operators.append((event.key, event.count, own))
    total = sum(own for *_, own in operators) or 1.0
    rows = [
        (f"{own / 1e3:.2f}", f"{own / total:.1%}", count, name)
        for name, count, own in sorted(operators, key=lambda one: -one[2])
    ]
    shares = ", ".join(f"{name} {microseconds / steps / 1e3:.2f} ms" for name, microseconds in parts)
    where = "on the GPU" if on_device else "on the CPU"
    heads = (f"own ms {where}", "share", "calls", "operator")
    return f"profile of {stage}, {steps} steps of {step_time / steps / 1e3:.2f} ms: {shares}\n\n{table(heads, rows)}"
