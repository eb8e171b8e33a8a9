"""How many multiplications a sample costs in each weight's layers, counted while a model runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from csqtool.nn.modes import evaluating
from csqtool.trees import call, samples, tensors


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the floating-point operations of products, for the parameter that is a factor.

    A parameter is known by its memory, so that its views are it, too; what has as many values and is computed from it
    alone stands for it, such as a standardized weight.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: Counter[str] = Counter()
        self._owners = {_memory(one): (name, one.numel()) for name, one in parameters.items()}
        self._alive: list[Tensor] = []  # memory is told apart only while it is in use

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        owned = {found for one in tensors(args) if (found := self._owners.get(_memory(one)))}
        if not owned:
            return output
        packet = func._overloadpacket
        if packet in flop_registry:
            flops = int(flop_registry[packet](*args, **(kwargs or {}), out_val=output))
            for name, _ in owned:
                self.flops[name] += flops
        elif len(owned) == 1:
            ((name, elements),) = owned
            for one in tensors(output):
                if one.numel() == elements and _memory(one) not in self._owners:
                    self._owners[_memory(one)] = name, elements
                    self._alive.append(one)
        return output


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@torch.no_grad()
def multiplications(model: nn.Module, sample: Any, names: Iterable[str]) -> dict[str, int]:
    """Return the multiplications of a sample with each of these parameters (multiply-accumulates, MACs).

    Lookups of rows cost none.

    Args:
        model: a float module; it runs once in evaluation mode.
        sample: inputs of a few samples.
        names: of parameters.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operation for a whole attention, which nothing counts
    try:
        with evaluating(model), _Counting({name: model.get_parameter(name) for name in names}) as counting:
            call(model, sample)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    count = 2 * samples(sample)  # torch counts a multiplication and an addition
    return {name: -(-counting.flops[name] // count) for name in names}
