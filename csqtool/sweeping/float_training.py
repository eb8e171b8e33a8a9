"""Float training of a sweep: done once, by the first run of those that ask for the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from csqtool.searching.run_directory import RunDirectory
from csqtool.sweeping.plan import Settings, SweepDirectory

# What decides the float model, but for the seed: all seeds of a sweep start from one float model.
DECIDING = ("model", "model_args", "data", "task", "weights", "pretrain_epochs", "batch_size", "optimizer",
            "learning_rate", "warmup_epochs", "momentum", "weight_decay", "decay_all", "recipe", "amp")  # fmt: skip


@dataclass(frozen=True)
class FloatTraining:
    """Which run trains the float model that others start from.

    Args:
        directory: the sweep's.
        recorded: the settings of all its runs, those of earlier calls first.
        wanted: the runs of this call that are not done.
    """

    directory: SweepDirectory
    recorded: Mapping[str, Settings]
    wanted: Mapping[str, Settings]

    def leader(self, name: str) -> str | None:
        """Return the run whose float model a run starts from, perhaps itself; None if it asks for no float training."""
        settings = self.wanted[name]
        if not settings.get("pretrain_epochs"):
            return None
        same = [other for other, its in self.recorded.items()
                if all(its.get(key) == settings.get(key) for key in DECIDING)]  # fmt: skip
        trained = (other for other in same if self.weights(other) is not None)
        return next(trained, next(other for other in same if other in self.wanted))

    def weights(self, name: str) -> str | None:
        """Return the file of a run's float weights; None before it has trained them."""
        path = RunDirectory(self.directory.run(name)).float_weights
        return str(path) if path.is_file() else None

    def settings(self, name: str) -> Settings:
        """Return the settings that a run begins with: float training that another run has done is left out."""
        settings, leader = self.wanted[name], self.leader(name)
        weights = None if leader in (None, name) else self.weights(leader)
        return dict(settings) if weights is None else {**settings, "pretrain_epochs": 0, "weights": weights}
