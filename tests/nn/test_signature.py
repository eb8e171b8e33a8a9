from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from csqtool.errors import DataError, ModelError
from csqtool.model_info import ModelInfo
from csqtool.nn.signature import (
    Input,
    as_returned,
    batch_outputs,
    example,
    inputs_of,
    named_inputs,
    named_outputs,
    output_names,
    recorded_inputs,
    zeros,
)

ONE = torch.zeros(2)


@dataclass
class Found:
    logits: Any
    states: Any
    loss: Any


class Returning(nn.Module):
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, *_: Tensor) -> Any:
        return self.output


def test_inputs_are_named_and_typed_as_the_model_was_called() -> None:
    assert inputs_of([torch.zeros(4, 3, 8)]) == [Input("input", (3, 8), "float32")]
    ids, mask = torch.zeros(4, 7, dtype=torch.int64), torch.ones(4, 7, dtype=torch.bool)
    assert inputs_of([ids, mask]) == [Input("input_0", (7,), "int64"), Input("input_1", (7,), "bool")]


def test_an_input_of_a_type_that_files_cannot_carry_is_refused() -> None:
    with pytest.raises(ModelError, match="input is complex64; a model's inputs can be float32"):
        inputs_of([torch.zeros(1, dtype=torch.complex64)])


def test_recorded_inputs_come_back_as_they_were() -> None:
    inputs = [Input("input_0", (7,), "int64"), Input("input_1", (), "float32")]
    assert recorded_inputs(ModelInfo.of(inputs=inputs)) == tuple(inputs)
    with pytest.raises(ModelError, match="does not record its inputs' shapes"):
        recorded_inputs(ModelInfo())
    assert zeros(inputs[0], 5).shape == (5, 7)
    assert zeros(inputs[0], 5).dtype == torch.int64


@pytest.mark.parametrize(
    ("output", "names"),
    [
        (ONE, ["output"]),
        ({"logits": ONE, "loss": None, "states": ONE}, ["logits", "states"]),
        ((ONE, None, ONE), ["output_0", "output_1"]),
        ([ONE], ["output_0"]),
        ((ONE, (ONE, None, ONE)), ["output_0", "output_1.0", "output_1.2"]),
        ({"logits": ONE, "features": [ONE, {"deep": ONE}]}, ["logits", "features.0", "features.1.deep"]),
        (Found(ONE, (ONE, ONE), None), ["logits", "states.0", "states.1"]),
    ],
)
def test_outputs_get_names(output: Any, names: list[str]) -> None:
    assert list(named_outputs(output)) == names
    assert output_names(Returning(output), [Input("input", (3,))]) == names


@pytest.mark.parametrize("output", [None, 1.0, (), {}, {"a": "text"}])
def test_outputs_that_are_no_tensors_are_refused(output: Any) -> None:
    with pytest.raises(ModelError, match=f"the model returns {type(output).__name__}"):
        named_outputs(output)


def test_outputs_come_back_in_the_structure_that_the_model_returns() -> None:
    like = Found(torch.zeros(2), ({"a": torch.zeros(2)}, None), "text")
    values = {"logits": torch.ones(2), "states.0.a": torch.full((2,), 2.0)}
    found = as_returned(like, values)
    assert named_outputs(found, ["logits", "states.0.a"]).keys() == values.keys()
    assert (found.logits is values["logits"], found.states[1], found.loss) == (True, None, "text")
    assert as_returned(like, {"logits": values["logits"]}).states == ({"a": None}, None)


def test_outputs_can_be_chosen_beside_what_files_cannot_carry() -> None:
    output = {"logits": ONE, "cache": object(), "states": ONE}
    assert list(named_outputs(output, ["states"])) == ["states"]
    with pytest.raises(ModelError, match=r"cache is object, .* --keep-output logits --keep-output states"):
        named_outputs(output)
    with pytest.raises(ModelError, match="no output 'state'; its outputs are logits, states"):
        named_outputs(output, ["state"])


class Keywords(nn.Module):
    def forward(self, ids: Tensor, mask: Tensor | None = None, kinds: Tensor | None = None) -> Any:
        return ids, mask, kinds


def test_keyword_arguments_have_the_order_of_the_model_and_their_own_names() -> None:
    ids, kinds = torch.zeros(4, 7, dtype=torch.int64), torch.ones(4, 7)
    given = {"kinds": kinds, "ids": ids, "mask": None}
    described = inputs_of(given, Keywords())
    assert [(i.name, i.dtype, i.is_keyword) for i in described] == [("ids", "int64", True), ("kinds", "float32", True)]
    assert recorded_inputs(ModelInfo.of(inputs=described)) == tuple(described)
    assert example(described, 2).call(Keywords())[1] is None
    assert list(named_inputs(given, described, Keywords())) == ["ids", "kinds"]
    with pytest.raises(DataError, match="have the inputs ids; the model records ids, kinds"):
        named_inputs({"ids": ids}, described, Keywords())


def test_arguments_after_one_that_is_none_are_known_by_name() -> None:
    ids, kinds = torch.zeros(4, 7, dtype=torch.int64), torch.ones(4, 7)
    described = inputs_of((ids, None, kinds), Keywords())
    assert [(i.name, i.is_keyword) for i in described] == [("input_0", False), ("kinds", True)]
    found = example(described, 3).call(Keywords())
    assert (found[0].shape, found[1], found[2].shape) == ((3, 7), None, (3, 7))
    with pytest.raises(ModelError, match="has no name"):
        inputs_of((ids, None, kinds))
    with pytest.raises(ModelError, match="input_1 is tuple; each input of a model must be one tensor"):
        inputs_of((ids, (kinds, kinds)))


def test_an_output_without_an_axis_of_samples_is_refused() -> None:
    model = Returning((torch.zeros(4, 2), torch.zeros(7)))
    with pytest.raises(ModelError, match=r"output_1 has shape \[7\] for 4 samples"):
        batch_outputs(model, torch.zeros(4, 3))
    assert batch_outputs(model, torch.zeros(4, 3), ["output_0"]) == ["output_0"]


def test_a_model_that_fails_is_named_with_the_shapes_it_was_given() -> None:
    with pytest.raises(ModelError, match=r"inputs of shape \[2, 4\]: RuntimeError"):
        output_names(nn.Linear(3, 1), [Input("input", (4,))])
