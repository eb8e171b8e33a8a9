"""A forward pass that is run again with one parameter changed: only what comes after its first use is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from csqtool.trees import mapped, tensors

T = TypeVar("T")
_ANY = torch.empty(0)


class _ReachedError(BaseException):
    """Ends a run at the call that was asked for; user code that catches every `Exception` must not catch it."""


class DivergedError(Exception):
    """The calls of a run are not those of the run before it."""


@dataclass(frozen=True)
class _Made:
    """A tensor that a call made: its number in the run, and what stands for it where nobody looks at its values."""

    number: int
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def placeholder(self) -> Tensor:
        """Return a tensor of the same shape without memory of its own; NaN, so that a use would be seen."""
        value = torch.zeros((), dtype=self.dtype, device=self.device)
        return (value + torch.nan if self.dtype.is_floating_point else value).expand(self.shape)


@dataclass(frozen=True)
class _Given:
    """A tensor that a call was given, the one at this position among its arguments' tensors, and returned."""

    position: int


@dataclass
class _Call:
    """A call of a run.

    Attributes:
        func: the function.
        output: what it returned, with `_ANY` for each tensor; all else is the same in every run.
        tensors: the tensors, in order.
    """

    func: Any
    output: Any
    tensors: list[_Made | _Given]


@dataclass
class _Record:
    """What the first run did.

    Attributes:
        calls: in order.
        last_use: the last call that is given a tensor, by the tensor's number.
        first_use: the first call that is given a parameter, by name.
    """

    calls: list[_Call] = field(default_factory=list)
    last_use: dict[int, int] = field(default_factory=dict)
    first_use: dict[str, int] = field(default_factory=dict)


class Replay(Generic[T]):
    """Runs a function of a network again and again, without repeating what a changed parameter has no influence on.

    The first run notes every torch call, and which call is the first to see each parameter. `begin` then holds the
    tensors that are there just before a parameter's first use and are needed after it, and a call of this object
    returns what the function returns with the parameters' present values: it skips all calls before that.

    The function must make the same calls in each run, with `torch.no_grad`. It may change tensors in place; where that
    concerns held ones, later runs compute everything.

    Args:
        run: the function, such as a forward pass and a loss on a batch.
        parameters: what is going to be changed, by name.
    """

    def __init__(self, run: Callable[[], T], parameters: Mapping[str, Tensor]) -> None:
        self._run = run
        self._record = _Record()
        self._held: dict[int, Tensor] = {}
        self._versions: dict[int, int] = {}
        self._from = 0
        recording = _Recording(self._record, parameters)
        with torch.no_grad(), recording:
            self.value = run()
        self.order: list[str] = sorted(self._record.first_use, key=self._record.first_use.__getitem__)

    def begin(self, name: str) -> None:
        """Hold what is needed to run with another value of a parameter.

        In the order of `order` everything is computed once for all parameters; before one that comes earlier than the
        last, the run begins anew. A parameter that no call was given has everything computed.

        Raises:
            DivergedError: the function made other calls than in the first run.
        """
        wanted = self._record.first_use.get(name, 0)
        if wanted == self._from:
            return
        if wanted < self._from:
            self._hold({}, 0)
        advancing = _Replaying(self._record, self._held, self._from, until=wanted)
        try:
            with torch.no_grad(), advancing:
                self._run()
        except _ReachedError:
            self._hold(advancing.held, wanted)
        else:
            raise DivergedError

    def __call__(self) -> T:
        """Return what the function returns now.

        Raises:
            DivergedError: the function made other calls than in the first run.
        """
        with torch.no_grad(), _Replaying(self._record, self._held, self._from):
            value = self._run()
        if any(tensor._version != self._versions[number] for number, tensor in self._held.items()):
            self._hold({}, 0)
        return value

    def _hold(self, held: Mapping[int, Tensor], call: int) -> None:
        self._held, self._from = dict(held), call
        self._versions = {number: tensor._version for number, tensor in self._held.items()}


class _Recording(TorchFunctionMode):
    """Notes the calls of a run."""

    def __init__(self, record: _Record, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._record = record
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._numbers: MutableMapping[Tensor, int] = WeakTensorKeyDictionary()
        self._count = 0

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = list(tensors((args, kwargs or {})))
        record, call = self._record, len(self._record.calls)
        for tensor in given:
            if (number := self._numbers.get(tensor)) is not None:
                record.last_use[number] = call
            if (name := self._names.get(id(tensor))) is not None:
                record.first_use.setdefault(name, call)
        output = func(*args, **(kwargs or {}))
        found = [self._described(tensor, given, call) for tensor in tensors(output)]
        record.calls.append(_Call(func, mapped(output, lambda _: _ANY), found))
        return output

    def _described(self, tensor: Tensor, given: Sequence[Tensor], call: int) -> _Made | _Given:
        position = next((i for i, one in enumerate(given) if one is tensor), None)
        if position is not None:
            return _Given(position)
        number = self._numbers.get(tensor)
        if number is None:
            number = self._numbers[tensor] = self._count
            self._count += 1
        else:
            self._record.last_use[number] = call  # a call gives an earlier tensor back, such as an attribute of another
        return _Made(number, tensor.shape, tensor.dtype, tensor.device)


class _Replaying(TorchFunctionMode):
    """Skips the calls before a given one, and ends the run at another one.

    Attributes:
        held: the tensors that are needed after the end, by number.
    """

    def __init__(self, record: _Record, held: Mapping[int, Tensor], begin: int, until: int | None = None) -> None:
        super().__init__()
        self._record = record
        self._begin = begin
        self._until = until
        self._before = held
        self._call = -1
        self._reached = False
        self.held = {n: t for n, t in held.items() if until is not None and record.last_use[n] >= until}

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._reached:  # a block such as `torch.no_grad()` is left on the way out
            return func(*args, **(kwargs or {}))
        self._call += 1
        if self._call == self._until:
            self._reached = True
            raise _ReachedError
        if self._call >= len(self._record.calls) or self._record.calls[self._call].func != func:
            raise DivergedError
        call = self._record.calls[self._call]
        if self._call < self._begin:
            given = list(tensors((args, kwargs or {})))
            if given or call.output is not None:
                return self._recalled(call, given)
            # Given no tensor, and nothing is returned: it changes a state, such as whether gradients are wanted.
        output = func(*args, **(kwargs or {}))
        if self._until is not None:
            for found, tensor in zip(call.tensors, tensors(output), strict=True):
                if isinstance(found, _Made) and self._record.last_use.get(found.number, -1) >= self._until:
                    self.held[found.number] = tensor
        return output

    def _recalled(self, call: _Call, given: Sequence[Tensor]) -> Any:
        parts = iter(call.tensors)

        def recalled(_: Tensor) -> Tensor:
            part = next(parts)
            if isinstance(part, _Given):
                return given[part.position]
            held = self._before.get(part.number)
            return part.placeholder() if held is None else held

        return mapped(call.output, recalled)
