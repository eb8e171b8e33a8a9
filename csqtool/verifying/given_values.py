"""Running an ONNX graph with some of its values given, instead of computed by its own nodes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper

from csqtool.onnx_isolated import IsolatedSession
from csqtool.verifying import runtime
from csqtool.verifying.layers import part
from csqtool.verifying.outputs import Arrays

GIVEN, OWN = "__given", "__own"


class GivenValues:
    """A graph whose values can be looked at, and replaced.

    Args:
        proto: the graph, without functions and Constant nodes.
        feeds: its inputs, by name.
        threads: of onnxruntime, 0 its own choice.
    """

    def __init__(self, proto: onnx.ModelProto, feeds: Arrays, threads: int) -> None:
        self.proto = proto
        self._feeds = feeds
        self._threads = threads
        self.makers = {output: node for node in proto.graph.node for output in node.output if output}

    def run(
        self, wanted: Collection[str], given: Mapping[str, NDArray[Any]], optimization: str = "off"
    ) -> dict[str, NDArray[Any]]:
        """Return values by name, those that the graph's own nodes make, while what reads a given value gets that one.

        Args:
            wanted: names of values.
            given: values by name; initializers and inputs cannot be given.
            optimization: onnxruntime's level.

        Raises:
            RuntimeError: onnxruntime failed.
        """
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        graph = proto.graph
        for node in graph.node:
            for position, name in enumerate(node.output):
                if name in given:
                    node.output[position] = name + OWN
        front = [helper.make_node("Identity", [name + GIVEN], [name]) for name in given]
        nodes = [*front, *graph.node]
        del graph.node[:]
        graph.node.extend(nodes)
        kinds = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in given.items()}
        graph.input.extend(helper.make_tensor_value_info(name + GIVEN, kind, None) for name, kind in kinds.items())
        names = {name: name + OWN if name in given else name for name in wanted}
        known = {value.name: value for value in graph.output}
        outputs = [known.get(name, onnx.ValueInfoProto(name=name)) for name in names.values()]
        del graph.output[:]
        graph.output.extend(outputs)
        small = part(proto, list(names.values()))
        read = {value.name for value in small.graph.input}
        feeds = {name: array for name, array in self._feeds.items() if name in read}
        feeds |= {name + GIVEN: array for name, array in given.items() if name + GIVEN in read}
        session = IsolatedSession(small.SerializeToString(), optimization, threads=self._threads)
        found = runtime.run_once(session, feeds)
        return {name: found[own] for name, own in names.items()}

    def behind(self, value: str, stops: Collection[str]) -> list[str]:
        """Return the values between a value and those in `stops`, itself included, in the graph's order."""
        queue, seen = [value], set[str]()
        while queue:
            name = queue.pop()
            if name in seen or name not in self.makers or (name in stops and name != value):
                continue
            seen.add(name)
            queue.extend(self.makers[name].input)
        return [name for name in self.makers if name in seen]

    def needed(self) -> list[str]:
        """Return all values that an output needs, in the graph's order."""
        found = {name for output in self.proto.graph.output for name in self.behind(output.name, ())}
        return [name for name in self.makers if name in found]
