"""The one error hierarchy of csqtool.

::

    CsqtoolError                  anything csqtool raises on purpose
    ├── InputError                the user's input is wrong: exit code 2, one `error:` line
    │   ├── ConfigError           an option, a key or a value
    │   ├── ModelError            the model, its factory or its weights
    │   ├── DataError             the data set
    │   ├── FormatError           a file is not what it claims to be
    │   ├── ExportError           the model holds something the format cannot carry
    │   └── TrainingError         training diverged
    ├── CheckFailed               a condition the user set does not hold: exit code 1
    └── SearchInterrupted         Ctrl-C, state saved: exit code 130

A failed verification is no exception: `csqtool.verify` returns a report whose `passed` is False (exit code 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CsqtoolError(Exception):
    """Base of every error that csqtool raises on purpose."""


class InputError(CsqtoolError):
    """The user's input is wrong; the message says what, where and what to do."""


class ConfigError(InputError):
    """An option, a configuration key or a value is wrong."""


class ModelError(InputError):
    """The model, its factory or its weights cannot be used."""


class DataError(InputError):
    """The data set cannot be used."""


class FormatError(InputError):
    """A file is not what it claims to be: damaged, truncated or of another kind."""


class ExportError(InputError):
    """The model holds something that the chosen format cannot carry."""


class TrainingError(InputError):
    """Training diverged: the loss is not finite."""


class CheckFailed(CsqtoolError):
    """A condition that the user set, such as an export in integers only, does not hold."""


class SearchInterrupted(CsqtoolError):
    """A search was interrupted by the user; its state is saved and can be resumed."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'x'?`` with the known name closest to `name`, or the list of known names."""
    known = sorted({*known})
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known)}"
