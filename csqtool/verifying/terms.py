"""Value numbering: what a value of a graph is, as an expression of inputs, constants and operators.

Two values of any two graphs get the same number exactly when their expressions are equal after rules that hold for all
inputs (`csqtool.verifying.term_rules`). Numbers stand for equality of what is computed; no sample is needed for it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Number = int
NOTHING: Number = 0  # an input that is left out
Attributes = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Term:
    """One expression.

    Attributes:
        operator: of ONNX, or ``input``, ``constant``, ``integers`` (a constant that comes from stored integers),
            ``quantizer`` (to an integer grid and back) or ``result`` (of an operator with several).
        attributes: sorted, defaults included.
        inputs: numbers of the operands.
    """

    operator: str
    attributes: Attributes = ()
    inputs: tuple[Number, ...] = ()


@dataclass
class Terms:
    """The numbers of all expressions that were seen.

    Attributes:
        ranks: how many axes a number's value has, where that is known.
    """

    terms: list[Term] = field(default_factory=lambda: [Term("nothing")])
    ranks: dict[Number, int] = field(default_factory=dict)
    _numbers: dict[Term, Number] = field(default_factory=lambda: {Term("nothing"): NOTHING})
    _constants: dict[Number, NDArray[Any]] = field(default_factory=dict)

    def number(self, term: Term) -> Number:
        """Return the number of an expression, a new one for a new expression."""
        if term not in self._numbers:
            self._numbers[term] = len(self.terms)
            self.terms.append(term)
        return self._numbers[term]

    def constant(self, values: NDArray[Any], *, integers: bool = False) -> Number:
        """Return the number of a constant: the same type, shape and bytes give the same number."""
        values = np.asarray(values)
        digest = hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
        kind = "integers" if integers else "constant"
        number = self.number(
            Term(kind, (("dtype", str(values.dtype)), ("shape", values.shape), ("sha256", digest)))
        )  # fmt: skip
        self._constants.setdefault(number, values)
        self.ranks[number] = values.ndim
        return number

    def value(self, number: Number) -> NDArray[Any] | None:
        """Return the values of a constant, None for anything else."""
        return self._constants.get(number)

    def __getitem__(self, number: Number) -> Term:
        return self.terms[number]
