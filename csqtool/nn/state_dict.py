"""State dicts: read from files without unpickling code, checked against a model, and loaded into it."""

from __future__ import annotations

import io
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from csqtool.errors import FormatError, InputError, ModelError
from csqtool.files import read_bytes

MOST_LISTED = 8  # names in one message


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
    except Exception as error:  # whatever the instructions of a changed pickle make torch do
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FormatError(f"{path} is not a readable torch file: {first_line}") from error


def _check_checksums(content: io.BytesIO) -> None:
    """Compare every record of a torch file with the CRC-32 that it carries, which torch does not look at.

    Raises:
        BadZipFile: a record is damaged.
    """
    is_zip = zipfile.is_zipfile(content)
    content.seek(0)  # looking for the archive's end moved it
    if not is_zip:
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
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise InputError(f"{path} holds no state dict of tensors by name")
    return _with_metadata(state, getattr(state, "_metadata", None))


def with_versions(state: Mapping[str, Tensor], model: nn.Module) -> OrderedDict[str, Tensor]:
    """Return a state dict with the versions of its modules' layouts, which some modules look at when they load it.

    Args:
        state: the values; versions that it has are kept.
        model: of this one are they otherwise.
    """
    return _with_metadata(state, getattr(state, "_metadata", None) or getattr(model.state_dict(), "_metadata", None))


def _with_metadata(state: Mapping[str, Tensor], metadata: Any) -> OrderedDict[str, Tensor]:
    found: Any = OrderedDict(state)
    if metadata is not None:
        found._metadata = metadata
    kept: OrderedDict[str, Tensor] = found
    return kept


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
    versions = getattr(state, "_metadata", None)
    if set(own).isdisjoint(state) and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
        versions = versions and {key.removeprefix("module").removeprefix("."): v for key, v in versions.items() if key}
    # Checkpoints older than BatchNorm's batch counter lack it; inference does not use it.
    state = {**{k: v for k, v in own.items() if k.endswith("num_batches_tracked")}, **state}
    check_keys(
        {k: tuple(v.shape) for k, v in own.items()}, {k: tuple(v.shape) for k, v in state.items()}, source, "the model"
    )
    try:
        model.load_state_dict(with_versions(_with_metadata(state, versions), model))
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{source} does not match the model: {error}") from error


def check_keys(own: dict[str, tuple[int, ...]], given: dict[str, tuple[int, ...]], source: str, target: str) -> None:
    """Compare names and shapes of tensors.

    Args:
        own: the shapes in the model, by name.
        given: the shapes of what is to be loaded, by name.
        source: where that comes from, for the message.
        target: the model, for the message.

    Raises:
        ModelError: lists what is missing, what is unexpected and whose shape differs.
    """
    problems = []
    if missing := sorted(set(own) - set(given)):
        problems.append(f"missing {_listed(missing)}")
    if unexpected := sorted(set(given) - set(own)):
        problems.append(f"unexpected {_listed(unexpected)}")
    for name in sorted(set(own) & set(given)):
        if tuple(own[name]) != tuple(given[name]):
            problems.append(f"{name} has shape {list(given[name])} instead of {list(own[name])}")
    if problems:
        raise ModelError(f"{source} does not match {target}: " + "; ".join(problems))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return ", ".join(names[:MOST_LISTED]) + more
