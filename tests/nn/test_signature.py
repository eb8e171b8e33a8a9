from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from csqtool.errors import ModelError
from csqtool.model_info import ModelInfo
from csqtool.nn.signature import Input, inputs_of, named_outputs, output_names, recorded_inputs, zeros

ONE = torch.zeros(2)


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
    ],
)
def test_outputs_get_names(output: Any, names: list[str]) -> None:
    assert list(named_outputs(output)) == names
    assert output_names(Returning(output), [Input("input", (3,))]) == names


@pytest.mark.parametrize("output", [None, 1.0, (), {}, (ONE, (ONE, ONE)), {"a": "text"}])
def test_outputs_that_are_no_tensors_are_refused(output: Any) -> None:
    with pytest.raises(ModelError, match=f"the model returns {type(output).__name__}"):
        named_outputs(output)


def test_a_model_that_fails_is_named_with_the_shapes_it_was_given() -> None:
    with pytest.raises(ModelError, match=r"inputs of shape \[2, 4\]: RuntimeError"):
        output_names(nn.Linear(3, 1), [Input("input", (4,))])
