"""Layers that the loss does not reach: their rounding is not trained, and no training loss tells what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from csqtool.nn.quantized_net import QuantizedNet
from csqtool.nn.weights import WeightSource


@contextmanager
def telling_unreached(net: QuantizedNet, tell: Callable[[str], None]) -> Iterator[None]:
    """Watch the gradients of one training step, and tell which quantized weights got none.

    Such are constants that turn outputs into boxes after the loss, and branches that training leaves out.

    Args:
        net: the network that is trained.
        tell: called with a line that names the layers, if there are any.
    """
    reached: set[str] = set()

    def watch(name: str, _source: object, _inputs: Any, weight: Tensor) -> None:
        if weight.requires_grad:
            weight.register_hook(lambda _: reached.add(name))  # type: ignore[no-untyped-call]

    sources = {
        f"{path}.{attribute}" if path else attribute: source
        for path, module in net.model.named_modules()
        for attribute, chain in getattr(module, "parametrizations", {}).items()
        for source in chain
        if isinstance(source, WeightSource)
    }
    handles = [source.register_forward_hook(partial(watch, name)) for name, source in sources.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    unreached = [name for name in sources if name not in reached]
    if reached and unreached:  # nothing is reached where the step was not taken
        tell(
            f"the loss did not reach {len(unreached)} layers in the first step, so nothing trains their rounding; "
            f"leave constants in float with --exclude: {', '.join(unreached)}"
        )
