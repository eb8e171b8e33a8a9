"""The methods, and each method's own options.

Those of csqtool are declared here without torch, so that the command line and pipeline files know them without
importing it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from csqtool.errors import ConfigError, nearest
from csqtool.registry import Registry
from csqtool.searching.declarations import Declared, Setting, check, declared

METHODS = Registry("csqtool.methods", "method")
ALLOCATORS = Registry("csqtool.allocators", "allocator")
# The methods that finetune after a search, by their names for `finetune_with`.
FINETUNE_METHODS = {"lsq": "lsq", "csq": "csq-uniform", "entropy": "entropy", "lq-nets": "lq-nets", "zaq": "zaq"}

Strength = Annotated[float, Setting("Regularization strength λ (CSQ, eq. 7; α in BSQ, eq. 5).", minimum=0)]


@dataclass(frozen=True)
class Options:
    """Base class of methods' options, and the options of a method that has none."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class GateOptions(Options):
    """Options of ``csq-uniform``, and of finetuning with bit gates."""

    gate_learning_rate: Annotated[
        float, Setting("Learning rate of the bit gates m_p and m_n.", minimum=0, finetune=True)
    ] = 3.0
    gate_weight_decay: Annotated[
        float, Setting("Weight decay of gates, masks and their scales.", minimum=0, finetune=True)
    ] = 0.0
    gate_init: Annotated[float, Setting("Bit gates start at ± this.", above=0, finetune=True)] = 1.0
    beta_max: Annotated[float, Setting("Gate temperature β at the end.", minimum=1, finetune=True)] = 200.0
    beta_schedule: Annotated[
        Literal["epoch", "step"], Setting("β rises before every epoch, or every step.", finetune=True)
    ] = "epoch"
    keep_norms: Annotated[
        bool,
        Setting("Scales keep each layer's norm when β rises between epochs.", finetune=True),
    ] = True


@dataclass(frozen=True)
class CsqOptions(GateOptions):
    """Options of ``csq``."""

    mask_learning_rate: Annotated[float, Setting("Learning rate of the mask gates m_B.", minimum=0)] = 0.1
    mask_momentum: Annotated[
        float,
        Setting("Momentum of the mask gates; without any they follow the budget and do not overshoot.", minimum=0),
    ] = 0.0
    mask_init: Annotated[float, Setting("The mask gate of plane b starts at (b + 1) times this.", minimum=0)] = 0.05
    init: Annotated[
        Literal["csq", "paper"], Setting("Gates start from the weights (csq), or as in the authors' code (paper).")
    ] = "csq"
    strength: Strength = 0.01
    element_pressure: Annotated[
        bool, Setting("λ weights a plane by the weights of its layer, instead of all planes equally.")
    ] = True


@dataclass(frozen=True)
class BsqOptions(Options):
    """Options of ``bsq``."""

    strength: Strength = 0.01


@dataclass(frozen=True)
class MsqOptions(Options):
    """Options of ``msq``."""

    lsb_strength: Annotated[float, Setting("λ of the L1 on least significant bits, in squared steps.", minimum=0)] = 1.0
    drop_rounds: Annotated[int, Setting("How often, within the search, planes are dropped.", minimum=1)] = 12
    odd_share: Annotated[
        float, Setting("A layer loses its lowest plane where at most this share of its integers is odd.", minimum=0,
                       maximum=1)
    ] = 0.3  # fmt: skip
    trace_samples: Annotated[int, Setting("Training samples of the Hessian's trace.", minimum=2)] = 128
    trace_draws: Annotated[int, Setting("Random vectors of the trace.", minimum=2)] = 8


@dataclass(frozen=True)
class LqNetsOptions(Options):
    """Options of ``lq-nets``."""

    basis: Annotated[
        Literal["layer", "channel"],
        Setting(
            "A basis for each layer, or for each output channel as in the paper, at more bytes in the packed file.",
            finetune=True,
        ),
    ] = "layer"
    level_bits: Annotated[
        int, Setting("Bits of the integers that levels are rounded to.", minimum=3, maximum=8, finetune=True)
    ] = 8


@dataclass(frozen=True)
class LsqOptions(Options):
    """Options of ``lsq``, and of finetuning with it."""

    power_of_two_scales: Annotated[
        bool,
        Setting("Step sizes of weights and activations are powers of two, zero points 0 or in the middle: for FPGAs."),
    ] = False


