"""Checkpoints: tensors and plain values only; reading one unpickles nothing else."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from csqtool.errors import CsqtoolError, FormatError, InputError
from csqtool.files import write_bytes
from csqtool.nn.state_dict import load_torch_file

LAST, PREVIOUS = "last.pt", "previous.pt"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, text, lists and dicts of them) as the last checkpoint; keep the previous one.

    If the process dies at any moment, at least one of the two is intact.

    Raises:
        InputError: the folder cannot be written to, or the disk is full; the checkpoints are unchanged.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    fresh = folder / f".{LAST}.new"
    try:
        write_bytes(fresh, buffer.getvalue())
        if (folder / LAST).is_file():
            (folder / LAST).replace(folder / PREVIOUS)
        fresh.replace(folder / LAST)
    finally:
        fresh.unlink(missing_ok=True)


def load_checkpoint(folder: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """Return the last checkpoint, or the previous one if the last is missing or damaged; None if there is none.

    Args:
        folder: the folder of the checkpoints.
        warn: called with a message if the previous one is used.

    Raises:
        FormatError: there are checkpoints, but none is readable.
        InputError: the folder cannot be read.
    """
    problem: FormatError | None = None
    try:
        names = [name for name in (LAST, PREVIOUS) if (folder / name).is_file()]
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror or error}") from error
    for name in names:
        try:
            state: dict[str, Any] = load_torch_file(folder / name)
        except FormatError as error:
            problem = error
            continue
        if problem is not None:
            warn(f"warning: {problem}; continuing from {name}, which was saved before it")
        return state
    if problem is not None:
        raise problem
    return None


@contextmanager
def fitting(what: str, wanted: str) -> Iterator[None]:
    """Restore a state in a block: an error in it means that the state belongs to something else, or was changed.

    Args:
        what: the state, for the message.
        wanted: what it does not fit.

    Raises:
        FormatError: the block raised an error that is not csqtool's own.
    """
    try:
        yield
    except CsqtoolError:
        raise
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FormatError(f"{what} does not fit {wanted}: {first}") from error
