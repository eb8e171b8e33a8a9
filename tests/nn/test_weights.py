from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from csqtool.errors import ConfigError
from csqtool.nn.weights import attach, check_excluded, detach, quantizable_weights


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


def test_weights_of_every_layer_are_found_but_for_vectors_and_recurrent_layers() -> None:
    model = nn.ModuleDict(
        {
            "conv": nn.Conv1d(2, 4, 3),
            "up": nn.ConvTranspose2d(2, 4, 3),
            "norm": nn.BatchNorm1d(4),
            "attention": nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
            "recurrent": nn.LSTM(4, 4),
        }
    )
    projections = [f"attention.{name}_proj_weight" for name in "qkv"]
    wanted = ["conv.weight", "up.weight", *projections, "attention.out_proj.weight"]
    assert sorted(weight.name for weight in quantizable_weights(model)) == sorted(wanted)


def test_a_tied_weight_is_found_once_under_all_its_names() -> None:
    (weight,) = quantizable_weights(tied())
    assert (weight.name, weight.aliases, weight.shape, weight.elements) == (
        "embed.weight",
        ("head.weight",),
        (5, 3),
        15,
    )


def test_excluded_patterns_leave_weights_out_and_must_match() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    assert [weight.name for weight in quantizable_weights(model, ("0.*",))] == ["1.weight"]
    check_excluded(("0.*",), quantizable_weights(model))
    with pytest.raises(ConfigError, match=r"'2\.\*' matches no quantized layer; the layers are 0\.weight, 1\.weight"):
        check_excluded(("0.*", "2.*"), quantizable_weights(model))
    check_excluded(("head.weight",), quantizable_weights(tied()))  # an alias counts


def test_a_parametrization_serves_all_places_of_a_tied_weight_and_alone_is_trained() -> None:
    model = tied()
    value = model["embed"].weight.detach().clone()
    (weight,) = quantizable_weights(model)
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
    (weight,) = quantizable_weights(model)
    attach(weight, Doubled(weight.parameter))
    value = torch.randn(5, 3)
    detach(weight, value)
    assert set(model.state_dict()) == names
    assert model["embed"].weight is model["head"].weight
    assert torch.equal(model["head"].weight, value)
    assert model["head"].weight.requires_grad
