"""Ways to fool a verifier that only samples, as edits of an exported file, each with the check that has to fail."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from tests.support.structural import (
    Edit,
    Proto,
    add_tensor,
    at_the_end,
    before,
    first,
    make,
    node,
    put,
    set_attribute,
    values,
)

LEFT_OVER, DATAFLOW = "nothing left over", "dataflow"


def reads(place: str, position: int, name: str) -> Edit:
    """Let a node read another value."""

    def edit(proto: Proto) -> None:
        node(proto, place).input[position] = name

    return edit


def has(place: str, **attributes: object) -> Edit:
    def edit(proto: Proto) -> None:
        for name, value in attributes.items():
            set_attribute(node(proto, place), name, value)

    return edit


def is_now(place: str, operator: str) -> Edit:
    def edit(proto: Proto) -> None:
        node(proto, place).op_type = operator

    return edit


def ends_in(*nodes: tuple[str, list[str], str], **tensors: object) -> Edit:
    """Compute ``output`` from ``honest`` (the old output) and ``input``."""

    def edit(proto: Proto) -> None:
        for name, value in tensors.items():
            add_tensor(proto, name, value)
        at_the_end(proto, *(make(operator, inputs, [output]) for operator, inputs, output in nodes))

    return edit


def goes_through(place: str, operator: str, constant: object | None = None, **attributes: object) -> Edit:
    """Put an operator between a node's first input and the node."""

    def edit(proto: Proto) -> None:
        user = node(proto, place)
        extra = [] if constant is None else [add_tensor(proto, "extra", constant)]
        before(proto, user, make(operator, [user.input[0], *extra], ["between"], **attributes))
        user.input[0] = "between"

    return edit


def batch_trigger(proto: Proto) -> None:
    """Negate the outputs of batches under 64."""
    add_tensor(proto, "zero_axis", np.int64(0))
    add_tensor(proto, "limit", np.int64(64))
    at_the_end(
        proto, make("Shape", ["input"], ["shape"]), make("Gather", ["shape", "zero_axis"], ["batch_size"]),
        make("Less", ["batch_size", "limit"], ["small"]), make("Neg", ["honest"], ["negated"]),
        make("Where", ["small", "negated", "honest"], ["output"]),
    )  # fmt: skip


def branch_trigger(proto: Proto) -> None:
    """The same with If."""
    batch_trigger(proto)
    last = node(proto, "output")
    proto.graph.node.remove(last)
    sides = [
        helper.make_graph([make("Identity", [name], [f"{name}_out"])], name, [],
                          [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)])
        for name in ("negated", "honest")
    ]  # fmt: skip
    proto.graph.node.append(make("If", ["small"], ["output"], then_branch=sides[0], else_branch=sides[1]))


def loop(proto: Proto) -> None:
    """A Loop of 2^40 rounds behind the output."""
    add_tensor(proto, "rounds", np.int64(2**40))
    add_tensor(proto, "go_on", np.asarray(True))
    body = helper.make_graph(
        [make("Identity", ["go"], ["go_out"]), make("Identity", ["x"], ["x_out"])], "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
         helper.make_tensor_value_info("x_out", TensorProto.FLOAT, None)],
    )  # fmt: skip
    at_the_end(proto, make("Loop", ["rounds", "go_on", "honest"], ["output"], body=body))


def dead_integers(proto: Proto) -> None:
    """The checked integers feed a dead Identity, and other float weights are used."""
    weight = (values(proto, "left.0.weight") * values(proto, "left.0.weight_scale") * 1.5).astype(np.float32)
    node(proto, "left.1").input[1] = add_tensor(proto, "float_weight", weight)
    proto.graph.node.append(make("Identity", ["left.0.weight_dq"], ["nowhere"]))


