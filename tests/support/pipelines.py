"""Pipeline files for tests."""

from __future__ import annotations

from pathlib import Path

from tests.support.commands import DIGITS


def project(folder: Path, bits: float, *, more: str = "") -> Path:
    """Write the pipeline of the digits network into a folder, and return the file."""
    (folder / "p.toml").write_text(
        f'[model]\nfactory = "{DIGITS}"\n[data]\nsource = "digits"\n[search]\ntarget_bits = {bits}\n{more}'
    )
    return folder / "p.toml"
