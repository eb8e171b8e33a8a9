"""Where activation quantizers are placed, decided on the recorded sites of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from csqtool.nn.operations import (
    ADD_OPS,
    FORWARDING_OPS,
    INPUT_OPS,
    NORM_OPS,
    OTHER_OPS,
    POOL_OPS,
    UNKNOWN,
    WEIGHT_OPS,
)
from csqtool.nn.sites import Site, Sites

FOLDING_OPS = ("conv1d", "conv2d", "conv3d", "linear")  # output channels on axis 0: BatchNorm folds into a scale
CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")  # none of their integer kernels returns float
FLOAT_BITS = 32
FUSED_ACTIVATIONS = ("relu", "relu6", "hardtanh", "clamp")  # run in one kernel with the layer and the quantizer


def _source(site: Site | None) -> Site | None:
    """Return the site whose values arrive unchanged at `site`'s output (None: the model's input)."""
    while site is not None and site.kind == FORWARDING_OPS:
        site = site.inputs[0]
    return site


def _computed_in_float(sites: list[Site]) -> set[Site]:
    """Return the sites whose operation is computed in float, by no kernel of a layer before it."""
    found: set[Site] = set()
    for site in sites:
        sources = [_source(one) for one in site.inputs]
        follows = site.kind in (OTHER_OPS, ADD_OPS) and bool(sources) and all(source in found for source in sources)
        if follows or (site.kind == OTHER_OPS and site.operation not in FUSED_ACTIVATIONS):
            found.add(site)
    return found


def _leading_to_weights(sites: list[Site], float_weights: Collection[str]) -> set[Site]:
    """Return the sites whose values reach the input of a quantized weight."""
    found: set[Site] = set()
    for site in reversed(sites):
        if any(c in found or (c.kind == WEIGHT_OPS and c.weight not in float_weights) for c in site.consumers):
            found.add(site)
    return found


@dataclass(frozen=True)
class Placement:
    """Where activations are quantized.

    Attributes:
        outputs: name of each site whose output is quantized, to its bits; the quantizer is called ``SITE.output``.
        input: name of the quantizer on the model's input, ``SITE.input``, if it has one; it has eight bits.
        layer_inputs: weight name to the name of the quantizer on the input of its layer.
        batch_norms: weight name to the BatchNorm module that directly follows and can fold into its scale.
    """

    outputs: dict[str, int]
    input: str | None
    layer_inputs: dict[str, str]
    batch_norms: dict[str, str]


def input_bits(recorded: Sites, placement: Placement) -> dict[str, int]:
    """Return the bits of what each weight is multiplied by, the largest if there are several; 32 for float values.

    Weights whose layers are seen only as a part of a larger operation, such as an attention, are left out.
    """
    found: dict[str, int] = {}
    for site in recorded.sites:
        if site.weight is None:
            continue
        source = _source(site.inputs[0])
        bits = placement.outputs.get(source.name, FLOAT_BITS) if source else 8 if placement.input else FLOAT_BITS
        found[site.weight] = max(bits, found.get(site.weight, 0))
    return found


def place_quantizers(recorded: Sites, act_bits: int | None, float_weights: Collection[str] = ()) -> Placement:
    """Decide where activations are quantized, so that each convolution, linear, addition and pooling can be integer.

    What feeds a weight gets `act_bits`. What feeds only an addition or a pooling, and the model's input, get eight
    bits, which costs integer kernels nothing. A value between a layer and its BatchNorm or a clipping activation
    function is not quantized: these run as one kernel. Nor are values of other functions that are only added or joined
    on their way out of the model, such as a detector's scores and coordinates: eight bits would round a box to pixels.

    Args:
        recorded: the model's sites, from `record`.
        act_bits: bits of the activations that feed weights, 2 to 8; None quantizes no activation.
        float_weights: names of weights that stay in float. What their layers read is quantized only where that ends
            the integer kernel of a layer in front.

    Example:
        Four images of 3 × 8 × 8 through two convolutions. BatchNorm folds into the first one's scale, and the ReLU
        is clipped by the quantizer, so that one kernel computes all three:

        >>> import torch
        >>> from torch import nn
        >>> from csqtool.nn.sites import record
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 3))
        >>> sites = record(net, [torch.zeros(4, 3, 8, 8)])
        >>> [(site.name, site.operation) for site in sites.sites]
        [('0', 'conv2d'), ('1', 'batch_norm'), ('2', 'relu'), ('3', 'conv2d')]
        >>> placement = place_quantizers(sites, act_bits=4)
        >>> placement.input, placement.outputs
        ('0.input', {'2': 4})
        >>> placement.layer_inputs
        {'0.weight': '0.input', '3.weight': '2.output'}
        >>> placement.batch_norms
        {'0.weight': '1'}
    """
    outputs: dict[str, int] = {}
    model_input: str | None = None
    layer_inputs: dict[str, str] = {}
    batch_norms: dict[str, str] = {}
    sites = recorded.sites
    uses = Counter(site.weight for site in sites if site.weight)
    leading, in_float = _leading_to_weights(sites, float_weights), _computed_in_float(sites)
    for site in sites:
        is_float_layer = site.weight in float_weights
        once = site.weight if site.weight and uses[site.weight] == 1 else None
        followed_by_norm = len(site.consumers) == 1 and not site.is_output and site.consumers[0].kind == NORM_OPS
        if once and followed_by_norm and site.operation in FOLDING_OPS:
            batch_norms[once] = site.consumers[0].module
        end = site.consumers[0] if followed_by_norm else site
        ends_here = bool(end.consumers) and in_float.issuperset(end.consumers)
        if act_bits is not None and site.operation in CONVOLUTIONS and ends_here and not is_float_layer:
            outputs[end.name] = 8  # such an activation function computes in float: the integer kernel ends before it
        if act_bits is None or site.kind not in (WEIGHT_OPS, ADD_OPS, POOL_OPS):
            continue
        # A weight operation's data is its first input; weights that depend on data stay as they are.
        for producer in site.inputs[:1] if site.kind == WEIGHT_OPS else site.inputs:
            source = _source(producer)
            if is_float_layer and (source is None or source in in_float):
                continue  # a float layer gains nothing, nor does a kernel in front of it
            if source is None:
                model_input = model_input or f"{site.name}.input"
                name = model_input
            elif source.kind == INPUT_OPS or source.name == UNKNOWN:
                continue  # these values cannot be quantized
            elif site.kind == ADD_OPS and site not in leading and source in in_float:
                continue  # what leaves the model is float, and so are the scores that a detector joins to it
            else:
                bits = act_bits if site.kind == WEIGHT_OPS else 8
                outputs[source.name] = min(bits, outputs.get(source.name, 8))
                name = f"{source.name}.output"
            if once:
                layer_inputs[once] = name
    return Placement(outputs, model_input, layer_inputs, batch_norms)
