"""Networks for the C inference, and a short way from a module to its compiled program and its reference."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from csqtool.files import write_bytes
from csqtool.nn.finalized_net import finalized_net
from csqtool.nn.post_training import post_training_model
from csqtool.nn.quantized_net import QuantizedNet
from csqtool.quantized_model import QuantizedModel
from csqtool.verifying.c_accounting import unexplained
from csqtool.verifying.c_batches import cuts_by_sample
from csqtool.verifying.c_checks import any_integers, weight_problems
from csqtool.verifying.c_graph import CReference
from csqtool.verifying.c_program import SANITIZERS, WARNINGS, CFolder, CProgram, Place, Run
from csqtool.verifying.c_sums import Computed
from csqtool.verifying.expected_graph import captured
from exporters.c import to_c
from exporters.c.options import COptions

TRACED = (*WARNINGS, "-O1", "-DMODEL_TRACE", *SANITIZERS)


@dataclass
class CExport:
    """A module, its files and its reference."""

    model: QuantizedModel
    net: QuantizedNet
    files: dict[str, bytes]
    notes: list[str]
    storage: Mapping[str, str]
    reference: CReference
    inputs: Tensor

    def program(
        self, flags: Sequence[str] = TRACED, cc: str | None = None
    ) -> tuple[CProgram, tempfile.TemporaryDirectory[str]]:
        """Return the compiled program, and the folder that it lies in."""
        folder = tempfile.TemporaryDirectory()
        source = Path(folder.name) / "source"
        source.mkdir()
        for name, content in self.files.items():
            write_bytes(source / name, content)
        build = Path(folder.name) / "build"
        build.mkdir()
        return CProgram(CFolder(source), build, flags, cc), folder

    def _assert_faithful_given_any_integers(self, program: CProgram, run: Run, wanted: Computed) -> None:
        largest = {a.name: a.largest for a in self.model.activations}
        values = {name: any_integers(largest[name], place.shape) for name, place in wanted.places.items()
                  if name in largest}  # fmt: skip
        if not values:
            return
        arrays, first = self.inputs.numpy(), self.reference.input_place
        wanted = self.reference.run(arrays, values)
        given = wanted.places | values
        forced = {name: form.stored(given[name]) for name, form in run.forms.items()}
        forced[""] = run.input if first is None else Place.of_input(given[first].shape[1:]).stored(given[first])
        found = program.run(arrays, forced, like=run)
        finite = self.reference.finite
        assert finite.any()
        for name, stored in found.places.items():
            assert np.array_equal(found.forms[name].values(stored)[finite], wanted.places[name][finite]), name
        assert found.output[finite].tobytes() == np.ascontiguousarray(wanted.output)[finite].tobytes()

    def unexplained(self) -> list[str]:
        """Return what the verifier does not explain in the files."""
        with tempfile.TemporaryDirectory() as folder:
            for name, content in self.files.items():
                write_bytes(Path(folder) / name, content)
            return unexplained(CFolder(Path(folder)), self.reference.graph, self.model)

    def assert_same_at_every_level(self, cc: str) -> None:
        """A compiler warns of nothing, and the output equals the reference's without and with its optimizations."""
        arrays = self.inputs.numpy()
        wanted = np.ascontiguousarray(self.reference.run(arrays).output).tobytes()
        for level in ("-Os", "-O3"):
            program, folder = self.program((*WARNINGS, level, "-march=native"), cc)
            with folder:
                assert program.run(arrays, traced=False).output.tobytes() == wanted, level

    def assert_faithful(self) -> Run:
        """Every line is explained; weights, quantizers and the output equal the reference's; layers are PyTorch's."""
        assert self.unexplained() == []
        arrays = self.inputs.numpy()
        program, folder = self.program()
        with folder:
            run = program.run(arrays)
            wanted = self.reference.run(arrays)
            self._assert_faithful_given_any_integers(program, run, wanted)
        assert list(weight_problems(run.filters, wanted.layers)) == []
        names = list(wanted.places)
        assert sorted(run.places) == sorted(name for name in names if name != self.reference.input_place)
        for name, stored in run.places.items():
            assert np.array_equal(run.forms[name].values(stored), wanted.places[name]), name
        assert run.output.tobytes() == np.ascontiguousarray(wanted.output).tobytes()
        if not self.model.activations:
            with torch.no_grad():
                exact = self.net(self.inputs).numpy()
            assert np.abs(run.output.reshape(exact.shape) - exact).max() < 1e-5 * max(1, np.abs(exact).max())
            return run
        found = cuts_by_sample(self.net, self.model, self.inputs, self.reference.moved_places)
        cuts = {c.name: c.reference for c in found if c.is_quantizer}
        assert set(cuts) <= set(names)
        forced = self.reference.run(arrays, cuts).places
        for name, values in cuts.items():
            steps = np.abs(forced[name].astype(int) - values.astype(int))
            # The tolerance of verify, and one value where there are few.
            assert steps.max() <= 1, name
            assert (steps > 0).sum() <= max(1, 1e-3 * steps.size), name
        return run


