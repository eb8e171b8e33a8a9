"""onnxscript's rewrite rules, tried only on nodes of the operator that they are for.

After a translation to ONNX, some fifty rules are tried on every node. Each is for one operator, but prepares a match
before it looks at the node's, and one of them walks over the whole graph each time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

SIMPLE = "SimplePatternMatcher"  # compares a node with the first one that the pattern ends with


@contextmanager
def rules_by_operator() -> Iterator[None]:
    """Within the block, a rewrite rule is tried only where the operator that its match ends with is the node's.

    What is rewritten does not change. A rule whose operator cannot be told, also because onnxscript has changed, is
    tried everywhere.
    """
    from onnxscript import rewriter

    rule_class = getattr(rewriter, "RewriteRule", None)
    original = getattr(rule_class, "try_rewrite", None)
    if original is None:
        yield
        return
    operators: dict[Any, tuple[str, str] | None] = {}

    def try_rewrite(rule: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        if rule not in operators:
            operators[rule] = _operator_of(rule)
        wanted = operators[rule]
        if wanted is not None and wanted != (node.domain, node.op_type):
            return None
        return original(rule, model, graph, node, **options)

    with mock.patch.object(rule_class, "try_rewrite", try_rewrite):
        yield


def _operator_of(rule: Any) -> tuple[str, str] | None:
    """Return domain and name of the operator that a rule is for, None if it is not for one or that is not known."""
    with contextlib.suppress(AttributeError, IndexError, TypeError, ValueError):
        if type(rule._matcher).__name__ == SIMPLE:
            domain, name, _ = rule._target_pattern.output_nodes[0].op_identifier()
            return domain, name
    return None
