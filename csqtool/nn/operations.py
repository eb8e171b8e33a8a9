"""Which torch functions a model's operations are: their kinds, and where they take weights."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name that everybody knows
from torch import Tensor

from csqtool.nn.batch_norm import whole_batch_norm

# Kinds of operations.
WEIGHT_OPS = "weight"  # convolution, linear: the input wants A-bits
NORM_OPS = "norm"
ADD_OPS = "add"  # integer kernels exist when all inputs are quantized
POOL_OPS = "pool"
FORWARDING_OPS = "forwarding"  # values pass unchanged: one quantizer in front serves all that follows
OTHER_OPS = "other"
INPUT_OPS = "input"  # a model input other than the first, or one of integers: never quantized

# What these return has another tensor's type or shape, and none of its values.
LIKE_OPS = {"new_full", "new_zeros", "new_ones", "new_empty", "new_tensor", "zeros_like", "ones_like", "full_like",
            "empty_like", "rand_like", "randn_like"}  # fmt: skip

UNKNOWN = "?"  # name of a call that returns several tensors, such as a recurrent layer

KINDS: dict[Any, tuple[str, str]] = {}


def _register(kind: str, name: str, *functions: Any) -> None:
    KINDS.update(dict.fromkeys(functions, (kind, name)))


_f: Any
for _f in (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.linear):
    _register(WEIGHT_OPS, _f.__name__, _f)
_register(NORM_OPS, "batch_norm", F.batch_norm, whole_batch_norm)
_register(ADD_OPS, "add", torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__, Tensor.__radd__)
_register(ADD_OPS, "cat", torch.cat, torch.concat)
_register(POOL_OPS, "avg_pool", F.avg_pool1d, F.avg_pool2d, F.avg_pool3d,
          F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)  # fmt: skip
_register(POOL_OPS, "mean", torch.mean, Tensor.mean)
_register(FORWARDING_OPS, "max_pool", F.max_pool1d, F.max_pool2d, F.max_pool3d)
_register(FORWARDING_OPS, "reshape", torch.flatten, Tensor.flatten, torch.reshape, Tensor.reshape, Tensor.view,
          torch.squeeze, Tensor.squeeze, torch.unsqueeze, Tensor.unsqueeze)  # fmt: skip
_register(FORWARDING_OPS, "permute", torch.permute, Tensor.permute, torch.transpose, Tensor.transpose,
          Tensor.contiguous)  # fmt: skip
_register(FORWARDING_OPS, "dropout", F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)
for _f in (F.relu, F.relu6, F.hardtanh, F.hardswish, F.hardsigmoid, F.silu, F.gelu, F.leaky_relu, F.elu):
    _register(OTHER_OPS, _f.__name__, _f)
_register(OTHER_OPS, "relu", torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu_)
_register(OTHER_OPS, "clamp", torch.clamp, Tensor.clamp, Tensor.clamp_)
for _op in ("sigmoid", "tanh", "softmax"):
    _register(OTHER_OPS, _op, getattr(torch, _op), getattr(Tensor, _op))
_register(OTHER_OPS, "mul", torch.mul, Tensor.mul, Tensor.mul_, Tensor.__mul__, Tensor.__rmul__, Tensor.__imul__)
_register(OTHER_OPS, "sub", torch.sub, Tensor.sub, Tensor.sub_, Tensor.__sub__, Tensor.__isub__)
_register(OTHER_OPS, "matmul", torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm)
_register(OTHER_OPS, "embedding", F.embedding)
PRODUCTS = {torch.matmul: 1, Tensor.matmul: 1, Tensor.__matmul__: 1, torch.mm: 1, Tensor.mm: 1,
             torch.addmm: 2, Tensor.addmm: 2}  # to the position of the second factor  # fmt: skip

SET_REQUIRES_GRAD = Tensor.requires_grad.__set__  # type: ignore[attr-defined]
# Where the functions that multiply data by a weight, or look rows of it up, expect the weight.
_PROJECTIONS = ("in_proj_weight", "out_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_ATTENTION = tuple(inspect.signature(F.multi_head_attention_forward).parameters)
WEIGHT_ARGUMENTS: dict[Any, tuple[tuple[int, ...], tuple[str, ...]]] = {
    F.multi_head_attention_forward: (tuple(_ATTENTION.index(name) for name in _PROJECTIONS), _PROJECTIONS),
    F.bilinear: ((2,), ("weight",)),
}
for _f in (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.linear,
           F.embedding, F.embedding_bag):  # fmt: skip
    WEIGHT_ARGUMENTS[_f] = ((1,), ("weight",))
for _f in (torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, torch.mm, Tensor.mm, torch.bmm,
           Tensor.bmm):  # fmt: skip
    WEIGHT_ARGUMENTS[_f] = ((0, 1), ("input", "other", "mat2"))
for _f in (torch.addmm, Tensor.addmm, torch.baddbmm, Tensor.baddbmm):
    WEIGHT_ARGUMENTS[_f] = ((1, 2), ("mat1", "mat2", "batch1", "batch2"))
for _f in (torch.lstm_cell, torch.gru_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell):
    WEIGHT_ARGUMENTS[_f] = ((2, 3), ("w_ih", "w_hh"))
WEIGHT_ARGUMENTS[torch.einsum] = (tuple(range(1, 9)), ())
RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)


def weights_given(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Return the arguments that a function takes as weights; biases are among those of recurrent layers."""
    if func in RECURRENT:  # packed sequences come with their batch sizes, before the initial state and the weights
        packed = isinstance(args[1], Tensor) and not args[1].is_floating_point()
        return [args[3 if packed else 2]]
    positions, names = WEIGHT_ARGUMENTS.get(func, ((), ()))
    return [args[i] for i in positions if i < len(args)] + [kwargs[name] for name in names if name in kwargs]
