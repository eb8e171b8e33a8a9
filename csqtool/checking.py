"""A look before the leap: a network is rounded without training, exported and verified on a few samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from csqtool.data import DataSource, first_samples
from csqtool.exporting import FloatNode, export
from csqtool.files import temporary_folder
from csqtool.model_source import ModelSource
from csqtool.nn.post_training import post_training_model
from csqtool.nn.weights import unused_weights
from csqtool.onnx_kernels import integer_share
from csqtool.processes import start_processes
from csqtool.progress import Progress, Silent
from csqtool.quantized_model import QuantizedModel
from csqtool.searching.config import SearchConfig
from csqtool.searching.files_ahead import check_files_ahead
from csqtool.searching.rehearsal import Estimate, rehearse
from csqtool.searching.run_directory import RunDirectory
from csqtool.searching.session import Session
from csqtool.searching.start import Start
from csqtool.verifying import VerifyReport
from csqtool.verifying.verification import verify_file

SAMPLES = 16  # that are calibrated on and compared
LITTLE = 0.5  # a share of parameters below which a budget says little
NEVER_COMPUTED = 0.05  # a share of parameters above which a user may not know that they are carried along
NOT_COMPUTED = "the forward pass does not compute its layer"


@dataclass(frozen=True)
class LeftInFloat:
    """A parameter that is not quantized: its name, its number of values, and why."""

    name: str
    elements: int
    reason: str


@dataclass(frozen=True)
class CheckReport:
    """What a search on a network would lead to.

    Attributes:
        inputs: the inputs, with types and shapes without the batch.
        outputs: names of the outputs.
        parameters: number of all parameters.
        quantized: how many of them are quantized.
        layers: the number of quantized layers.
        left: parameters of at least two axes that stay in float, the largest first.
        activations: the number of activation quantizers.
        integer_share: share of the compute nodes that onnxruntime runs on integers.
        float_nodes: those that it runs in float.
        onnx_bytes, csq_bytes: sizes of the files, with as many planes in each layer.
        float32_bytes: size of the float32 model as ONNX.
        multiplications: of a sample with quantized weights.
        bit_operations: multiplications × bits of the weight × bits of its input, at as many planes in each layer.
        estimate: time and memory of a search with these settings, from a few steps of each of its stages.
        verification: of the exported ONNX file.
    """

    inputs: list[str]
    outputs: list[str]
    parameters: int
    quantized: int
    layers: int
    left: list[LeftInFloat]
    activations: int
    integer_share: float
    float_nodes: list[FloatNode]
    onnx_bytes: int
    csq_bytes: int
    float32_bytes: int
    multiplications: int
    bit_operations: int
    estimate: Estimate
    verification: VerifyReport

    @property
    def coverage(self) -> float:
        """The share of parameters that are quantized."""
        return self.quantized / self.parameters

    @property
    def never_computed(self) -> int:
        """The number of weights in layers that the forward pass does not compute."""
        return sum(one.elements for one in self.left if one.reason == NOT_COMPUTED)

    @property
    def passed(self) -> bool:
        """Whether the exported file computes what PyTorch computes."""
        return self.verification.passed

    @property
    def warnings(self) -> list[str]:
        """What a user should know before a search."""
        found = []
        if self.never_computed > NEVER_COMPUTED * self.parameters:
            first = next(one.name for one in self.left if one.reason == NOT_COMPUTED)
            found.append(
                f"{self.never_computed / self.parameters:.0%} of the parameters belong to layers that the forward "
                f"pass does not compute, {first} first: a .csq file keeps them in float32, an ONNX file leaves them out"
            )
        if self.quantized < LITTLE * (self.parameters - self.never_computed):
            found.append(
                f"only {self.coverage:.0%} of the parameters are quantized: a budget counts these alone, the others "
                "stay in float32"
            )
        if self.activations and self.integer_share < LITTLE:
            found.append(f"only {self.integer_share:.0%} of the compute nodes run on integers in onnxruntime")
        return found


def check(
    config: SearchConfig,
    *,
    model: ModelSource | None = None,
    data: DataSource | None = None,
    progress: Progress | None = None,
    fused: bool = False,
) -> CheckReport:
    """Go the whole way with a network that is not trained.

    Args:
        config: settings of the search that may follow.
        model: builds the module; None takes the factory in the settings.
        data: training and test data; None loads the source in the settings.
        progress: is told what is being done.
        fused: build fused kernels for the timing, too, where the search would: the same process is going to need them.

    Raises:
        InputError: model, data or settings cannot be used, or the network cannot be exported.
    """
    told = progress or Silent()
    config = config if fused else _without_fused_kernels(config)
    with temporary_folder() as folder:
        told.line("tracing the network …")
        start = Start.of_settings(config)
        session = Session(config, RunDirectory(folder / "run"), start, told, model=model, data=data)
        network = session.network
        check_files_ahead(network, session.info())
        found = first_samples(session.data.train, SAMPLES)
        assert found is not None  # the session has refused empty data
        told.line("rounding and exporting it …")
        planes = max(1, round(config.target_bits)) if config.target_bits is not None else 3
        rounded = post_training_model(
            network.model, [found[0]], planes=planes, act_bits=config.act_bits, exclude=config.exclude,
            info=session.info(),
        )  # fmt: skip
        onnx, packed = folder / "model.onnx", folder / "model.csq"
        done = export(rounded, onnx, format="onnx", model=network.model)
        export(rounded, packed, format="csq", model=network.model)
        verification = verify_file(
            onnx, rounded, model=network.model, data=session.data, samples=SAMPLES, tell=told.line
        )
        told.line("timing a few training steps …")
        return CheckReport(
            inputs=[f"{i.name}: {i.dtype} {list(i.shape)}" for i in network.inputs],
            outputs=list(network.outputs),
            parameters=sum(p.numel() for p in network.model.parameters()),
            quantized=sum(layer.elements for layer in rounded.layers),
            layers=len(rounded.layers),
            left=_left(network.model, rounded, config.exclude),
            activations=len(rounded.activations),
            integer_share=integer_share(onnx.read_bytes()),
            float_nodes=list(done.report.float_nodes),
            onnx_bytes=onnx.stat().st_size,
            csq_bytes=packed.stat().st_size,
            float32_bytes=done.float32_bytes,
            multiplications=sum(network.multiplications.values()),
            bit_operations=(planes + 1) * sum(network.bit_operations.values()),
            estimate=rehearse(session),
            verification=verification,
        )


def estimate(config: SearchConfig) -> Estimate:
    """Estimate the time and memory of a search, without exporting and verifying the network.

    Args:
        config: settings of the search, which name the model and the data.

    Raises:
        InputError: model, data or settings cannot be used.
    """
    config = _without_fused_kernels(config)
    with temporary_folder() as folder:
        return rehearse(Session(config, RunDirectory(folder / "run"), Start.of_settings(config), Silent()))


def _without_fused_kernels(config: SearchConfig) -> SearchConfig:
    """Return the settings for a look that takes seconds: building the kernels takes half a minute and more."""
    return dataclasses.replace(config, compile="no") if config.compile == "auto" else config


def look_ahead(
    config: SearchConfig, progress: Progress, *, model: ModelSource | None = None, data: DataSource | None = None
) -> None:
    """Check a network before its search, and tell in a few lines what is found. Several processes skip it.

    A verification that fails is told, and stops nothing: the values of a network that is not trained may lie exactly
    between two integers, where the two sides may round apart.

    Args:
        config: settings of the search.
        progress: is told the lines.
        model: as in `check`.
        data: as in `check`.

    Raises:
        InputError: as in `check`, before any training.
    """
    if start_processes(config.device).count > 1:
        return
    progress.line("before training: exporting and verifying the network …")
    report = check(config, model=model, data=data, fused=True)
    progress.line(
        f"{report.quantized:,} of {report.parameters:,} parameters ({report.coverage:.0%}) are quantized, in "
        f"{report.layers} layers; {report.integer_share:.0%} of the compute nodes run on integers"
    )
    progress.line(f"training takes {report.estimate}")
    for warning in report.warnings:
        progress.line(f"warning: {warning}")
    for check_ in report.verification.failures[:1]:
        progress.line(
            f"warning: before training, the export differs from PyTorch: {check_.level} {check_.name}: "
            f"{check_.detail} (csqtool check shows all)"
        )


def _left(module: nn.Module, rounded: QuantizedModel, exclude: Sequence[str]) -> list[LeftInFloat]:
    """Return the parameters that stay in float, and why."""
    quantized = {layer.name for layer in rounded.layers} | set(rounded.tied)
    unused = set(unused_weights(module, quantized))
    found = []
    for name, parameter in module.named_parameters():
        if name in quantized or parameter.ndim < 2:
            continue
        if any(fnmatchcase(name, pattern) for pattern in exclude):
            reason = "excluded"
        elif name in unused:
            reason = NOT_COMPUTED
        else:
            reason = "no operation multiplies data by it or looks rows of it up"
        found.append(LeftInFloat(name, parameter.numel(), reason))
    return sorted(found, key=lambda one: -one.elements)
