"""Rewrite rules are tried on fewer nodes and rewrite the same."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from onnxscript import rewriter

from csqtool.nn.rewriting import rules_by_operator

NODES = [  # what rules rewrite, and what none does
    ("Relu", ["x"], "a"),
    ("Relu", ["a"], "b"),
    ("Neg", ["b"], "c"),
    ("Identity", ["c"], "d"),
    ("Transpose", ["d"], "e"),
    ("Transpose", ["e"], "f"),
    ("Sin", ["f"], "g"),
]


def graph(copies: int) -> onnx.ModelProto:
    nodes, last = [], "x"
    for copy in range(copies):
        for operator, inputs, output in NODES:
            names = [last if name == "x" else f"{name}{copy}" for name in inputs]
            options = {"perm": [1, 0]} if operator == "Transpose" else {}
            nodes.append(helper.make_node(operator, names, [f"{output}{copy}"], **options))
        last = f"{NODES[-1][2]}{copy}"
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in ("x", last)]
    return helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:]))


def trials(monkeypatch: pytest.MonkeyPatch, copies: int) -> tuple[onnx.ModelProto, list[tuple[Any, str]]]:
    """Return the rewritten graph and what was tried on which operator."""
    tried: list[tuple[Any, str]] = []
    original = rewriter.RewriteRule.try_rewrite

    def recorded(rule: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        tried.append((rule, node.op_type))
        return original(rule, model, graph, node, **options)

    with monkeypatch.context() as patch:
        patch.setattr(rewriter.RewriteRule, "try_rewrite", recorded)
        with rules_by_operator():
            return rewriter.rewrite(graph(copies)), tried


def test_rules_rewrite_what_they_did_in_fewer_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    found, tried = trials(monkeypatch, 3)
    wanted = rewriter.rewrite(graph(3))
    assert len(wanted.graph.node) < 3 * len(NODES)  # the rules have work here
    assert found.SerializeToString() == wanted.SerializeToString()
    rules = {rule for rule, operator in tried if operator == "Sin"}
    assert {rule for rule, operator in tried if operator == "Neg"} == rules  # rules for no operator, or for several
    assert len(rules) < len({rule for rule, _ in tried}) / 2


def test_trials_grow_as_the_graph_does(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = (len(trials(monkeypatch, copies)[1]) for copies in (5, 50))
    assert many == 10 * few


def test_a_rule_whose_operator_cannot_be_told_is_tried_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csqtool.nn.rewriting.SIMPLE", "a matcher of another onnxscript")
    _, tried = trials(monkeypatch, 1)
    assert {operator for _, operator in tried} >= {operator for operator, _, _ in NODES}


def test_an_onnxscript_without_such_rules_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(rewriter, "RewriteRule")
    with rules_by_operator():
        assert not hasattr(rewriter, "RewriteRule")


def test_onnxscript_gets_its_method_back() -> None:
    method = rewriter.RewriteRule.try_rewrite
    with rules_by_operator():
        assert rewriter.RewriteRule.try_rewrite is not method
    assert rewriter.RewriteRule.try_rewrite is method
