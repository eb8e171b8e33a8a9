"""Networks of well-known libraries by name, such as ``torchvision:resnet18``; each library is the user's to install."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from csqtool.errors import ConfigError, ModelError, nearest

PLAIN = re.compile(r"[\w.\-]+")  # a name, not a path or an address
# What would load weights from elsewhere: a finalized model brings its own.
WEIGHTS = ("weights", "weights_backbone", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path",
           "cache_dir", "encoder_weights")  # fmt: skip


@dataclass(frozen=True)
class Hub:
    """A library of networks.

    Attributes:
        package: the package to import.
        build: returns a network, given its name and keyword arguments.
        plain: whether names in files must be plain names, not paths.
        without_weights: arguments by which the library loads none, where it does so unasked.
    """

    package: str
    build: Callable[[str, dict[str, Any]], Any]
    plain: bool = True
    without_weights: Mapping[str, Any] = field(default_factory=dict)


def hub_of(spec: str) -> str | None:
    """Return the hub that a model's name begins with, None for another name."""
    kind, colon, _ = spec.partition(":")
    return kind if colon and kind in HUBS else None


def package_of(spec: str) -> str | None:
    """Return the package that a hub's networks come from."""
    hub = hub_of(spec)
    return None if hub is None else HUBS[hub].package


def build(spec: str, arguments: Mapping[str, Any], *, recorded: bool = False) -> Any:
    """Return the network that a hub's name stands for.

    Args:
        spec: ``HUB:NAME``.
        arguments: keyword arguments of the library's constructor.
        recorded: whether a file names it, not the user: then no weights are loaded, nothing is fetched from a network,
            and the name must be plain.

    Raises:
        ConfigError: the library is not installed.
        ModelError: the library has no such network, or cannot build it.
    """
    kind, _, name = spec.partition(":")
    hub = HUBS[kind]
    given = dict(arguments)
    if recorded:
        given = {key: value for key, value in given.items() if key not in WEIGHTS}
        given |= hub.without_weights
        if not hub.plain:
            given["local_files_only"] = True
        elif not PLAIN.fullmatch(name):
            raise ModelError(f"{spec!r}: a file may only give the name of a network of {hub.package}; give --model")
    try:
        import_module(hub.package)
    except ImportError as error:
        raise ConfigError(f"{spec} needs the package {hub.package}: pip install {hub.package} ({error})") from error
    except RuntimeError as error:  # of a torchvision that does not fit torch
        raise ConfigError(
            f"{spec}: {hub.package} cannot be imported ({error}); torch and torchvision must come from the same index "
            "and in versions that fit: install both with one command"
        ) from error
    try:
        return hub.build(name, given)
    except ConfigError:
        raise
    except Exception as error:  # whatever the library raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{spec}: {reason}") from error


def _torchvision(name: str, arguments: dict[str, Any]) -> Any:
    from torchvision.models import get_model_builder, list_models  # type: ignore[import-not-found, unused-ignore]

    if name not in list_models():
        raise ModelError(f"there is no such network; {nearest(name, list_models())}")
    builder = get_model_builder(name)
    if "weights_backbone" not in inspect.signature(builder).parameters:
        arguments.pop("weights_backbone", None)
    return builder(**arguments)


def _timm(name: str, arguments: dict[str, Any]) -> Any:
    import timm  # type: ignore[import-not-found, unused-ignore]

    return timm.create_model(name, **arguments)


def _smp(name: str, arguments: dict[str, Any]) -> Any:
    import segmentation_models_pytorch  # type: ignore[import-not-found, unused-ignore]

    return segmentation_models_pytorch.create_model(name, **{"encoder_weights": None, **arguments})


def _ultralytics(name: str, arguments: dict[str, Any]) -> Any:
    if not name.endswith((".yaml", ".yml")):
        raise ModelError(
            "Ultralytics' .pt files hold pickled code, which is not run: name the architecture, such as "
            "ultralytics:yolov8n.yaml, and give the weights as a state dict (--weights)"
        )
    from ultralytics import YOLO  # type: ignore[import-not-found, unused-ignore]

    return YOLO(name, **arguments).model.requires_grad_(True)


def _hf(name: str, arguments: dict[str, Any]) -> Any:
    import transformers  # type: ignore[import-not-found, unused-ignore]

    local = arguments.pop("local_files_only", Path(name).is_dir())
    kind = arguments.pop("architecture", None)
    load: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    config = transformers.AutoConfig.from_pretrained(name, **load, **arguments)
    config.use_cache = False  # a cache of keys and values is no output of a file
    kind = kind or next(iter(config.architectures or []), None)
    if kind is None or not hasattr(transformers, kind):
        raise ModelError(f"its configuration names no class of transformers ({kind}); give --model-arg architecture=…")
    model_class = getattr(transformers, kind)
    has_weights = not local or any(Path(name).glob("*.safetensors"))
    if has_weights:
        return model_class.from_pretrained(name, config=config, use_safetensors=True, **load)
    return model_class(config)


HUBS: dict[str, Hub] = {
    "torchvision": Hub("torchvision", _torchvision, without_weights={"weights_backbone": None}),
    "timm": Hub("timm", _timm),
    "smp": Hub("segmentation_models_pytorch", _smp, without_weights={"encoder_weights": None}),
    "ultralytics": Hub("ultralytics", _ultralytics),
    "hf": Hub("transformers", _hf, plain=False),
}
