"""A process of its own for every library that parses or runs a file which may be hostile.

`call` runs a function in the process, under limits of time, memory and CPU. Whatever happens there, a segmentation
fault, an endless loop, an allocation of 100 GB, is a `SandboxError` here: one line, and the next call gets a new
process.
"""

from csqtool.sandbox.limits import Limits
from csqtool.sandbox.process import Sandbox, SandboxError, call, shared, warm_up

__all__ = ["Limits", "Sandbox", "SandboxError", "call", "shared", "warm_up"]
