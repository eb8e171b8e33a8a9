"""What a run starts from: weights, planes and the float model's metric, all read before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from csqtool.data import DataSource, load_data
from csqtool.data.synthetic import Synthetic
from csqtool.errors import DataError, ModelError
from csqtool.integers import planes_of
from csqtool.model_source import ModelSource
from csqtool.nn.reparametrized import load_and_fold
from csqtool.nn.state_dict import read_state
from csqtool.searching.config import SearchConfig
from csqtool.searching.records import SchemeEntry
from csqtool.searching.run_directory import RunDirectory, read_scheme


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    Attributes:
        weights: a state dict; None starts from the module's own values.
        weights_source: the file that they come from, for messages.
        scheme: the planes to train, with a method of fixed bits; None for uniform ones.
        scheme_source: the file that it comes from, for messages.
        metric_float: the float model's metric, if the weights are already quantized; None otherwise.
        is_finetuning: the run continues to train the weights of a finished search.
    """

    weights: Mapping[str, Tensor] | None = None
    weights_source: str = ""
    scheme: tuple[SchemeEntry, ...] | None = None
    scheme_source: str = ""
    metric_float: float | None = None
    is_finetuning: bool = False

    @classmethod
    def of_settings(cls, config: SearchConfig) -> Start:
        """Return what a new search starts from.

        Raises:
            InputError: a file cannot be read.
        """
        return cls(
            weights=None if config.weights is None else read_state(Path(config.weights)),
            weights_source=config.weights or "",
            scheme=None if config.scheme is None else tuple(read_scheme(Path(config.scheme))),
            scheme_source=config.scheme or "",
        )

    @classmethod
    def of_run(cls, directory: RunDirectory, config: SearchConfig) -> Start:
        """Return what a run started from. The run's own copies are preferred: other files may be gone by now.

        Raises:
            InputError: a file is missing or damaged.
        """
        record = directory.read_start()
        scheme = directory.start_scheme if directory.start_scheme.is_file() else config.scheme and Path(config.scheme)
        weights = config.weights and Path(config.weights)
        if record is not None:
            weights = directory.start_weights
        elif weights and not config.pretrain_epochs and directory.float_weights.is_file():
            weights = directory.float_weights  # a search without float training copies the given weights there
        return cls(
            weights=read_state(weights) if weights else None,
            weights_source=str(weights or ""),
            scheme=tuple(read_scheme(scheme)) if scheme else None,
            scheme_source=str(scheme or ""),
            metric_float=None if record is None else record.metric_float,
            is_finetuning=record is not None,
        )

    def load_into(self, model: nn.Module) -> None:
        """Load the weights, if there are any, and fold parametrizations of the user's own.

        Raises:
            ModelError: names or shapes do not match the model's.
        """
        if self.weights is not None:
            load_and_fold(model, self.weights, self.weights_source)

    def teacher(self, source: ModelSource, directory: RunDirectory) -> nn.Module:
        """Return the float model for distillation: trained by the search in a directory, or of the given weights.

        Raises:
            ModelError: there is none.
        """
        teacher = source.build(near=directory.config)
        if directory.float_weights.is_file():
            load_and_fold(teacher, read_state(directory.float_weights), str(directory.float_weights))
        elif self.weights is not None:
            self.load_into(teacher)
        else:
            raise ModelError("this learns from a trained float model: give --weights or --pretrain-epochs")
        return teacher

    def planes(self, elements: Mapping[str, int]) -> dict[str, tuple[int, ...]] | None:
        """Return the planes that were given for each layer; None if none were.

        Args:
            elements: number of weights of each layer of the model.

        Raises:
            ModelError: the scheme has other layers than the model.
        """
        if self.scheme is None:
            return None
        given = {entry.name: planes_of(entry.mask) for entry in self.scheme}
        if differing := sorted(set(given) ^ set(elements)):
            raise ModelError(f"{self.scheme_source} does not match the model's layers: {', '.join(differing)}")
        return given


def data_of(
    config: SearchConfig, directory: RunDirectory, tell: Callable[[str], None], *, recorded: bool
) -> DataSource:
    """Return the data that the settings name.

    Args:
        config: the settings.
        directory: the run directory; relative paths are also looked up beside it.
        tell: told what will take a while when the data are first read.
        recorded: whether the settings are those of a file, not the user's; see `csqtool.trust`.

    Raises:
        InputError: they name none, or the data cannot be used.
    """
    if config.data is None:
        raise DataError(f"{directory} records no data; give --data DATA, or data= in Python")
    data = load_data(config.data, task=config.task, near=directory.config, recorded=recorded)
    if isinstance(data.train, Synthetic):
        tell(f"making {len(data.train)} inputs that meet BatchNorm's statistics …")
    return data