@dataclass(frozen=True)
class EntropyOptions(Options):
    """Options of ``entropy``, and of finetuning with it."""

    rate_planes: Annotated[
        int, Setting("The range of integers in planes, 4 for -15 to 15; more where the target's bits need more.",
                     minimum=1, maximum=7, finetune=True)
    ] = 4  # fmt: skip
    rate_start: Annotated[
        float,
        Setting("All layers start from the step size at which they have this many times the target's bits.", above=0,
                finetune=True),
    ] = 1.0  # fmt: skip
    rate_press: Annotated[
        float, Setting("Share of the training in which the bits fall to the target's.", above=0, maximum=1,
                       finetune=True)
    ] = 0.1  # fmt: skip
    rate_strength: Annotated[
        float, Setting("λ (loss for a bit a weight) is this many times the price of a bit in rounding.", above=0,
                       finetune=True)
    ] = 10.0  # fmt: skip


@dataclass(frozen=True)
class ZaqOptions(LsqOptions):
    """Options of ``zaq``."""

    generator_rate: Annotated[float, Setting("Learning rate of the generator (Adam).", above=0, finetune=True)] = 1e-3
    relation_strength: Annotated[
        float, Setting("α, the weight of the difference of features' relations.", minimum=0, finetune=True)
    ] = 1.0
    statistics_strength: Annotated[
        float,
        Setting("Weight, in the generator's loss, of how far images are from BatchNorm's statistics; published is 0.",
                minimum=0, finetune=True),
    ] = 10.0  # fmt: skip
    activity_strength: Annotated[
        float,
        Setting("β, the weight of the float network's activity in the generator's loss.", minimum=0, finetune=True),
    ] = 0.1


@dataclass(frozen=True)
class AllocatorOptions(Options):
    """Options of ``measured``, and of all allocators that read training data."""

    allocation_samples: Annotated[int, Setting("Training samples that the allocator reads.", minimum=2)] = 512


@dataclass(frozen=True)
class HessianOptions(AllocatorOptions):
    """Options of ``hawq-v2`` and ``hawq-v3``."""

    hessian_steps: Annotated[
        int, Setting("Random vectors of the trace, or steps of the power iteration, at most.", minimum=2)
    ] = 100
    hessian_tolerance: Annotated[
        float, Setting("It ends earlier once a step changes the estimate by less than this share.", minimum=0)
    ] = 1e-3


@dataclass(frozen=True)
class HawqOptions(HessianOptions):
    """Options of ``hawq``, whose graph of the samples' gradients stays in memory."""

    allocation_samples: Annotated[int, Setting("Training samples that the allocator reads.", minimum=2)] = 128


@dataclass(frozen=True)
class GpOptions(AllocatorOptions):
    """Options of ``gp``."""

    trial_rate: Annotated[float, Setting("Learning rate with which the allocator trains schemes.", above=0)] = 0.005
    gp_curves: Annotated[int, Setting("Curves that are tried.", minimum=1)] = 61
    gp_controls: Annotated[int, Setting("Values that describe a curve.", minimum=1, maximum=8)] = 2
    gp_steps: Annotated[
        int, Setting("A curve is trained for 0, 1, 2 or 10 times this many steps before it is judged.", minimum=1)
    ] = 10


@dataclass(frozen=True)
class HaqOptions(AllocatorOptions):
    """Options of ``haq``."""

    trial_rate: Annotated[float, Setting("Learning rate with which the allocator trains schemes.", above=0)] = 0.005
    haq_episodes: Annotated[int, Setting("Schemes that the agent tries, the first 20 at random.", minimum=1)] = 600
    haq_steps: Annotated[int, Setting("Steps that each scheme is trained for before it is judged.", minimum=0)] = 0


@dataclass(frozen=True)
class LimpqOptions(Options):
    """Options of ``limpq``."""

    importance_steps: Annotated[
        int, Setting("Steps in which step sizes of all widths are trained, each at every number of planes.", minimum=1)
    ] = 200
    importance_rate: Annotated[float, Setting("Learning rate of these steps.", above=0)] = 0.01


@dataclass(frozen=True)
class ZeroqOptions(Options):
    """Options of ``zeroq``."""

    synthetic_samples: Annotated[int, Setting("Inputs that are made to meet BatchNorm's statistics.", minimum=2)] = 64
    synthetic_steps: Annotated[int, Setting("Steps of making them.", minimum=1)] = 500


