"""Losses that were measured on the way to a scheme, kept in a file: a search that was stopped measures only the others.

What is measured depends on the network's state and on what was asked, and on nothing else. So a loss is kept by the
digest of both, and found again only where both are the same.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
from torch import nn

from csqtool.files import append_line, read_bytes

MeasuredLoss = Callable[[str, Callable[[], float]], float]


class KeptLoss(msgspec.Struct, forbid_unknown_fields=True):
    """A line of the file: the digest of what was measured, and the loss."""

    of: str
    loss: float


class KeptLosses:
    """Measures a loss, or returns what a file says that it was.

    Args:
        path: JSON lines; a line that cannot be read is measured again.
        net: the network.
    """

    def __init__(self, path: Path, net: nn.Module) -> None:
        self._path = path
        self._net = net
        self._losses = _read(path)

    def __call__(self, what: str, measure: Callable[[], float]) -> float:
        """Return a loss.

        Args:
            what: all that it depends on beside the network's present state.
            measure: measures it.

        Raises:
            InputError: the file cannot be written.
        """
        key = self._digest(what)
        if key not in self._losses:
            self._losses[key] = loss = measure()
            if math.isfinite(loss):
                append_line(self._path, msgspec.json.encode(KeptLoss(key, loss)).decode())
        return self._losses[key]

    def _digest(self, what: str) -> str:
        digest = hashlib.blake2b(what.encode(), digest_size=16)
        for name, value in self._net.state_dict().items():
            if isinstance(value, torch.Tensor):
                digest.update(f"\0{name} {value.dtype} {list(value.shape)}\0".encode())
                digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def measured_anew(what: str, measure: Callable[[], float]) -> float:
    """Measure a loss, and keep nothing."""
    return measure()


def _read(path: Path) -> dict[str, float]:
    found = {}
    for line in read_bytes(path).split(b"\n") if path.is_file() else ():
        try:
            kept = msgspec.json.decode(line, type=KeptLoss)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        found[kept.of] = kept.loss
    return found
