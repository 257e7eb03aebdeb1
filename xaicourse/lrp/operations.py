"""What LRP does with each torch function that is not a layer with weights.

Lectures 11 and 12, slide "LRP has the same flow along graphs as the gradient". In c = R / x, whatever is linear without
a constant of its own (sums, reshapes, averages), and whatever selects (max pooling), needs no rule: its plain gradient
is the rule. An activation passes its secant y / x on instead of its tangent. Functions that only ask (shapes, types)
carry no relevance. A function in none of these tables is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import resolve_name

# Under a TorchFunctionMode a call is seen as the Python or builtin function that the model wrote: x.relu(), torch.relu
# and F.relu are three functions. ``_all`` gathers the spellings of a name.


def _all(*names: str) -> dict[Callable[..., Any], str]:
    found: dict[Callable[..., Any], str] = {}
    for name in names:
        for home in (torch, Tensor, F, torch._C._nn, torch.special):
            if callable(function := getattr(home, name, None)):
                found[function] = name
    return found


AFFINE = _all("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
BATCH_NORM = {F.batch_norm: "batch_norm"}
DROPOUT = _all("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")

_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_ARGUMENTS = {
    "linear": ("input", "weight", "bias"),
    **{f"conv{d}d": _CONVOLUTION for d in (1, 2, 3)},
    **{f"conv_transpose{d}d": _TRANSPOSED for d in (1, 2, 3)},
    "batch_norm": ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    "dropout": ("input", "p", "training", "inplace"),
    "scaling": ("input", "other"),
}


def arguments(kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name; builtin functions have no signature to ask."""
    return dict(zip(_ARGUMENTS[kind], args, strict=False)) | kwargs


def name(function: Callable[..., Any]) -> str:
    """What a model's author calls the function."""
    for table in (AFFINE, BATCH_NORM, DROPOUT, PLAIN, SCALING, SECANT):
        if function in table:
            return table[function]
    return resolve_name(function) or getattr(function, "__name__", repr(function))


SHAPE_QUERIES = frozenset(
    [
        *_all(
            "size",
            "dim",
            "ndimension",
            "numel",
            "nelement",
            "is_floating_point",
            "is_complex",
            "is_tensor",
            "get_device",
        ),
        *_all("new_zeros", "new_ones", "new_empty", "new_full", "zeros_like", "ones_like", "empty_like"),
        *_all("full_like", "rand_like", "randn_like", "__len__", "__hash__"),
        *(
            getattr(Tensor, attribute).__get__
            for attribute in ("shape", "ndim", "dtype", "device", "layout", "is_cuda", "is_meta", "requires_grad")
        ),
    ]
)
"""Questions about the form of a tensor: no relevance flows, and a layer need not be run to answer."""

VALUE_QUERIES = frozenset(
    [
        *_all("__bool__", "all", "any", "eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isfinite", "equal"),
        *_all("allclose", "argmax", "argmin", "argsort", "is_contiguous", "stride", "__repr__", "__format__"),
    ]
)
"""Questions that are answered by yes and no or by a position: they may steer a model, no relevance flows."""