def export_c(
    module: nn.Module,
    shape: tuple[int, ...],
    *,
    planes: Any = 3,
    act_bits: int | None = 8,
    count: int = 8,
    rows: int = 0,
    prepare: Callable[[QuantizedModel], QuantizedModel] = lambda model: model,
    **options: Any,
) -> CExport:
    """Quantize without training, export and rebuild; inputs of `shape` are random, or numbers of `rows` rows."""
    module = module.eval()
    inputs = torch.randn(16, *shape, generator=torch.Generator().manual_seed(0))
    if rows:
        inputs = (inputs.abs() * rows / 4).long().clamp(max=rows - 1)
    model = prepare(post_training_model(module, [inputs], planes=planes, act_bits=act_bits))
    files, report = to_c(model, copy.deepcopy(module), COptions(**options))
    net = finalized_net(copy.deepcopy(module), model)
    reference = CReference(captured(net, model, ()), model, in_float=options.get("requantize") == "float")
    return CExport(model, net, files, report.notes, report.storage, reference, inputs[:count])


class Branches(nn.Module):
    """Dilated and grouped convolutions of signed values, both poolings, concatenation, a part, upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 12, (3, 2), padding=(2, 1), dilation=(2, 1), groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
        self.back = nn.ConvTranspose2d(12, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.max = nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)
        self.mean = nn.AvgPool2d(3, 2, padding=1, count_include_pad=False)
        self.last = nn.Conv2d(7, 5, 1)
        self.classifier = nn.Linear(5 * 5 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)  # [N, 8, 5, 6], signed: its zero point is in the middle
        y = self.grouped(x)[..., :6]
        z = torch.cat([self.max(x)[..., :3], self.mean(self.depthwise(x))], 1)
        up = nn.functional.interpolate(z[:, 2:3], scale_factor=3, mode="nearest")
        x = torch.cat([self.back(y)[:, :, :9, :9], up], 1)
        x = nn.functional.avg_pool2d(torch.relu(self.last(x)), 2, ceil_mode=False)
        return self.classifier(nn.functional.pad(x, [0, 0, 1, 0]).flatten(1))


class Functions(nn.Module):
    """Activation functions by tables, bounded activations, a quantized output."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(6 if i else 2, 6, 3, padding=1) for i in range(5))
        self.unused = nn.Conv2d(6, 2, 1)
        self.prelu = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        f = nn.functional
        x = f.hardswish(self.convs[0](x))
        x = f.silu(self.convs[1](x))
        x = f.gelu(self.convs[2](x))
        x = self.convs[3](x).clamp(-0.5, 1.0)
        x = torch.tanh(self.convs[4](x))
        x = f.max_pool2d(f.relu6(self.prelu(x)), 2)
        self.unused(x)  # so that x is quantized, and the output is what a quantizer returns
        return x