def equal_float_weights(proto: Proto) -> None:
    """Float weights of the same values: no integers are used."""
    weight = (values(proto, "left.0.weight") * values(proto, "left.0.weight_scale")).astype(np.float32)
    node(proto, "left.1").input[1] = add_tensor(proto, "float_weight", weight)
    proto.graph.node.remove(node(proto, "left.0.weight_dq"))


def batch_fixed_by_reshape(proto: Proto) -> None:
    user = node(proto, "norm")
    add_tensor(proto, "eight", np.array([8, 16]))
    before(proto, user, make("Reshape", ["mean_flat", "eight"], ["fixed"]))
    user.input[0] = "fixed"


def constant_of_the_batch(proto: Proto) -> None:
    user = node(proto, "norm")
    add_tensor(proto, "per_sample", np.zeros((8, 16), np.float32))
    before(proto, user, make("Add", ["mean_flat", "per_sample"], ["moved"]))
    user.input[0] = "moved"


def bypassed_for_one_branch(proto: Proto) -> None:
    node(proto, "left.1").input[0] = "stem.2"


def shadowed(proto: Proto) -> None:
    proto.graph.input.append(helper.make_tensor_value_info("left.0.bias", TensorProto.FLOAT, [8]))


def overriding_function(proto: Proto) -> None:
    proto.functions.append(helper.make_function(
        "", "HardSwish", ["x"], ["y"], [make("Identity", ["x"], ["y"])], [helper.make_opsetid("", 19)]
    ))  # fmt: skip


def vendors_operator(proto: Proto) -> None:
    """A function with the name of an operator that onnxruntime has: it runs its own."""
    proto.functions.append(helper.make_function(
        "com.microsoft", "Gelu", ["x"], ["y"], [make("HardSwish", ["x"], ["y"])], [helper.make_opsetid("", 19)]
    ))  # fmt: skip
    swish = first(proto, "HardSwish")
    swish.op_type, swish.domain = "Gelu", "com.microsoft"
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def training_info(proto: Proto) -> None:
    proto.training_info.add()


def two_imports(proto: Proto) -> None:
    proto.opset_import.append(helper.make_opsetid("", 18))


def alias_import(proto: Proto) -> None:
    proto.opset_import.append(helper.make_opsetid("ai.onnx", 18))


def foreign_import(proto: Proto) -> None:
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def unused_tensor(proto: Proto) -> None:
    add_tensor(proto, "secret", np.zeros(3, np.float32))


def unused_input(proto: Proto) -> None:
    proto.graph.input.append(helper.make_tensor_value_info("key", TensorProto.FLOAT, [1]))


def second_output(proto: Proto) -> None:
    proto.graph.output.append(helper.make_tensor_value_info("norm", TensorProto.FLOAT, None))


def uncalled_function(proto: Proto) -> None:
    proto.functions.append(helper.make_function(
        "csqtool", "Spare", ["x"], ["y"], [make("Neg", ["x"], ["y"])], [helper.make_opsetid("", 19)]
    ))  # fmt: skip


def stated_shape(proto: Proto) -> None:
    proto.graph.value_info.append(helper.make_tensor_value_info("mean_flat", TensorProto.FLOAT, [64, 16]))


def sparse_tensor(proto: Proto) -> None:
    proto.graph.sparse_initializer.add().values.name = "sparse"


def runtime_settings(proto: Proto) -> None:
    proto.metadata_props.add(key="ort_config", value="{}")


def branches_swapped(proto: Proto) -> None:
    """Two kernels of equal shape exchanged, integers and all."""
    left, right = node(proto, "left.1"), node(proto, "right.1")
    for position in (1, 2):
        left.input[position], right.input[position] = right.input[position], left.input[position]


def constant_changed(name: str, change: float) -> Edit:
    def edit(proto: Proto) -> None:
        put(proto, name, (values(proto, name) * np.float32(change)).astype(np.float32))

    return edit


