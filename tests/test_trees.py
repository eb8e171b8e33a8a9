from __future__ import annotations

from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from csqtool.trees import Arguments, call, chosen, joined, mapped, parameters, samples, shapes, tensors

Pair = namedtuple("Pair", "one other")


@dataclass
class Record:
    x: Any
    y: Any = None


ONE, TWO = torch.arange(3.0), torch.arange(6.0).view(3, 2)
TREES: dict[str, Any] = {
    "tensor": ONE,
    "tuple": (ONE, None, TWO),
    "list": [ONE, TWO],
    "dict": {"a": ONE, "b": {"c": TWO}},
    "ordered dict": OrderedDict(a=ONE, b=TWO),
    "named tuple": Pair(ONE, [TWO, None]),
    "dataclass": Record(ONE, {"z": (TWO,)}),
    "other things": {"a": ONE, "name": "text", "n": 3},
}


@pytest.mark.parametrize("name", TREES)
def test_a_mapped_tree_has_the_same_kinds_and_other_tensors(name: str) -> None:
    tree = TREES[name]
    found = mapped(tree, lambda t: t + 1)
    assert type(found) is type(tree)
    assert shapes(found) == shapes(tree)
    for one, other in zip(tensors(found), tensors(tree), strict=True):
        assert torch.equal(one, other + 1)
    assert samples(tree) == 3


def test_a_mapping_that_cannot_be_made_from_a_dict_becomes_one() -> None:
    found = mapped(defaultdict(list, a=ONE), lambda t: t)
    assert dict(found) == {"a": ONE}


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("index", [slice(1, 3), [2, 0], torch.tensor([2, 2, 1])])
def test_samples_are_chosen_in_every_tensor(name: str, index: Any) -> None:
    found = chosen(TREES[name], index, 3)
    positions = range(3)[index] if isinstance(index, slice) else index
    for one, other in zip(tensors(found), tensors(TREES[name]), strict=True):
        assert torch.equal(one, other[torch.as_tensor(list(positions))])


@pytest.mark.parametrize("name", TREES)
def test_parts_of_a_batch_join_to_the_batch(name: str) -> None:
    tree = TREES[name]
    parts = [chosen(tree, slice(0, 1), 3), chosen(tree, slice(1, 3), 3)]
    whole = joined(parts, [1, 2])
    assert type(whole) is type(tree)
    for one, other in zip(tensors(whole), tensors(tree), strict=True):
        assert torch.equal(one, other)


def test_lists_of_other_things_have_one_for_each_sample() -> None:
    boxes = [{"boxes": torch.zeros(k, 4)} for k in (3, 1, 2)]
    assert [len(b["boxes"]) for b in chosen(boxes, slice(1, 3), 3)] == [1, 2]
    assert [len(b["boxes"]) for b in chosen(boxes, [2, 0], 3)] == [2, 3]
    assert [len(b["boxes"]) for b in joined([boxes[:1], boxes[1:]], [1, 2])] == [3, 1, 2]
    # Two tensors for two samples are two parts of a batch, not one for each.
    assert [len(t) for t in chosen([torch.zeros(2, 5), torch.zeros(2)], slice(1), 2)] == [1, 1]


def test_a_tensor_of_another_length_stays_whole() -> None:
    assert len(chosen({"x": ONE, "anchors": torch.zeros(7)}, slice(1), 3)["anchors"]) == 7


def test_no_tensor_has_no_samples() -> None:
    for tree in ((), {"a": "text"}, torch.zeros(())):
        with pytest.raises(ValueError, match="no tensor with an axis of samples"):
            samples(tree)


class Net(nn.Module):
    def forward(self, a: Tensor, b: Tensor, *, c: Tensor | None = None) -> Any:
        return a, b, c


def test_a_model_is_called_with_a_tensor_positions_or_names() -> None:
    assert call(nn.Flatten(), TWO).shape == (3, 2)
    assert call(Net(), (ONE, TWO)) == (ONE, TWO, None)
    assert call(Net(), [ONE, TWO]) == (ONE, TWO, None)
    assert call(Net(), {"c": ONE, "b": TWO, "a": ONE}) == (ONE, TWO, ONE)
    assert list(Arguments.of({"c": 1, "x": 2, "a": 3}, Net()).keywords) == ["a", "c", "x"]
    assert parameters(Net()) == (["a", "b", "c"], False)
