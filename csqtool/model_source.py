"""The source of the user's module: the name of a factory, or the module itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csqtool.errors import ModelError
from csqtool.factories import build_model

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ModelSource:
    """Builds the module; every call of `build` returns a new one, which the caller may change.

    Attributes:
        factory: ``file.py:name`` or ``package.module:name``; None if a module was given.
        arguments: keyword arguments of the factory.
        module: the given module; it is copied and never changed.
        recorded: whether a file names the factory, not the user; see `csqtool.trust`.
    """

    factory: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    module: nn.Module | None = None
    recorded: bool = False

    @classmethod
    def of(cls, model: nn.Module | str, arguments: Mapping[str, Any] | None = None) -> ModelSource:
        """Return the source of a given module or name.

        Raises:
            ModelError: it is neither a module nor a name, or arguments are given with a module.
        """
        if isinstance(model, str):
            return cls(factory=model, arguments=dict(arguments or {}))
        from torch import nn

        if not isinstance(model, nn.Module):
            raise ModelError(
                f"the model is {type(model).__name__}: give a torch.nn.Module, or the name of a factory as file.py:name"
            )
        if arguments:
            raise ModelError("model_args are arguments of a factory that is given by name; the model is a module")
        return cls(module=model)

    def build(self, *, near: Path | None = None) -> nn.Module:
        """Return a new module, in the training or evaluation mode that the factory or the given module has.

        Args:
            near: a file whose folders are searched for the factory's source, see `csqtool.factories.find_source`.

        Raises:
            InputError: the factory cannot be found, or does not return a module.
            ModelError: the module cannot be copied.
        """
        if self.module is None:
            if self.factory is None:
                raise ModelError("no model is given")
            built: nn.Module = build_model(self.factory, dict(self.arguments), near=near, recorded=self.recorded)
            return built
        from csqtool.nn.reparametrized import copied

        try:
            return copied(self.module)
        except Exception as error:  # a module may contain anything: locks, files, tensors of a graph
            raise ModelError(
                f"the module {type(self.module).__name__} cannot be copied ({type(error).__name__}: {error}); "
                "give a factory that builds it, as file.py:name"
            ) from error
