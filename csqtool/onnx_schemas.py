"""What a node of a standard operator must have so that it can be read at all: inputs, outputs and attributes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import onnx

STANDARD = ("", "ai.onnx")  # both are names of the domain of ONNX's own operators


class Schema(NamedTuple):
    """What a standard operator needs.

    Attributes:
        inputs: how many inputs it may have.
        required_inputs: positions of those that may not be empty.
        min_outputs: how many outputs it has at least.
        required_attributes: names of attributes without a default.
        attribute_types: the type of each attribute, as in `AttributeProto.type`.
    """

    inputs: range
    required_inputs: list[int]
    min_outputs: int
    required_attributes: frozenset[str]
    attribute_types: Mapping[str, int]


@functools.cache
def schema(operator: str, version: int, domain: str) -> Schema | None:
    """Return what a standard operator needs, None if there is no such operator."""
    import onnx

    try:
        found = onnx.defs.get_schema(operator, version, "" if domain in STANDARD else domain)
    except onnx.defs.SchemaError:
        return None
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    return Schema(
        range(found.min_input, found.max_input + 1),
        # An input that may be left out, such as a Loop's number of iterations, has an empty name.
        [i for i, parameter in enumerate(found.inputs[: found.min_input]) if parameter.option != optional],
        found.min_output,
        frozenset(name for name, attribute in found.attributes.items() if attribute.required),
        {name: attribute.type.value for name, attribute in found.attributes.items()},
    )


def schema_problem(node: onnx.NodeProto, versions: Mapping[str, int]) -> str | None:
    """Return what a node of a standard operator lacks, None for nothing.

    Args:
        node: the node; of an operator that is not standard nothing is said.
        versions: the version of each domain's operators that the graph imports.
    """
    domains = STANDARD if node.domain in STANDARD else (node.domain,)
    version = next((versions[domain] for domain in domains if domain in versions), None)
    needs = None if version is None else schema(node.op_type, version, node.domain)
    if needs is None:
        return None  # the checker says whose operator it is, and whether there is one
    if len(node.input) not in needs.inputs or not all(node.input[i] for i in needs.required_inputs):
        return f"has {sum(map(bool, node.input))} inputs, it needs {needs.inputs.start}"
    if len(node.output) < needs.min_outputs:
        return f"has {len(node.output)} outputs, it needs {needs.min_outputs}"
    if missing := needs.required_attributes - {attribute.name for attribute in node.attribute}:
        return f"lacks its attribute {min(missing)!r}"
    for attribute in node.attribute:
        if attribute.type != needs.attribute_types.get(attribute.name, attribute.type):
            return f"has an attribute {attribute.name!r} of another type than that operator's"
    return None
