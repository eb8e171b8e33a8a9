"""What is installed: packages, extras, compilers and devices, and what is missing for which feature."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from packaging.markers import Marker
from packaging.requirements import Requirement

FEATURES = {
    "images": "data sets of image files",
    "openvino": "verify in a second runtime",
    "qonnx": "verify in the executor of QONNX",
    "tensorboard": "search --tensorboard",
    "ray": "sweeps on a cluster",
    "datasets": "data sets of Hugging Face",
    "gp": "the allocator gp",
    "haq": "the allocator haq",
    "detection": "the metric of object detection",
    "zoo": "networks by name, such as timm:resnet18",
    "benchmarks": "pictures of benchmarks/ and docs/",
}
# Programs, any of which serves, and what for.
TOOLS = (
    (("cc", "gcc", "clang"), "a C compiler", "fast training kernels (torch.compile), verify of .csq files in C"),
    (("c++", "g++", "clang++"), "a C++ compiler", "fast training kernels (torch.compile)"),
    (("arm-none-eabi-gcc",), "a compiler for Cortex-M", "verify --target cortex-m4"),
    (("qemu-system-arm",), "QEMU", "verify --target cortex-m4"),
)
IMPORTED = ("torch", "onnx", "onnxruntime", "onnxscript")  # a package may be installed and not fit the others


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for.

    Attributes:
        kind: ``package``, ``extra``, ``tool`` or ``device``.
        name: of the package, extra, tool or device.
        found: its version or place; empty if it is missing.
        problem: what is wrong and what to do; empty if nothing is.
        needed: whether csqtool does not work without it.
    """

    kind: str
    name: str
    found: str
    problem: str = ""
    needed: bool = False


def examine() -> list[Finding]:
    """Look at what csqtool needs and what it can use: packages, extras, compilers, devices.

    Packages that torch must fit (`IMPORTED`) are imported, the others only looked up.
    """
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
    return [
        Finding("package", "Python", platform.python_version()),
        Finding("package", "csqtool", metadata.version("csqtool")),
        *_packages(),
        *_extras(),
        *_tools(),
        Finding("device", "computer", system),
        *_devices(),
    ]


def _requirements() -> Iterator[tuple[Requirement, str]]:
    """Yield csqtool's requirements, each with the extra that it belongs to, empty for none."""
    for line in metadata.requires("csqtool") or []:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}):
            yield requirement, ""
            continue
        for extra in FEATURES:
            if Marker(str(marker)).evaluate({"extra": extra}):
                yield requirement, extra


def _version(requirement: Requirement) -> tuple[str, str]:
    """Return the installed version, and what is wrong with it; both may be empty."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return "", f"is not installed: pip install '{requirement.name}{requirement.specifier}'"
    if not requirement.specifier.contains(version, prereleases=True):
        return (
            version,
            f"csqtool needs {requirement.specifier}: pip install '{requirement.name}{requirement.specifier}'",
        )
    return version, ""


def _packages() -> Iterator[Finding]:
    for requirement, extra in _requirements():
        if extra:
            continue
        version, problem = _version(requirement)
        if not problem and requirement.name in IMPORTED:
            problem = _import_problem(requirement.name)
        yield Finding("package", requirement.name, version, problem, needed=True)


def _import_problem(name: str) -> str:
    try:
        importlib.import_module(name)
    except Exception as error:  # a package that does not fit another one may raise anything
        return f"cannot be imported: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ""


def _extras() -> Iterator[Finding]:
    for extra, feature in FEATURES.items():
        found, missing = [], []
        for requirement, of in _requirements():
            if of == extra:
                version, problem = _version(requirement)
                if problem:
                    missing.append(requirement.name)
                else:
                    found.append(f"{requirement.name} {version}")
        problem = f"no {', '.join(missing)}, for {feature}: pip install 'csqtool[{extra}]'" if missing else ""
        yield Finding("extra", extra, ", ".join(found), problem)


def _tools() -> Iterator[Finding]:
    for programs, name, feature in TOOLS:
        places = [place for program in programs if (place := shutil.which(program)) is not None]
        problem = "" if places else f"none of {', '.join(programs)}, for {feature}"
        yield Finding("tool", name, places[0] if places else "", problem)


def _devices() -> Iterator[Finding]:
    try:
        import onnxruntime
        import torch
    except Exception:  # the finding of the package says why
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield Finding("device", f"cuda:{index}", torch.cuda.get_device_name(index))
    if torch.backends.mps.is_available():
        yield Finding("device", "mps", "Apple GPU")
    yield Finding("device", "onnxruntime", ", ".join(onnxruntime.get_available_providers()))