def renamed_and_changed(proto: Proto) -> None:
    """A float tensor under another name, which a comparison by name passes over."""
    changed = values(proto, "norm.bias") + np.float32(0.1)
    node(proto, "norm").input[2] = add_tensor(proto, "fresh", changed)
    proto.graph.initializer.remove(next(t for t in proto.graph.initializer if t.name == "norm.bias"))


def second_user_without_bias(proto: Proto) -> None:
    """A second reader of a weight hides that the first one's bias is gone."""
    del node(proto, "left.1").input[2:]
    at_the_end(
        proto, make("ReduceSum", ["left.0.weight_dq"], ["total"], keepdims=0),
        make("Sub", ["total", "total"], ["none"]), make("Add", ["honest", "none"], ["output"]),
    )  # fmt: skip


def int8_activation(proto: Proto) -> None:
    add_tensor(proto, "signed", np.int8(0))
    for output in ("left.1.output_q", "left.1.output"):
        node(proto, output).input[2] = "signed"


def clipped_beyond(proto: Proto) -> None:
    """A Clip of the integers beyond every value that was seen."""
    add_tensor(proto, "low", np.uint8(0))
    add_tensor(proto, "high", np.uint8(254))
    user = node(proto, "left.1.output")
    before(proto, user, make("Clip", ["left.1.output_q", "low", "high"], ["clipped"]))
    user.input[0] = "clipped"


def dequantized_at_another_scale(proto: Proto) -> None:
    node(proto, "left.1.output").input[1] = add_tensor(
        proto, "other", (values(proto, "left.1.output_scale") * np.float32(1 + 1e-6)).astype(np.float32)
    )


def saturated_operator(proto: Proto) -> None:
    set_attribute(node(proto, "left.1.output_q"), "saturate", 0)


def concat_of_batches(proto: Proto) -> None:
    add_tensor(proto, "one_row", np.array([1]))
    add_tensor(proto, "row", np.array([0]))
    user = node(proto, "norm")
    before(proto, user, make("Slice", ["mean_flat", "row", "one_row", "row"], ["head"]),
           make("Add", ["mean_flat", "head"], ["mixed"]))  # fmt: skip
    user.input[0] = "mixed"


def sequence(proto: Proto) -> None:
    user = node(proto, "norm")
    add_tensor(proto, "at", np.int64(0))
    before(proto, user, make("SequenceConstruct", ["mean_flat"], ["sequence"]),
           make("SequenceAt", ["sequence", "at"], ["taken"]))  # fmt: skip
    user.input[0] = "taken"


def optional(proto: Proto) -> None:
    user = node(proto, "norm")
    before(proto, user, make("Optional", ["mean_flat"], ["maybe"]), make("OptionalGetElement", ["maybe"], ["taken"]))
    user.input[0] = "taken"


def training_dropout(proto: Proto) -> None:
    add_tensor(proto, "ratio", np.float32(0.1))
    add_tensor(proto, "training", np.asarray(True))
    user = node(proto, "norm")
    before(proto, user, make("Dropout", ["mean_flat", "ratio", "training"], ["dropped"], seed=3))
    user.input[0] = "dropped"


def random_logits(proto: Proto) -> None:
    """1e-5 of the logits are random."""
    at_the_end(
        proto, make("RandomUniformLike", ["honest"], ["noise"], seed=1.0), make("Less", ["noise", "rare"], ["chosen"]),
        make("Where", ["chosen", "noise", "honest"], ["output"]),
    )  # fmt: skip
    add_tensor(proto, "rare", np.float32(1e-5))


