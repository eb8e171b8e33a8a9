"""Element-wise kernels in two forms: plain PyTorch, and fused by torch.compile where that pays."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

# Fusing saves about 3 ns a value and step. From this many values times steps on it pays for half a minute of compiling.
COMPILE_FROM = 10_000_000_000
# Compiled variants of one kernel: one for each number of planes, and another for layers of a single weight.
MOST_FORMS = 32


class Kernel:
    """A function of tensors, run as it is or compiled.

    Args:
        eager: the form that runs without a compiler, with few temporaries.
        fusible: the same function, in a form that compiles to one pass over the data.
        probe: returns small arguments, to see whether compiling works.
        few_launches: the same function in few operations on large tensors, for devices to which each operation is sent
            at a cost; None takes `eager`.
    """

    _all: ClassVar[list[Kernel]] = []

    def __init__(
        self,
        eager: Callable[..., Any],
        fusible: Callable[..., Any],
        probe: Callable[[], tuple[Any, ...]],
        *,
        few_launches: Callable[..., Any] | None = None,
    ) -> None:
        self._eager = eager
        self._fusible = fusible
        self._few_launches = few_launches or eager
        self._probe = probe
        self._compiled: Callable[..., Any] | None = None
        self._active = eager
        self._all.append(self)

    def __call__(self, *arguments: Any) -> Any:
        """Run the form in use, outside of autograd; callers detach tensors that are inside tuples."""
        # Detached tensors are not views. For views, torch would compile a variant for each shape of their base.
        form = self._active
        if form is self._eager and arguments[0].device.type != "cpu":
            form = self._few_launches
        return form(*(x.detach() if isinstance(x, Tensor) else x for x in arguments))

    def _compile(self) -> None:
        if self._compiled is None:
            limits: Any = torch._dynamo.config
            limits.recompile_limit = max(limits.recompile_limit, MOST_FORMS)
            compiled = torch.compile(self._fusible, dynamic=True)
            compiled(*self._probe())
            self._compiled = compiled
        self._active = self._compiled

    @classmethod
    def choose(cls, wanted: str, *, element_steps: float, device: str = "cpu") -> bool:
        """Choose the form of all kernels for this process.

        Args:
            wanted: ``yes``, ``no``, or ``auto``: on a CPU, compiled from `COMPILE_FROM` element-steps on.
            element_steps: values that the kernels touch in one step, times the steps of the run.
            device: the type of the device that they run on. On a GPU, ``auto`` does not compile: on an H200, compiling
                for a ResNet-20 had not ended after a minute, and memory traffic is not what its steps wait for.

        Returns:
            True if compiled kernels are in use. Where they cannot be built, one warning says why.
        """
        for kernel in cls._all:
            kernel._active = kernel._eager
        if wanted == "no" or (wanted == "auto" and (device != "cpu" or element_steps < COMPILE_FROM)):
            return False
        try:
            if not torch.cuda.is_available() and not any(map(shutil.which, ("g++", "clang++", "c++"))):
                raise RuntimeError("no C++ compiler was found")
            for kernel in cls._all:
                kernel._compile()
        except Exception as error:  # a compiler's tool chain can raise anything; the eager form computes the same
            for kernel in cls._all:
                kernel._active = kernel._eager
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            warnings.warn(f"training runs without compiled kernels, which is slower: {reason}", stacklevel=2)
            return False
        return True
