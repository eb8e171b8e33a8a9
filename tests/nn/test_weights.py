from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that everybody knows
from torch import Tensor, nn

from csqtool.errors import ConfigError
from csqtool.nn.sites import record
from csqtool.nn.weights import attach, check_excluded, detach, quantizable_weights, unused_weights


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
              *(f"split.{name}_proj_weight" for name in "qkv"), "split.out_proj.weight", "W", "addmm",
              "names.weight", "bags.weight"]  # fmt: skip
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