EDITS: dict[str, tuple[Edit, str, str]] = {
    "outputs negated for batches under 64": (batch_trigger, DATAFLOW, "output"),
    "the same with If": (branch_trigger, LEFT_OVER, "output"),
    "an endless Loop": (loop, LEFT_OVER, "output"),
    "random logits": (random_logits, LEFT_OVER, "noise"),
    "random logits, as dataflow": (random_logits, DATAFLOW, "output"),
    "a batch fixed by Reshape": (batch_fixed_by_reshape, DATAFLOW, "fixed"),
    "a constant with a batch axis": (constant_of_the_batch, DATAFLOW, "moved"),
    "one sample added to all": (concat_of_batches, DATAFLOW, "mixed"),
    "a mean over the batch": (goes_through("norm", "ReduceMean", np.array([0])), DATAFLOW, "between"),
    "a cumulative sum over the batch": (goes_through("norm", "CumSum", np.int64(0)), DATAFLOW, "between"),
    "a second path chosen by value": (
        ends_in(("ReduceMax", ["honest"], "top"), ("Greater", ["top", "limit"], "high"), ("Neg", ["honest"], "negated"),
                ("Where", ["high", "negated", "honest"], "output"), limit=np.float32(1e6)),
        DATAFLOW, "output",
    ),
    "beyond the pixel sums of the test set": (
        ends_in(("ReduceSum", ["input"], "sum"), ("Greater", ["sum", "limit"], "bright"), ("Cast", ["honest"], "same"),
                ("Where", ["bright", "limit", "same"], "output"), limit=np.float32(1e9)),
        DATAFLOW, "output",
    ),
    "NaN answered with zeros": (
        ends_in(("IsNaN", ["honest"], "bad"), ("Where", ["bad", "zero", "honest"], "output"), zero=np.float32(0)),
        DATAFLOW, "output",
    ),
    "the input clipped to the test range": (
        goes_through("stem.0.input_q", "Clip", np.float32(-0.5)), DATAFLOW, "stem.0.input",
    ),
    "outputs clipped": (ends_in(("Clip", ["honest", "low"], "output"), low=np.float32(-1e9)), DATAFLOW, "output"),
    "float weights, the integers dead": (dead_integers, LEFT_OVER, "nowhere"),
    "float weights, as dataflow": (dead_integers, DATAFLOW, "float_weight"),
    "float weights of the same values": (equal_float_weights, DATAFLOW, "float_weight"),
    "a quantizer bypassed for one branch": (bypassed_for_one_branch, DATAFLOW, "stem.2"),
    "the input's quantizer bypassed": (reads("stem.2", 0, "input"), DATAFLOW, "input"),
    "a quantizer bypassed in a sum": (reads("add", 1, "right.1"), DATAFLOW, "right.1"),
    "a weight's bias gone behind a second user": (second_user_without_bias, LEFT_OVER, "left.0.bias"),
    "a float tensor renamed and changed": (renamed_and_changed, DATAFLOW, "fresh"),
    "a float tensor changed": (constant_changed("norm.weight", 1.00001), DATAFLOW, "norm.weight"),
    "a bias changed in its last digits": (constant_changed("stem.0.bias", 1.000001), DATAFLOW, "stem.0.bias"),
    "another LayerNorm bias": (reads("norm", 2, "norm.weight"), DATAFLOW, "norm.weight"),
    "branches of equal shape swapped": (branches_swapped, DATAFLOW, "right.0.weight_dq"),
    "one branch used twice": (reads("add", 1, "left.1.output"), DATAFLOW, "left.1.output"),
    "concatenation in another order": (
        lambda proto: node(proto, "cat").input.reverse(), DATAFLOW, "cat",
    ),
    "concatenation on another axis": (has("cat", axis=2), DATAFLOW, "cat"),
    "another epsilon": (has("norm", epsilon=1e-6), DATAFLOW, "norm"),
    "LayerNorm on another axis": (has("norm", axis=0), DATAFLOW, "norm"),
    "LayerNorm of another precision": (has("norm", stash_type=10), DATAFLOW, "norm"),
    "another padding": (has("left.1", pads=[0, 0, 2, 2]), DATAFLOW, "left.1"),
    "padding chosen by the runtime": (has("left.1", auto_pad="SAME_UPPER"), DATAFLOW, "left.1"),
    "another dilation": (has("right.1", dilations=[1, 2]), DATAFLOW, "right.1"),
    "another stride": (has("left.1", strides=[2, 2]), DATAFLOW, "left.1"),
    "other groups": (has("deep.0", group=4), DATAFLOW, "deep.0"),
    "another pooling window": (has("maxpool_1", kernel_shape=[2, 1]), DATAFLOW, "maxpool_1"),
    "pooling rounded up": (has("maxpool_1", ceil_mode=1), DATAFLOW, "maxpool_1"),
    "average for maximum": (is_now("maxpool_1", "AveragePool"), DATAFLOW, "maxpool_1"),
    "maximum for mean": (is_now("mean_pooled", "GlobalMaxPool"), DATAFLOW, "mean_flat"),
    "flattened elsewhere": (has("mean_flat", axis=0), DATAFLOW, "mean_flat"),
    "hard-sigmoid for hard-swish": (is_now("deep.1", "HardSigmoid"), DATAFLOW, "deep.1"),
    "a ReLU too many": (goes_through("deep.1", "Relu"), DATAFLOW, "between"),
    "a Cast to half and back": (goes_through("norm", "Cast", to=TensorProto.FLOAT16), DATAFLOW, "between"),
    "rounding in float": (goes_through("norm", "Round"), DATAFLOW, "between"),
    "values scaled by a denormal": (goes_through("norm", "Mul", np.float32(1e-40)), DATAFLOW, "between"),
    "absolute values": (goes_through("norm", "Abs"), DATAFLOW, "between"),
    "subtraction for addition": (is_now("add", "Sub"), DATAFLOW, "add"),
    "maximum for addition": (is_now("add", "Max"), DATAFLOW, "add"),
    "int8 activations": (int8_activation, DATAFLOW, "left.1.output"),
    "integers clipped beyond the values seen": (clipped_beyond, DATAFLOW, "left.1.output"),
    "dequantized at another scale": (dequantized_at_another_scale, DATAFLOW, "left.1.output"),
    "quantized without saturation": (saturated_operator, DATAFLOW, "left.1.output"),
    "a factor in the classifier": (has("output", alpha=1.0001), DATAFLOW, "output"),
    "a bias that does not count": (has("output", beta=0.0), DATAFLOW, "output"),
    "the classifier's input turned": (has("output", transA=1), DATAFLOW, "output"),
    "a sequence": (sequence, LEFT_OVER, "sequence"),
    "an optional": (optional, LEFT_OVER, "maybe"),
    "a Dropout that trains": (training_dropout, DATAFLOW, "dropped"),
    "an initializer that is also an input": (shadowed, LEFT_OVER, "left.0.bias"),
    "a function in the place of a standard operator": (overriding_function, LEFT_OVER, ".HardSwish"),
    "a vendor's operator declared as a function": (vendors_operator, LEFT_OVER, "com.microsoft.Gelu"),
    "training information": (training_info, LEFT_OVER, "training_info"),
    "two opset imports of one domain": (two_imports, LEFT_OVER, "ai.onnx"),
    "two opset imports under two names": (alias_import, LEFT_OVER, "ai.onnx"),
    "an opset import of a vendor": (foreign_import, LEFT_OVER, "com.microsoft"),
    "an unused tensor": (unused_tensor, LEFT_OVER, "secret"),
    "an unused input": (unused_input, LEFT_OVER, "key"),
    "a second output": (second_output, DATAFLOW, "output, norm"),
    "a function that nothing calls": (uncalled_function, LEFT_OVER, "csqtool.Spare"),
    "a stated shape": (stated_shape, LEFT_OVER, "mean_flat"),
    "a sparse tensor": (sparse_tensor, LEFT_OVER, "sparse"),
    "settings of a runtime": (runtime_settings, LEFT_OVER, "ort_config"),
}  # fmt: skip
