"""Multiplications of a sample, against counts by hand, and the bits of what weights are multiplied by."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from csqtool.nn.multiplications import multiplications
from csqtool.nn.placement import input_bits, place_quantizers
from csqtool.nn.sites import record


class Standardized(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) / 2.0
        return conv2d(x, weight, self.bias, self.stride, self.padding)


class Words(nn.Module):
    """Looks words up, attends, and scores them with the same table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, words: Tensor) -> Tensor:
        x = self.table(words)
        return self.head(self.attention(x, x, x, need_weights=False)[0])


def test_multiplications_of_convolutions_are_places_times_weights() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),  # 5 × 5 places
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
        Standardized(8, 6, 1),
        nn.ConvTranspose2d(6, 4, 2, stride=2),  # each of its 5 × 5 inputs meets every weight
        nn.Flatten(2),
        nn.Linear(100, 7),  # for each of the 4 channels
    )
    places = {"0.weight": 25, "1.weight": 25, "2.weight": 25, "3.weight": 25, "5.weight": 4}
    found = multiplications(net, torch.zeros(3, 3, 9, 9), places)
    assert found == {name: count * net.get_parameter(name).numel() for name, count in places.items()}


def test_a_table_costs_where_it_multiplies_and_attention_is_looked_into() -> None:
    found = multiplications(Words(), torch.zeros(2, 5, dtype=torch.int64),
                            ["table.weight", "attention.in_proj_weight", "attention.out_proj.weight"])  # fmt: skip
    assert found == {"table.weight": 5 * 88, "attention.in_proj_weight": 5 * 192, "attention.out_proj.weight": 5 * 64}


def test_the_image_has_eight_bits_and_other_inputs_as_many_as_was_asked_for() -> None:
    shared = nn.Conv2d(8, 8, 3, padding=1)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU(), nn.Flatten(),
                        nn.Linear(392, 4))  # fmt: skip
    recorded = record(net, [torch.zeros(2, 3, 9, 9)])
    assert input_bits(recorded, place_quantizers(recorded, 4)) == {"0.weight": 8, "2.weight": 4, "7.weight": 4}
    assert set(input_bits(recorded, place_quantizers(recorded, None)).values()) == {32}