PLAIN = {
    **_all("reshape", "view", "view_as", "reshape_as", "flatten", "unflatten", "ravel", "squeeze", "unsqueeze"),
    **_all("permute", "transpose", "t", "movedim", "moveaxis", "swapaxes", "swapdims", "adjoint"),
    **_all("contiguous", "clone", "expand", "expand_as", "broadcast_to", "repeat", "tile", "roll", "flip", "to"),
    **_all("cpu", "cuda", "float", "double", "half", "bfloat16", "type_as"),
    **_all("cat", "concat", "concatenate", "stack", "hstack", "vstack", "chunk", "split", "tensor_split", "unbind"),
    **_all("narrow", "select", "__getitem__", "index_select", "gather", "take_along_dim", "masked_fill"),
    **_all("add", "add_", "__add__", "__radd__", "__iadd__", "sub", "sub_", "subtract", "__sub__", "__isub__"),
    **_all("rsub", "__rsub__", "neg", "negative", "__neg__", "sum", "mean", "positive", "__pos__"),
    **_all("avg_pool1d", "avg_pool2d", "avg_pool3d"),
    **_all("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
    **_all("max_pool1d", "max_pool2d", "max_pool3d"),
    **_all("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
    **_all("pad", "interpolate", "pixel_shuffle", "pixel_unshuffle", "unfold", "channel_shuffle"),
    **_all("relu", "relu_"),
    Tensor.T.__get__: "T",  # type: ignore[attr-defined]
    Tensor.mT.__get__: "mT",  # type: ignore[attr-defined]
}
"""The plain gradient is the rule: linear in what is traced, or a choice of entries; and the ReLU, whose secant it is."""

SCALING = _all("mul", "mul_", "multiply", "__mul__", "__rmul__", "__imul__") | _all(
    "div", "div_", "divide", "true_divide", "__truediv__", "__itruediv__"
)
"""The plain gradient, as long as only one factor, and no divisor, depends on the input."""

SECANT = _all("relu6", "hardtanh", "leaky_relu", "elu", "selu", "celu", "silu", "mish", "gelu", "tanh") | _all(
    "hardswish", "softsign", "softshrink", "hardshrink", "tanhshrink"
)
"""Activations y = g(x) with g(0) = 0: c_x = c_y y / x, and g'(0) where x is 0."""

RELU = _all("relu", "relu_")
NONNEGATIVE = frozenset([*RELU, *_all("relu6")])
DIVISION = frozenset(f for f, n in SCALING.items() if "div" in n)
_AVERAGES = frozenset(
    [
        *_all("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "mean", "clone"),
        *_all("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "flatten", "reshape", "contiguous"),
        *_all("cat", "add", "__add__"),
    ]
)


_SUMS = _all("add", "__add__")


def stays_nonnegative(function: Callable[..., Any], kwargs: dict[str, Any], tensors: int, nonnegative: bool) -> bool:
    """Whether the result is known to have no entry below zero; ``nonnegative``: whether that holds for all tensors."""
    if function in RELU:
        return True
    if function in _SUMS and (tensors < 2 or kwargs.get("alpha")):  # a number that is added may be negative
        return False
    return nonnegative and function in _AVERAGES


PIXELWISE = frozenset(
    [*SCALING, *_all("add", "add_", "sub", "sub_", "__rsub__", "rsub", "to", "float", "double", "neg")]
)
"""With a constant they act on each entry alone: relevance of the result is relevance of that entry."""

_MIXES = frozenset(
    [
        *_all("sum", "max_pool1d", "max_pool2d", "max_pool3d"),
        *_all("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
    ]
)
_SUMS_AND_DIFFERENCES = frozenset(
    [
        *_all("add", "add_", "__add__", "__radd__", "__iadd__", "sub", "sub_", "subtract", "__sub__", "__isub__"),
        *_all("rsub", "__rsub__"),
    ]
)


def moves_pixels(function: Callable[..., Any], inputs: int) -> bool:
    """Whether relevance of the result is relevance of certain input pixels, whatever their values are."""
    return function not in _MIXES and (inputs == 1 or function not in _SUMS_AND_DIFFERENCES)


VIEWS = frozenset(
    [
        *_all("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "ravel", "squeeze", "unsqueeze"),
        *_all("permute", "transpose", "t", "movedim", "moveaxis", "swapaxes", "swapdims", "adjoint", "expand"),
        *_all("expand_as", "broadcast_to", "chunk", "split", "tensor_split", "unbind", "narrow", "select"),
        *_all("__getitem__", "unfold", "contiguous", "to", "float", "double"),
        Tensor.T.__get__,  # type: ignore[attr-defined]
        Tensor.mT.__get__,  # type: ignore[attr-defined]
    ]
)
"""Their result may share memory with their argument."""

VIEW_AS_RESHAPE = {Tensor.view: Tensor.reshape}
"""``view`` asks for a memory layout that ours (channels last) may not have; ``reshape`` gives the same values."""

_INPLACE: dict[Callable[..., Any], Callable[..., Any]] = {
    function: getattr(torch, name.strip("_").removeprefix("i") if name.startswith("__") else name.rstrip("_"))
    for function, name in (PLAIN | SCALING).items()
    if name in {"add_", "sub_", "mul_", "div_", "relu_", "__iadd__", "__isub__", "__imul__", "__itruediv__"}
    and hasattr(torch, name.strip("_").removeprefix("i") if name.startswith("__") else name.rstrip("_"))
}
_HAS_INPLACE_FLAG = {
    function: inspect.signature(function)
    for function in (*PLAIN, *SECANT, *DROPOUT)
    if inspect.isfunction(function) and "inplace" in inspect.signature(function).parameters
}


def out_of_place(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[bool, Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Whether a call works in place, and the same call that does not."""
    if function in _INPLACE:
        return True, _INPLACE[function], args, kwargs
    if function in _HAS_INPLACE_FLAG:
        bound = _HAS_INPLACE_FLAG[function].bind(*args, **kwargs)
        if bound.arguments.get("inplace"):
            bound.arguments["inplace"] = False
            return True, function, bound.args, bound.kwargs
    return False, function, args, kwargs


def first_argument(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Callable[[Callable[..., Tensor]], Callable[[Tensor], Tensor]]]:
    """The tensor that an activation is applied to, and how to make a function of it alone."""
    settings = {k: v for k, v in kwargs.items() if k != "input"}
    x, rest = (args[0], args[1:]) if args else (kwargs["input"], ())
    return x, lambda function: lambda t: function(t, *rest, **settings)


def secant(function: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """y / x, and its limit, the derivative g'(0), where x is 0."""
    at_zero = x == 0
    q = y / x.masked_fill(at_zero, 1)
    if bool(at_zero.any()):
        zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            slope = torch.autograd.grad(function(zero), zero)[0]
        q = q.masked_fill(at_zero, slope.item())
    return q
