"""Sites: the torch calls of a model's forward pass, and what feeds what, recorded by running it once.

A `TorchFunctionMode` sees every torch call of ordinary Python code: residual additions and functional
activations as well as modules. So no model has to be rewritten or traced into another form. A *site* is one
such call. Its name consists of the module that made the call, the operation and, from the second call on, a
number. Names are the same in every run, so what is decided on the recorded sites is applied by name at run time.

A module that serves several others has the first of its paths, and a call that works in place counts as one that
returns its result: whoever holds the changed tensor goes on with what the call was made to return.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from csqtool.nn.modes import evaluating
from csqtool.nn.operations import (
    ADD_OPS,
    FORWARDING_OPS,
    INPUT_OPS,
    KINDS,
    LIKE_OPS,
    OTHER_OPS,
    PRODUCTS,
    SET_REQUIRES_GRAD,
    UNKNOWN,
    WEIGHT_OPS,
    weights_given,
)
from csqtool.trees import Arguments, tensors


def is_operation(module: nn.Module) -> bool:
    """Return whether a module is one of torch's own: its path alone then identifies the operation."""
    # torch gives a parametrized module a subclass of its own class, and a stand-in another one while it captures.
    own = (kind for kind in type(module).__mro__ if not kind.__module__.startswith(("torch.nn.utils", "torch.fx")))
    return next(own).__module__.startswith("torch.nn")


@dataclass(eq=False)
class Site:
    """One call of the forward pass.

    Attributes:
        name: module path, followed by the operation's name unless the module is that operation.
        kind: one of the kinds above.
        operation: which function was called, such as ``conv2d``.
        module: path of the module the call was made in.
        inputs: the sites that made its tensor inputs, in order; None is the model's first input.
        weight: name of the parameter that a weight operation uses.
        consumers: the sites that use its output.
        is_output: the output leaves the model.
    """

    name: str
    kind: str
    operation: str
    module: str
    inputs: list[Site | None]
    weight: str | None = None
    consumers: list[Site] = field(default_factory=list)
    is_output: bool = False


@dataclass(frozen=True)
class Sites:
    """What a forward pass was seen to do.

    Attributes:
        sites: its calls, in order.
        weights: names of the parameters that data are multiplied by, or rows are looked up in: as they are, or in a
            form that the model computes of them, such as standardized ones.
    """

    sites: list[Site]
    weights: frozenset[str]


@dataclass(frozen=True)
class Call:
    """A call of a known operation: its site's name, kind and operation."""

    name: str
    kind: str
    operation: str


