"""TensorBoard events of a search: the scalars of its log, a step for each entry."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from csqtool.errors import ConfigError, InputError


def check_available() -> None:
    """Check that TensorBoard is installed, before anything is trained.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("--tensorboard needs TensorBoard: pip install 'csqtool[tensorboard]', or leave it out")


class Events:
    """Writes events into a run directory.

    Args:
        folder: where the event files go.
        first_step: entries from this step on replace those of an interrupted run.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        check_available()
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._writer = SummaryWriter(str(folder), purge_step=first_step)
        self._step = first_step

    def add(self, entry: Mapping[str, Any]) -> None:
        """Write the numbers of a log entry, and each layer's precision.

        Raises:
            InputError: the events cannot be written.
        """
        numbers = {k: v for k, v in entry.items() if isinstance(v, int | float) and k != "epoch"}
        numbers |= {f"precision/{name}": planes for name, planes in entry.get("precision", {}).items()}
        try:
            for name, value in numbers.items():
                self._writer.add_scalar(name, value, self._step)
            self._writer.flush()
        except OSError as error:
            raise InputError(f"cannot write {self._folder}: {error.strerror or error}") from error
        self._step += 1