@dataclass(frozen=True)
class QuanosOptions(AllocatorOptions):
    """Options of ``quanos``."""

    attack_size: Annotated[float, Setting("ε of the attack, in standard deviations of the inputs.", above=0)] = 0.1


@dataclass(frozen=True)
class MethodKind:
    """The facts about a method that are needed before torch is imported.

    Attributes:
        options: the class of its options.
        searches: whether it finds how many planes each layer keeps, and trains the weights at the same time.
        counts_bytes: whether it trains for a size of the packed file, and needs a target size.
        allocates: whether it finds the planes from the float model, and leaves the training to another method.
        data: what it needs: ``none``, ``unlabelled`` or ``labelled`` data.
    """

    options: type[Options]
    searches: bool = False
    counts_bytes: bool = False
    allocates: bool = False
    data: str = "labelled"

    @property
    def role(self) -> str:
        """What it does: ``allocator`` (finds a scheme), ``trainer`` (trains at a given scheme) or ``both``."""
        return "both" if self.searches else "allocator" if self.allocates else "trainer"


BUILT_IN: Mapping[str, MethodKind] = {
    "apot": MethodKind(LsqOptions),
    "bsq": MethodKind(BsqOptions, searches=True),
    "csq": MethodKind(CsqOptions, searches=True),
    "csq-uniform": MethodKind(GateOptions),
    "dorefa": MethodKind(Options),
    "entropy": MethodKind(EntropyOptions, counts_bytes=True),
    "lq-nets": MethodKind(LqNetsOptions),
    "lsq": MethodKind(LsqOptions),
    "msq": MethodKind(MsqOptions, searches=True),
    "ste-uniform": MethodKind(Options),
    "zaq": MethodKind(ZaqOptions, data="none"),
    "gp": MethodKind(GpOptions, allocates=True),
    "haq": MethodKind(HaqOptions, allocates=True),
    "hawq": MethodKind(HawqOptions, allocates=True),
    "hawq-v2": MethodKind(HessianOptions, allocates=True),
    "hawq-v3": MethodKind(HessianOptions, allocates=True),
    "limpq": MethodKind(LimpqOptions, allocates=True),
    "measured": MethodKind(AllocatorOptions, allocates=True),
    "quanos": MethodKind(QuanosOptions, allocates=True),
    "zeroq": MethodKind(ZeroqOptions, allocates=True, data="none"),
}


def method_kind(name: str) -> MethodKind:
    """Return the facts about a method; a method of another package is imported for them.

    Raises:
        ConfigError: no such method is installed, or it cannot be imported.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    allocators = ALLOCATORS.entries()
    entries = METHODS.entries() | allocators
    if name not in entries:
        raise ConfigError(f"unknown method {name!r}; {nearest(name, [*BUILT_IN, *entries])}")
    try:
        loaded = entries[name].load()
    except Exception as error:
        raise ConfigError(
            f"the method {name} of another package cannot be imported: {type(error).__name__}: {error}; "
            "repair or uninstall that package"
        ) from error
    own, data = getattr(loaded, "Options", Options), str(getattr(loaded, "data", "labelled"))
    if name in allocators:
        return MethodKind(own, allocates=True, data=data)
    counts_bytes = bool(getattr(loaded, "counts_bytes", False))
    return MethodKind(own, bool(loaded.searches), counts_bytes, data=data)


def method_kinds() -> dict[str, MethodKind]:
    """Return the facts about all methods and allocators; those of other packages are imported for them.

    Raises:
        ConfigError: one of another package cannot be imported.
    """
    names = sorted({*BUILT_IN, *METHODS.names(), *ALLOCATORS.names()})
    return {name: method_kind(name) for name in names}


def option_owners() -> dict[str, dict[str, Declared]]:
    """Return all options by name, each with the methods that have it and their declarations."""
    owners: dict[str, dict[str, Declared]] = {}
    for method, kind in method_kinds().items():
        for name, one in declared(kind.options).items():
            owners.setdefault(name, {})[method] = one
    return owners


def as_options(record: type[Options], values: Mapping[str, Any]) -> Options:
    """Return the record of a method's options from values by name; values of other names are ignored."""
    return record(**{field.name: values[field.name] for field in dataclasses.fields(record) if field.name in values})