class SiteMode(TorchFunctionMode):
    """Hands each call of a known operation to `on_call`, which returns what the caller gets.

    Only calls on tensors that depend on the model's inputs count and have names: what a model computes from its
    parameters and from shapes, it may compute once and keep.

    Args:
        model: whose forward pass is watched.
        inputs: the tensors that it is given.
    """

    def __init__(self, model: nn.Module, inputs: Iterable[Tensor]) -> None:
        super().__init__()
        self._data: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._add_data(inputs)
        self._stack = [""]
        self._counts: Counter[str] = Counter()
        self._modules = _own_modules(model)
        self._operations = {path for path, module in self._modules if is_operation(module)}
        # What in-place calls were made to return, for as long as a tensor that they changed is there.
        self._replaced: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Watch one forward pass of the model."""
        handles = []
        for path, module in self._modules:
            before, after = self._pusher(path), self._pop
            if isinstance(module, parametrize.ParametrizationList):
                # What computes a weight is not part of the model, and its compiled kernels must run without a mode.
                before, after = self._leave, self._return
            handles.append(module.register_forward_pre_hook(before))
            handles.append(module.register_forward_hook(after, always_call=True))
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _pusher(self, path: str) -> Callable[[nn.Module, Any], None]:
        def push(_module: nn.Module, _arguments: Any) -> None:
            self._stack.append(path)

        return push

    def _pop(self, _module: nn.Module, _arguments: Any, _output: Any) -> None:
        self._stack.pop()

    def _leave(self, _module: nn.Module, _arguments: Any) -> None:
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def _return(self, _module: nn.Module, _arguments: Any, _output: Any) -> None:
        self.__enter__()  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func == SET_REQUIRES_GRAD and args[1] and args[0].requires_grad:
            return None  # what was quantized has a gradient already, and is no leaf that may be told to have one
        if len(self._replaced):
            args, kwargs = self.current(args), self.current(kwargs)
        output = func(*args, **kwargs)
        self.on_any(func, args, kwargs, output)
        if not self._depends_on_data(func, args, kwargs):
            return output
        self._add_data([*_tensors(output), *(args[:1] if func is Tensor.__setitem__ else ())])
        known = KINDS.get(func)
        if known is None and not (isinstance(output, Tensor) and output.is_floating_point()):
            self.on_unknown((args, kwargs), output)
            return output
        kind, operation = known or (OTHER_OPS, func.__name__.strip("_"))
        position = PRODUCTS.get(func)
        if position is not None and len(args) > position and self.is_weight(args[position]):
            kind = WEIGHT_OPS  # a linear layer in other words
        path = self._stack[-1]
        name = path if path and path in self._operations else f"{path}.{operation}".lstrip(".")
        if isinstance(output, Tensor) and not output.is_floating_point():
            # Numbered apart from float results: BatchNorm's batch counter, for one, is added to in training only.
            name = f"{name}.integers"
        self._counts[name] += 1
        if self._counts[name] > 1:
            name = f"{name}@{self._counts[name]}"
        result = self.on_call(Call(name, kind, operation), args, kwargs, output)
        self._add_data(_tensors(result))
        if result is not output and any(x is output for x in _tensors((args, kwargs))):
            self._replaced[output] = result
        return result

    def _add_data(self, found: Iterable[Tensor]) -> None:
        for tensor in found:
            self._data[tensor] = True

    def _depends_on_data(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        name = getattr(func, "__name__", "")
        if name in LIKE_OPS:
            return False
        given = args[:1] if name in ("type_as", "to") else (args, kwargs)
        return any(tensor in self._data for tensor in _tensors(given))

    def current(self, tree: Any) -> Any:
        """Return arguments or outputs with what takes the place of tensors that were changed in place."""
        if isinstance(tree, Tensor):
            while tree in self._replaced:
                tree = self._replaced[tree]
            return tree
        if isinstance(tree, tuple) and hasattr(tree, "_fields"):
            return type(tree)(*map(self.current, tree))
        if type(tree) in (list, tuple):
            return type(tree)(self.current(item) for item in tree)
        return {key: self.current(item) for key, item in tree.items()} if type(tree) is dict else tree

    def is_weight(self, tensor: Any) -> bool:
        """Tell whether a factor of a product is a parameter; only where that matters."""
        return False

    def on_any(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Look at a call of any torch function, before it is handled as one of a known operation or not."""

    def on_call(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Handle a call of a known operation and return what the caller gets."""
        raise NotImplementedError  # abstract

    def on_unknown(self, arguments: Any, output: Any) -> None:
        """Handle a call of an unknown torch function that does not return one float tensor."""


def _own_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return each module once, with its first path, also while torch captures a graph.

    It then hands out another stand-in for a module wherever that is found; all stand-ins share the module's contents.
    """
    found: dict[int, tuple[str, nn.Module]] = {}
    for path, module in model.named_modules():
        found.setdefault(id(module.__dict__), (path, module))
    return list(found.values())


class _Recorder(SiteMode):
    def __init__(self, model: nn.Module, inputs: Sequence[Tensor], weight_names: dict[int, str]) -> None:
        super().__init__(model, inputs)
        self.sites: list[Site] = []
        self.weights: set[str] = set()
        self._by_memory: dict[int, list[Tensor]] = {}
        # The parameters that a tensor is computed from, of tensors that depend on no data.
        self._origins = {key: frozenset([name]) for key, name in weight_names.items()}
        self._sizes = {name: p.numel() for name, p in model.named_parameters()}
        self._producer: dict[int, Site | None] = {
            id(x): None if i == 0 and x.is_floating_point() else Site(f"input_{i}", INPUT_OPS, "input", "", [])
            for i, x in enumerate(inputs)
        }
        self._alive: list[Any] = list(inputs)  # ids are unique only while their tensors live
        for x in inputs:
            self._memory_of(x).append(x)
        self._weight_names = weight_names

    def is_weight(self, tensor: Any) -> bool:
        return id(tensor) in self._weight_names

    def on_any(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        for tensor in _tensors(weights_given(func, args, kwargs)):
            # A gain for each channel, or a factor of low rank, has fewer values than the weight that is made of it.
            self.weights |= {n for n in self._origins.get(id(tensor), ()) if self._sizes[n] >= tensor.numel()}
        if func is Tensor.__setitem__:
            self._forget(self._memory_of(args[0]))
        found = list(_tensors((args, kwargs)))
        if any(id(x) in self._producer for x in found):
            return
        origins = frozenset().union(*(self._origins.get(id(x), frozenset()) for x in found))
        for tensor in _tensors(output) if origins else ():
            self._origins[id(tensor)] = origins
            self._alive.append(tensor)

    def on_call(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        sources = [x for x in _tensors((args, kwargs)) if id(x) in self._producer]
        if call.operation in ("type_as", "to"):
            sources = [x for x in sources if x is args[0]]
        if not sources:
            return output
        site = Site(call.name, call.kind, call.operation, self._stack[-1], [self._producer[id(x)] for x in sources])
        if call.kind == ADD_OPS and len(sources) < 2:
            # Where a constant is added, an integer kernel gains nothing. Zero is what Python's sum() begins with.
            adds_zero = call.operation == "add" and any(isinstance(x, int | float) and x == 0 for x in args)
            site.kind = FORWARDING_OPS if adds_zero else OTHER_OPS
        if call.kind == WEIGHT_OPS:
            site.weight = next((self._weight_names[id(x)] for x in _tensors((args[1:], kwargs))
                                if id(x) in self._weight_names), None)  # fmt: skip
        self._add(site, output)
        return output

    def on_unknown(self, arguments: Any, output: Any) -> None:
        sources = [x for x in _tensors(arguments) if id(x) in self._producer]
        outputs = list(_tensors(output))
        if sources and outputs:
            self._add(
                Site(UNKNOWN, OTHER_OPS, UNKNOWN, self._stack[-1], [self._producer[id(x)] for x in sources]), output
            )

    def _add(self, site: Site, output: Any) -> None:
        for source in site.inputs:
            if source is not None:
                source.consumers.append(site)
        for tensor in _tensors(output):
            memory = self._memory_of(tensor)
            if any(tensor is other for other in memory):  # changed in place
                self._forget(memory)
            else:
                memory.append(tensor)
            self._producer[id(tensor)] = site
            self._alive.append(tensor)
        self.sites.append(site)

    def _memory_of(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors that share their memory with `tensor`, itself among them once it is known."""
        return self._by_memory.setdefault(tensor.untyped_storage()._cdata, [])

    def _forget(self, changed: list[Tensor]) -> None:
        """Do not quantize what was changed through another view of it."""
        unknown = Site(UNKNOWN, OTHER_OPS, UNKNOWN, "", [])
        self._producer.update((id(tensor), unknown) for tensor in changed)

    def mark_outputs(self, output: Any) -> None:
        for tensor in tensors(output):
            site = self._producer.get(id(tensor))
            if site is not None:
                site.is_output = True


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from _tensors(item)
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))


@torch.no_grad()
def record(model: nn.Module, inputs: Any) -> Sites:
    """Run `model` twice in evaluation mode and return the sites of the second time.

    Call it before gates or quantizers are attached: weights are recognised as the module's parameters.

    Args:
        model: a float module; each of its modules keeps its own mode.
        inputs: a batch's inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    arguments = Arguments.of(inputs, model)
    recorder = _Recorder(model, list(tensors(arguments)), names)
    with evaluating(model):
        arguments.call(model)  # what a model computes once and keeps, such as anchors, is a constant from now on
        with recorder.active():
            recorder.mark_outputs(arguments.call(model))
    return Sites(recorder.sites, frozenset(recorder.weights))
