from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that everybody knows
from torch import Tensor, nn
from torch.nn.utils import parametrize

from csqtool.errors import ConfigError
from csqtool.nn.sites import record
from csqtool.nn.weights import (
    attach,
    check_excluded,
    detach,
    quantizable_weights,
    unused_weights,
    weights_called,
)


class Doubled(nn.Module):
    """A parametrization whose weight is twice a parameter of its own."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.share = nn.Parameter(weight.detach() / 2)

    def forward(self, _: Tensor | None = None) -> Tensor:
        return self.share * 2

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight.new_empty(0)


def tied() -> nn.ModuleDict:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5)})
    model["head"].weight = model["embed"].weight
    return model


class Mixed(nn.Module):
    """Weights under all kinds of names and uses, and parameters of several axes that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up, self.norm = nn.Conv1d(2, 4, 3), nn.ConvTranspose1d(4, 4, 3), nn.LayerNorm([4, 6])
        self.kernel = nn.Parameter(torch.randn(4, 2, 1))  # standardized before it is used
        self.gain = nn.Parameter(torch.ones(4, 1, 1))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.split = nn.MultiheadAttention(4, 2, kdim=4, vdim=5, batch_first=True)
        self.recurrent = nn.LSTM(4, 4, batch_first=True)
        self.W, self.addmm, self.position = (nn.Parameter(torch.randn(4, 4)) for _ in range(3))
        self.names, self.bags = nn.Embedding(3, 4), nn.EmbeddingBag(3, 4)
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        standardized = (self.kernel - self.kernel.mean((1, 2), keepdim=True)) * self.gain
        x = self.norm(self.up(self.conv(x)) + F.conv1d(x, standardized)).transpose(1, 2)
        x = x + self.attention(x, x, x)[0] + self.split(x, x, torch.cat([x, x[..., :1]], -1))[0]
        x = self.recurrent(x)[0] @ self.W + self.position[0]
        flat = torch.addmm(x.new_zeros(4), x.flatten(0, 1), self.addmm)
        rows = (x.sum((1, 2)) > 0).long()
        return flat.unflatten(0, (len(x), -1)).mean(1) + self.names(rows) + self.bags(rows[:, None])


def test_what_an_operation_does_with_a_parameter_makes_it_a_weight_whatever_its_name() -> None:
    model = Mixed()
    wanted = ["conv.weight", "up.weight", "kernel", "attention.in_proj_weight", "attention.out_proj.weight",
              *(f"split.{name}_proj_weight" for name in "qkv"), "split.out_proj.weight",
              "recurrent.weight_ih_l0", "recurrent.weight_hh_l0", "W", "addmm", "names.weight",
              "bags.weight"]  # fmt: skip
    used = record(model, [torch.randn(3, 2, 6)]).weights
    assert sorted(weight.name for weight in quantizable_weights(model, used)) == sorted(wanted)
    assert unused_weights(model, used) == ["unused.weight"]


def test_a_module_under_two_names_has_one_weight_of_two_names() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 3)})
    model["b"] = model["a"]
    (weight,) = quantizable_weights(model, ["a.weight"])
    assert (weight.name, weight.aliases, len(weight.places)) == ("a.weight", ("b.weight",), 1)


def test_a_tied_weight_is_found_once_under_all_its_names() -> None:
    (weight,) = quantizable_weights(tied(), ["head.weight"])
    assert (weight.name, weight.aliases, weight.shape, weight.elements) == (
        "embed.weight",
        ("head.weight",),
        (5, 3),
        15,
    )


def test_excluded_patterns_leave_weights_out_and_must_match() -> None:
    model, used = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)), ["0.weight", "1.weight"]
    assert [weight.name for weight in quantizable_weights(model, used, ("0.*",))] == ["1.weight"]
    check_excluded(("0.*",), quantizable_weights(model, used))
    with pytest.raises(ConfigError, match=r"'2\.\*' matches no quantized layer; the layers are 0\.weight, 1\.weight"):
        check_excluded(("0.*", "2.*"), quantizable_weights(model, used))
    check_excluded(("head.weight",), quantizable_weights(tied(), ["head.weight"]))  # an alias counts


def test_a_parametrization_serves_all_places_of_a_tied_weight_and_alone_is_trained() -> None:
    model = tied()
    value = model["embed"].weight.detach().clone()
    (weight,) = quantizable_weights(model, ["embed.weight"])
    source = Doubled(weight.parameter)
    attach(weight, source)
    source.share.data += 1
    for module in (model["embed"], model["head"]):
        assert torch.equal(module.weight, value + 2)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"embed.parametrizations.weight.0.share", "head.bias"}


def test_detached_a_tied_weight_is_one_plain_parameter_again() -> None:
    model = tied()
    names = set(model.state_dict())
    (weight,) = quantizable_weights(model, ["embed.weight"])
    attach(weight, Doubled(weight.parameter))
    value = torch.randn(5, 3)
    detach(weight, value)
    assert set(model.state_dict()) == names
    assert model["embed"].weight is model["head"].weight
    assert torch.equal(model["head"].weight, value)
    assert model["head"].weight.requires_grad


class Twice(nn.Module):
    """One recurrent layer that runs twice in a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 2, num_layers=2, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(self.rnn(x)[0])[0]


def test_a_recurrent_layer_computes_with_its_parametrized_weights_and_they_are_trained() -> None:
    torch.manual_seed(0)
    model, x = Twice(), torch.randn(5, 3, 4)
    expected = copy.deepcopy(model)
    weights = quantizable_weights(model, record(model, [x]).weights)
    assert len(weights) == 8  # from input and state to the gates, of two layers and directions
    for weight in weights:
        source = Doubled(weight.parameter)
        attach(weight, source)
        source.share.data += 0.25
    with torch.no_grad():
        for weight in weights_called(expected, [w.name for w in weights]):
            weight.parameter.add_(0.5)
        wanted = expected(x)
    for _ in range(2):
        with parametrize.cached():
            model(x).square().sum().backward()
        assert torch.allclose(model(x), wanted)
    assert all(source.share.grad is not None for _, source in _sources(model))
    assert torch.equal(copy.deepcopy(model)(x), model(x))  # torch copies no tensor with a history
    for weight, (_, source) in zip(weights, _sources(model), strict=True):
        detach(weight, source())
    assert torch.allclose(model(x), wanted)
    assert set(model.state_dict()) == set(expected.state_dict())
    assert not model.rnn._forward_hooks


def _sources(model: nn.Module) -> list[tuple[str, Doubled]]:
    return [(name, part) for name, part in model.named_modules() if isinstance(part, Doubled)]
