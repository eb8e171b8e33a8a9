"""A starter project that runs without changes."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from csqtool.errors import InputError
from csqtool.files import write_bytes

FILES = {
    "model.py": "model.py",
    "data.py": "data.py",
    "pipeline.toml": "pipeline.toml",
    "github-workflow.yml": ".github/workflows/model.yml",
    "gitlab-ci.yml": ".gitlab-ci.yml",
}


def init(folder: Path) -> list[Path]:
    """Write a starter project: a model, its data, a pipeline and jobs for GitHub and GitLab.

    Args:
        folder: the folder to write to; it is created if it is missing.

    Returns:
        The files written.

    Raises:
        InputError: one of the files already exists, or the folder cannot be written; nothing is replaced.
    """
    targets = {source: folder / target for source, target in FILES.items()}
    taken = [str(target) for target in targets.values() if target.exists()]
    if taken:
        raise InputError(f"{taken[0]} already exists; name another folder, or move it away")
    for source, target in targets.items():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write {target.parent}: {error.strerror or error}") from error
        write_bytes(target, (resources.files("csqtool") / "starter" / source).read_bytes())
    return list(targets.values())
