"""Checkpoints: tensors and plain values only, read without unpickling anything else."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from csqtool.errors import FormatError, InputError, ModelError
from csqtool.files import read_bytes, write_bytes
from csqtool.nn.net import check_keys

LAST, PREVIOUS = "last.pt", "previous.pt"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, text, lists and dicts of them) as the last checkpoint; keep the one before.

    A process that dies at any moment leaves at least one of the two whole.

    Raises:
        InputError: the folder cannot be written to, or the disk is full; the checkpoints are as before.
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
    """Return the last checkpoint, or the one before if the last is missing or damaged; None without any.

    Args:
        folder: where they are.
        warn: told when the one before has to serve.

    Raises:
        FormatError: there are checkpoints, but none is readable.
    """
    problem: FormatError | None = None
    for name in (LAST, PREVIOUS):
        if not (folder / name).is_file():
            continue
        try:
            state: dict[str, Any] = load_torch_file(folder / name)
        except FormatError as error:
            problem = error
            continue
        if problem is not None:
            warn(f"warning: {problem}; going on from {name}, saved before it")
        return state
    if problem is not None:
        raise problem
    return None


def load_torch_file(path: Path) -> Any:
    """Return what a torch file holds, with ``weights_only=True``.

    Raises:
        InputError: the file is missing.
        FormatError: it is no torch file, damaged, or holds more than tensors and plain values.
    """
    content = io.BytesIO(read_bytes(path))
    try:
        _check_checksums(content)
        return torch.load(content, weights_only=True, map_location="cpu")
    except (RuntimeError, pickle.UnpicklingError, EOFError, zipfile.BadZipFile, ValueError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FormatError(f"{path} is not a readable torch file: {first_line}") from error


def _check_checksums(content: io.BytesIO) -> None:
    """Compare every record of a torch file with the CRC-32 that it carries, which torch does not look at.

    Raises:
        BadZipFile: a record is damaged.
    """
    if not zipfile.is_zipfile(content):
        return  # an old file without checksums
    with zipfile.ZipFile(content) as archive:
        if (damaged := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"the record {damaged} is damaged: its checksum differs")
    content.seek(0)


def safetensors_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Return tensors as the content of a safetensors file."""
    from safetensors.torch import save

    content: bytes = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
    return content


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a safetensors file or torch checkpoint, also nested under ``state_dict`` or ``model``.

    Raises:
        InputError: the file is missing, damaged, or of no known kind.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            state: Any = load(read_bytes(path))
        except (SafetensorError, ValueError) as error:
            raise FormatError(f"{path} is not a safetensors file: {error}") from error
    else:
        state = load_torch_file(path)
    for nest in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(nest), Mapping):
            state = state[nest]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"{path} holds no state dict of tensors")
    return dict(state)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict from safetensors or a torch checkpoint into `model`, also with ``module.`` before every key.

    Raises:
        InputError: the file cannot be used, see `read_state`.
        ModelError: keys are missing, unexpected, or shapes differ.
    """
    load_state(model, read_state(path), str(path))


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict into `model`, also one with ``module.`` before every key.

    Args:
        model: is changed.
        state: the values by name.
        source: where they come from, for messages.

    Raises:
        ModelError: keys are missing, unexpected, or shapes differ.
    """
    own = model.state_dict()
    if set(own).isdisjoint(state) and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    # Checkpoints older than BatchNorm's batch counter lack it; it does not take part in inference.
    state = {**{k: v for k, v in own.items() if k.endswith("num_batches_tracked")}, **state}
    check_keys(
        {k: tuple(v.shape) for k, v in own.items()}, {k: tuple(v.shape) for k, v in state.items()}, source, "the model"
    )
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(f"{source} does not match the model: {error}") from error