class Products(nn.Module):
    """Products and sums of quantized values, of the same sizes and with one value a channel on either side."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(6 if i else 2, 6, 3, padding=1) for i in range(5))
        self.squeeze, self.expand = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.convs[0](x))
        b = self.convs[1](a)
        gate = torch.relu(self.squeeze(nn.functional.adaptive_avg_pool2d(a, 1)))  # [N, 6, 1, 1]
        y = self.convs[2](a * b) + self.expand(gate)
        z = self.expand(gate) - self.convs[3](gate * a)
        return self.convs[4](y + z)


class OneDimension(nn.Module):
    """One dimension: convolutions with stride and padding, a linear layer on every position, differences."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 7, 5, stride=2, padding=3)
        self.norm = nn.BatchNorm1d(7)
        self.depthwise = nn.Conv1d(7, 7, 3, padding=1, groups=7)
        self.mix, self.head = nn.Linear(7, 9), nn.Linear(9, 2)
        with torch.no_grad():
            self.norm.weight.copy_(torch.linspace(-1, 1, 7))  # flips signs, and turns one channel off

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = x - self.depthwise(x)
        return self.head(torch.relu(self.mix(x.transpose(1, 2))))


class JoinedInFloat(nn.Module):
    """Values that are joined before anything quantizes them, along the first and the last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.head = nn.Linear(6, 5), nn.Linear(6, 3), nn.Linear(8, 4)
        self.register_buffer("token", torch.linspace(-1, 1, 8).reshape(1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([torch.softmax(self.one(x), -1), self.other(x).exp()], -1)  # [N, 4, 8]
        y = torch.cat([y[:, :1] * 0 + self.token, y], 1)
        z = self.head(y)
        return torch.cat([torch.softmax(z, -1), z.abs()], 1)


class InFloat(nn.Module):
    """What computes between linear layers without a quantizer: functions, normalization, means, products, parts."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.wide, self.narrow = nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(12, 8)
        self.norm, self.head = nn.LayerNorm((5, 12)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x)  # [N, 5, 12]
        one, other, third = y.chunk(3, -1)
        z = torch.tanh(one) * torch.sigmoid(other) - third.abs()
        y = torch.relu(self.norm(self.wide(y.clamp(-1, 1))))
        y = self.narrow(torch.exp(-y))
        attention = torch.softmax(y @ y.transpose(1, 2) / 3, -1) @ y  # [N, 5, 8]
        return torch.softmax(self.head(attention[:, 1:4].mean(1)), -1) + z.mean((1, 2)).unsqueeze(-1)


class Attention(nn.Module):
    """torch's own attention, which puts tokens in front of the batch, and what else moves or merges the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mix, self.head = nn.Linear(8, 24), nn.Linear(8, 3)
        self.register_buffer("position", torch.linspace(-1, 1, 40).reshape(5, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x)[0]  # [N, 5, 8]
        q, k, v = self.mix(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)  # each [N, 2, 5, 4]
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        tokens_first = torch.relu(self.head(torch.softmax(self.position + y.transpose(0, 1), -1)))  # [5, N, 3]
        return torch.cat([tokens_first[:2], tokens_first[2:4] * 2], -1).mean(0)


class SmoothFunctions(nn.Module):
    """Functions after linear layers, in float, and of quantized values, by tables."""

    def __init__(self, *, tables: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(4, 4, 1) if tables else nn.Linear(6, 6) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        f = nn.functional
        x = f.gelu(self.layers[0](x), approximate="tanh")
        x = f.softplus(self.layers[1](x))
        x = f.mish(self.layers[2](x)) ** 2
        x = f.softplus(self.layers[3](8 * x), beta=2, threshold=5)
        return self.layers[4](x)


class Blended(nn.Module):
    """Bilinear upsampling of what is quantized and of what is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        f = nn.functional
        x = f.interpolate(torch.relu(self.first(x)), scale_factor=(2, 3), mode="bilinear", align_corners=False)
        x = self.last(x)
        return f.interpolate(x[..., :1], scale_factor=2, mode="bilinear").mean(2)
