"""A small network, its export, and the structure level on an edited copy of it; no training, no data."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from csqtool.model_info import ModelInfo
from csqtool.nn.finalized_net import finalized_net
from csqtool.nn.post_training import post_training_model
from csqtool.onnx_file import flattened
from csqtool.quantized_model import QuantizedModel
from csqtool.verifying.expected_graph import ExpectedGraph
from csqtool.verifying.findings import Check, VerifyReport
from csqtool.verifying.structure import check_structure, expected_beside
from csqtool.verifying.subject import Subject
from exporters.onnx import OnnxOptions, to_onnx

Proto = onnx.ModelProto
Edit = Callable[[Proto], None]


class Branches(nn.Module):
    """Two equal branches, an addition, a concatenation, pooling, a hard-swish and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.left = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.right = nn.Sequential(nn.Conv2d(8, 8, 3, padding=2, dilation=2), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Hardswish())
        self.norm = nn.LayerNorm(16, eps=1e-5)
        self.classifier = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        left, right = self.left(x), self.right(x)
        joined = torch.cat([left + right, self.deep(x)], 1)
        pooled = torch.nn.functional.max_pool2d(joined, 2).mean((2, 3))
        return self.classifier(self.norm(pooled))


@dataclasses.dataclass(frozen=True)
class Sample:
    """A finalized model and its ONNX file."""

    model: QuantizedModel
    module: nn.Module
    content: bytes
    _captured: list[ExpectedGraph] = dataclasses.field(default_factory=list)

    def proto(self) -> Proto:
        return onnx.load_from_string(self.content)

    def structure(self, edit: Edit | None = None, *, allowed: tuple[str, ...] = ()) -> list[Check]:
        """Return the checks of the structure level, of the file after an edit."""
        proto = self.proto()
        if edit is not None:
            edit(proto)
        report = VerifyReport.begin("file", "model", 0, 4.0)
        net = finalized_net(copy.deepcopy(self.module), self.model)
        unused: Any = None
        subject = Subject(
            content=b"", model=self.model, finalized_sha256="", net=net,
            build_net=lambda model: finalized_net(copy.deepcopy(self.module), model), source=unused, samples=None,
            report=report, tell=unused, backends=(), threads=0, allow_unaccounted=frozenset(allowed),
        )  # fmt: skip
        flat = flattened(proto, where="file")
        check_structure(proto, flat, subject, lambda: self._expected(flat, subject))
        return list(report.checks)

    def failures(self, edit: Edit) -> dict[str, set[str]]:
        """Return the failed checks after an edit, by name, with the places that they name."""
        found: dict[str, set[str]] = {}
        for check in self.structure(edit):
            if not check.passed:
                found.setdefault(check.name, set()).add(str(check.layer))
        return found

    def _expected(self, flat: Proto, subject: Subject) -> ExpectedGraph:
        """Capture the network once: edits do not change it."""
        if not self._captured:
            with expected_beside(flat, subject) as expected:
                self._captured.append(expected())
        return self._captured[0]


def sample(
    module: nn.Module,
    shape: tuple[int, ...],
    *,
    act_bits: int | None = 8,
    exclude: tuple[str, ...] = (),
    **options: Any,
) -> Sample:
    """Round a module without training and export it."""
    torch.manual_seed(0)
    module = module.eval()
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    info = ModelInfo({"input_shape": list(shape)})
    model = post_training_model(
        module, [torch.randn(8, *shape)], planes=3, act_bits=act_bits, info=info, exclude=exclude
    )  # fmt: skip
    content, _ = to_onnx(model, copy.deepcopy(module), OnnxOptions(**options))
    return Sample(model, module, content)


def node(proto: Proto, output: str) -> onnx.NodeProto:
    return next(n for n in proto.graph.node if output in n.output)


def first(proto: Proto, operator: str) -> onnx.NodeProto:
    return next(n for n in proto.graph.node if n.op_type == operator)


def tensor(proto: Proto, name: str) -> onnx.TensorProto:
    return next(t for t in proto.graph.initializer if t.name == name)


def add_tensor(proto: Proto, name: str, values: Any) -> str:
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    return name


def put(proto: Proto, name: str, values: np.ndarray) -> None:
    tensor(proto, name).CopyFrom(numpy_helper.from_array(values, name))


def values(proto: Proto, name: str) -> np.ndarray:
    return np.array(numpy_helper.to_array(tensor(proto, name)))


def before(proto: Proto, place: onnx.NodeProto, *nodes: onnx.NodeProto) -> None:
    """Insert nodes in front of a node."""
    position = list(proto.graph.node).index(place)
    for offset, new in enumerate(nodes):
        proto.graph.node.insert(position + offset, new)


def at_the_end(proto: Proto, *nodes: onnx.NodeProto) -> None:
    """Let `nodes`, the last of which makes ``output``, read the old output under the name ``honest``."""
    last = node(proto, "output")
    last.output[list(last.output).index("output")] = "honest"
    proto.graph.node.extend(nodes)


def make(operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, outputs, **attributes)


def set_attribute(place: onnx.NodeProto, name: str, value: Any) -> None:
    kept = [a for a in place.attribute if a.name != name]
    del place.attribute[:]
    place.attribute.extend([*kept, helper.make_attribute(name, value)])
