"""Searches without the command line, for tests that look inside."""

from __future__ import annotations

from pathlib import Path

from csqtool.progress import Silent
from csqtool.searching.config import SearchConfig
from csqtool.searching.run_directory import RunDirectory
from csqtool.searching.session import Session
from csqtool.searching.start import Start


def opened(config: SearchConfig, folder: Path) -> Session:
    """Return a session that has read its inputs and done nothing."""
    return Session(config, RunDirectory(folder), Start.of_settings(config), Silent())
