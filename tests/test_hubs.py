from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import nn

from csqtool import hubs
from csqtool.errors import ConfigError, InputError, ModelError
from csqtool.factories import build_model
from csqtool.fingerprints import fingerprint
from csqtool.searching.config import SearchConfig
from tests.support.commands import invoke, ok

CALLS: list[tuple[str, dict[str, Any]]] = []


def create_model(name: str, **arguments: Any) -> nn.Module:
    """Stand in for timm's function."""
    CALLS.append((name, arguments))
    if name != "tiny":
        raise RuntimeError(f"Unknown model ({name})\nmore lines")
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, arguments.get("num_classes", 10)))


@pytest.fixture(autouse=True)
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("timm")
    module.create_model = create_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", module)
    CALLS.clear()


def test_a_network_by_name_goes_all_the_way_and_its_file_loads_no_weights_from_elsewhere(tmp_path: Path) -> None:
    ok("search", "timm:tiny", "--model-arg", "num_classes=10", "--model-arg", "pretrained=true", "--data", "digits",
       "--target-bits", 3, "--epochs", 0.1, "--finetune-epochs", 0, "-o", tmp_path / "run")  # fmt: skip
    assert CALLS[0] == ("tiny", {"num_classes": 10, "pretrained": True})
    CALLS.clear()
    ok("finalize", tmp_path / "run", "-o", tmp_path / "m.safetensors")
    ok("export", tmp_path / "m.safetensors", "-o", tmp_path / "m.csq")
    ok("verify", tmp_path / "m.csq", "--against", tmp_path / "m.safetensors")
    assert CALLS
    assert all(call == ("tiny", {"num_classes": 10}) for call in CALLS)


def test_a_name_that_the_library_does_not_have_is_one_error_line(tmp_path: Path) -> None:
    result = invoke("search", "timm:tny", "--data", "digits", "--target-bits", 3, "-o", tmp_path / "run")
    assert (result.exit_code, result.stderr) == (2, "error: timm:tny: Unknown model (tny)\n")


@pytest.mark.parametrize("spec", ["smp:Unet", "ultralytics:yolov8n.yaml", "torchvision:resnet18", "hf:bert"])
def test_a_library_that_is_not_installed_is_named_with_what_to_do(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = hubs.package_of(spec)
    monkeypatch.setitem(sys.modules, str(package), None)
    with pytest.raises(ConfigError, match=rf"needs the package {package}: pip install {package}"):
        build_model(spec)


def test_a_library_that_cannot_be_imported_beside_this_torch_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(name: str) -> Any:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(hubs, "import_module", raises)
    with pytest.raises(ConfigError, match="install both with one command"):
        build_model("torchvision:resnet18")


@pytest.mark.parametrize("recorded", [True, False])
def test_a_backbone_whose_weights_torchvision_loads_unasked_gets_none_where_a_file_names_it(
    recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def fcn(*, weights: Any = None, weights_backbone: Any = "from the network", num_classes: int = 2) -> nn.Module:
        seen.append((weights, weights_backbone, num_classes))
        return nn.Linear(2, num_classes)

    def plain(*, weights: Any = None) -> nn.Module:
        return nn.Linear(2, 2)

    models = ModuleType("torchvision.models")
    models.list_models = lambda: ["fcn", "plain"]  # type: ignore[attr-defined]
    models.get_model_builder = {"fcn": fcn, "plain": plain}.get  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    build_model("torchvision:fcn", {"num_classes": 3, "weights": "DEFAULT"}, recorded=recorded)
    assert seen == [(None, None, 3) if recorded else ("DEFAULT", "from the network", 3)]
    build_model("torchvision:plain", recorded=recorded)
    with pytest.raises(ModelError, match="torchvision:plan: there is no such network; did you mean 'plain'"):
        build_model("torchvision:plan", recorded=recorded)


@pytest.mark.parametrize("name", ["../weights", "/etc/passwd", "http://x/y", "a b"])
def test_a_file_can_only_give_plain_names(name: str) -> None:
    with pytest.raises(ModelError, match="a file may only give the name of a network of timm"):
        build_model(f"timm:{name}", recorded=True)
    assert CALLS == []


def test_a_pickled_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ultralytics", ModuleType("ultralytics"))
    with pytest.raises(ModelError, match="hold pickled code, which is not run"):
        build_model("ultralytics:yolov8n.pt")


def test_a_network_of_transformers_is_made_from_a_folder_without_a_network_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    class Config:
        architectures = ("Tiny",)
        use_cache = True

    class AutoConfig:
        @staticmethod
        def from_pretrained(name: str, **more: Any) -> Config:
            seen.update(more)
            return Config()

    class Tiny(nn.Module):
        def __init__(self, config: Config) -> None:
            super().__init__()
            seen["cache"] = config.use_cache

    module = ModuleType("transformers")
    module.AutoConfig, module.Tiny = AutoConfig, Tiny  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", module)
    assert isinstance(build_model(f"hf:{tmp_path}"), Tiny)
    assert seen == {"local_files_only": True, "trust_remote_code": False, "cache": False}


def test_what_is_no_hub_is_a_factory_as_ever() -> None:
    assert hubs.hub_of("net.py:build") is None
    assert hubs.hub_of("timm") is None
    with pytest.raises(InputError, match="cannot import hub"):
        build_model("hub:name")


def test_a_hub_s_network_is_known_by_the_version_of_its_package() -> None:
    config = SearchConfig.make(model="smp:Unet", data="digits", target_bits=3)
    assert "version of segmentation_models_pytorch" not in fingerprint(config)  # it is not installed here
    config = SearchConfig.make(model="torch.nn:Flatten", data="digits", target_bits=3)
    assert "version of torch.nn" in fingerprint(config)
