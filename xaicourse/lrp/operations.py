"""What LRP does with each torch function: one record per name, and ``register`` for functions of one's own.

Lectures 11 and 12, slides "LRP has the same flow along graphs as the gradient" and "signal takes all". In c = R / x a function
has one of a few rules:

    gradient   linear without a constant of its own (sums, reshapes, averages) or a choice of entries (max pooling): c flows
               back as the gradient does
    product    linear in each of its factors (x * y, x @ y, x / y). *Signal takes all*: a factor that is a gate is a
               constant, and so is a divisor. Signals without a gate share equally, which is the Shapley value of a product
    secant     an activation g of each entry: c_x = c_y (y - g(0)) / x, the secant in place of the tangent. g(0), if it is
               not zero, is a bias
    gate       weights that multiply a signal (softmax): they steer, relevance does not reach them; if it does all the
               same, LRP refuses
    constant   nothing flows: what the author detached
    composed   written by known functions (``composed.py``)

Functions that only ask (for a shape, for a comparison) carry no relevance. A function that is not in the table is refused.
Arras et al. 2017, Explaining recurrent neural network predictions in sentiment analysis, WASSA (signal takes all); Ali et al.
2022, XAI for transformers: better explanations through conservative propagation, ICML (attention and norms as constants).
"""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import resolve_name

from . import composed

RULES = ("gradient", "product", "secant", "gate", "constant")
"""What ``register`` takes by name."""


@dataclass(frozen=True)
class Operation:
    """What LRP knows of a function.

    name         as a model's author calls it
    rule         one of the rules above, or "layer", "batch_norm", "dropout", "embedding", "assignment", "form" (asks for a
                 shape or a type), "values" (asks by yes and no or for a position)
    view         its result may share memory with its argument
    keeps_sign   no entry of the result is below zero if none of the tensors has one
    moves        relevance of its result is relevance of certain entries of its argument, whatever their values are
    entrywise    with a constant it acts on each entry alone
    adds         a sum of its tensors: two of them share by value
    constants    it can hold constants, which keep relevance
    gate         1 if its result is a gate: in a product with a signal, the signal takes all; 2 if relevance has no way back
    zero         g(0) = 0 for a secant
    bounded      its result lies between two numbers: shifted so that it is not negative, it is a gate that somebody spelled out
    roles        of the arguments of a product, by position: "*" factor, "/" divisor or held constant, "+" added, "-" none
    made_of      the function in known terms, for "composed"
    """

    name: str
    rule: str
    view: bool = False
    keeps_sign: bool = False
    moves: bool = False
    entrywise: bool = False
    adds: bool = False
    constants: bool = False
    gate: int = 0
    zero: bool = True
    bounded: bool = False
    roles: str = ""
    made_of: Callable[..., Any] | None = None

    def role(self, argument: int | str) -> str:
        """The role of an argument of a product; those by name are factors unless their names say more."""
        if isinstance(argument, int):
            return self.roles[min(argument, len(self.roles) - 1)]
        if argument in _NAMED_ROLES:
            return _NAMED_ROLES[argument]
        return self.roles[0] if argument in ("input", "query") else "/" if "/" in self.roles[1:] else "*"


_NAMED_ROLES = {"tensor1": "*", "bias": "+", "value": "*", "key": "/", "attn_mask": "/", "equation": "-"}

_TABLE: dict[Any, Operation] = {}
_REGISTERED: dict[Any, Operation] = {}

# Under a TorchFunctionMode a call is seen as the Python or builtin function that the model wrote: x.relu(), torch.relu and
# F.relu are three functions
_HOMES = (torch, Tensor, F, torch._C._nn, torch.special, torch.linalg)


def _spellings(name: str) -> Iterable[Any]:
    return (f for home in _HOMES if callable(f := getattr(home, name, None)))


def _enter(names: str, rule: str, **facts: Any) -> None:
    for name in names.split():
        for function in _spellings(name):
            _TABLE[function] = Operation(name, rule, **facts)


def _enter_properties(names: str, rule: str, **facts: Any) -> None:
    for name in names.split():
        _TABLE[getattr(Tensor, name).__get__] = Operation(name, rule, **facts)


# questions ------------------------------------------------------------------------------------------------------------
_enter("size dim ndimension numel nelement is_floating_point is_complex is_tensor get_device element_size", "form")
_enter("new_zeros new_ones new_empty new_full zeros_like ones_like empty_like full_like", "form")
_enter("rand_like randn_like __len__ __hash__", "form")
_enter_properties("shape ndim dtype device layout is_cuda is_cpu is_meta is_mps is_sparse is_nested", "form")
_enter_properties("is_quantized requires_grad itemsize", "form")
_enter("__bool__ all any eq ne lt le gt ge __eq__ __ne__ __lt__ __le__ __gt__ __ge__ isnan isinf isfinite", "values")
_enter("equal allclose isclose isin argmax argmin argsort argwhere nonzero count_nonzero bucketize", "values")
_enter("searchsorted is_contiguous stride storage_offset __repr__ __format__", "values")
_enter("logical_and logical_or logical_not logical_xor is_same_size one_hot bincount", "values")

# layers with weights -----------------------------------------------------------------------------------------------------
_enter("linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d", "layer", roles="**+")
_TABLE[F.batch_norm] = Operation("batch_norm", "batch_norm")
_enter("dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout", "dropout")
_enter("embedding", "embedding")
_enter("__setitem__ copy_", "assignment", constants=True)

# the gradient is the rule ----------------------------------------------------------------------------------------------
_SHAPES = (
    "view view_as reshape reshape_as flatten unflatten ravel squeeze unsqueeze permute transpose t movedim moveaxis"
)
_SHAPES += " swapaxes swapdims adjoint expand expand_as broadcast_to chunk split tensor_split unbind narrow select"
_SHAPES += " __getitem__ contiguous split_with_sizes hsplit vsplit unfold unsafe_chunk unsafe_split"
_enter(_SHAPES, "gradient", view=True, keeps_sign=True, moves=True)
_enter_properties("T mT H mH", "gradient", view=True, keeps_sign=True, moves=True)
_enter(
    "to cpu cuda float double half bfloat16 long int type_as",
    "gradient",
    view=True,
    keeps_sign=True,
    moves=True,
    entrywise=True,
)
_enter("diagonal real broadcast_tensors atleast_1d atleast_2d atleast_3d", "gradient", view=True, keeps_sign=True)
_enter("clone repeat tile roll flip fliplr flipud rot90 index_select gather take_along_dim repeat_interleave", "gradient",
       keeps_sign=True, moves=True)  # fmt: skip
_enter("cat concat concatenate stack hstack vstack dstack", "gradient", keeps_sign=True, moves=True, constants=True)
_enter("add __add__ __radd__", "gradient", keeps_sign=True, moves=True, adds=True, constants=True, entrywise=True)
_enter("sub subtract __sub__ rsub __rsub__", "gradient", moves=True, adds=True, constants=True, entrywise=True)
_enter("neg negative __neg__ positive __pos__", "gradient", moves=True, entrywise=True)
_enter("mean avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d", "gradient",
       keeps_sign=True, moves=True)  # fmt: skip
_enter("sum cumsum max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d", "gradient",
       keeps_sign=True)  # fmt: skip
_enter("amax amin aminmax sort topk kthvalue median nanmedian cummax cummin mode msort", "gradient", keeps_sign=True)
_enter("max min maximum minimum fmax fmin", "gradient", constants=True)
_enter("pad constant_pad_nd masked_fill", "gradient", moves=True, constants=True)
_enter("where", "gradient", moves=True, constants=True)
_enter("index_add index_copy index_fill index_put scatter scatter_add masked_scatter select_scatter slice_scatter", "gradient",
       constants=True)  # fmt: skip
_enter("masked_select tril triu diag_embed trace diff fold im2col col2im block_diag", "gradient", keeps_sign=False)
_enter(
    "interpolate upsample pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle", "gradient", moves=True
)
_enter("_pack_padded_sequence _pad_packed_sequence max_unpool1d max_unpool2d max_unpool3d affine_grid", "gradient")
_enter("relu", "gradient", keeps_sign=True)
_enter("norm vector_norm", "gradient", keeps_sign=True, gate=1)  # of degree one: the gradient conserves
_TABLE[F.unfold] = Operation("unfold", "gradient", keeps_sign=True)  # copies patches, unlike Tensor.unfold

# products ---------------------------------------------------------------------------------------------------------------
_enter("mul multiply __mul__ __rmul__", "product", roles="**", moves=True, entrywise=True)
_enter("div divide true_divide __truediv__", "product", roles="*/", moves=True, entrywise=True)
_enter("matmul __matmul__ mm bmm mv dot vdot vecdot inner outer ger kron cross tensordot", "product", roles="**")
_enter("__rmatmul__", "product", roles="**")
_enter("addmm addbmm baddbmm addmv addr addcmul", "product", roles="+**", constants=True)
_enter("addcdiv", "product", roles="+*/", constants=True)
_enter("bilinear", "product", roles="***+", constants=True)
_enter("einsum", "product", roles="-*")
_enter("scaled_dot_product_attention", "product", roles="//*/")
_enter("grid_sample grid_sampler", "product", roles="*/")

# activations ------------------------------------------------------------------------------------------------------------
_enter("relu6", "secant", keeps_sign=True, bounded=True)
_enter("tanh softsign", "secant", bounded=True)
_enter(
    "leaky_relu elu selu celu silu mish gelu hardswish softshrink hardshrink tanhshrink prelu",
    "secant",
)
_enter("abs absolute __abs__ square", "secant", keeps_sign=True)
_enter("sin tan sinh asinh arcsinh atan arctan expm1 log1p", "secant")
_enter("erf", "secant", gate=1)
_enter("hardtanh clamp clip clamp_min clamp_max threshold cos cosh", "secant", zero=False)
_enter("logsigmoid", "secant", zero=False)
_enter("sigmoid expit hardsigmoid softplus exp exp2", "secant", zero=False, gate=1, keeps_sign=True)
_enter("pow __pow__", "secant")
_enter("__rpow__", "secant", zero=False, gate=1)

# gates and constants ------------------------------------------------------------------------------------------------------
_enter("softmax softmin sqrt rsqrt", "gate", gate=2, keeps_sign=True)
_enter("reciprocal log log2 log10 logsumexp var std sign sgn heaviside", "gate", gate=2)
_enter("detach", "constant")

# composed -----------------------------------------------------------------------------------------------------------------
for _name, _function in composed.FUNCTIONS.items():
    _enter(_name, "composed", made_of=_function)

_TABLE[torch.embedding] = Operation("embedding", "composed", made_of=composed.embedding)  # its arguments change places

# in place: the same as out of place, for a tensor that takes the place of the old one ---------------------------------------
# (not what turns the tensor itself into another one: its old shape would still be asked for)
_CHANGE_THE_TENSOR = {"detach", "unsqueeze", "squeeze", "t", "transpose", "swapaxes", "swapdims"}
_IN_PLACE: dict[Any, Any] = {}
for _home in _HOMES:
    for _name in dir(_home):
        _plain = {
            "__iadd__": "__add__",
            "__isub__": "__sub__",
            "__imul__": "__mul__",
            "__itruediv__": "__truediv__",
        }.get(_name, _name[:-1] if _name.endswith("_") and not _name.endswith("__") else "")
        if _plain and _plain not in _CHANGE_THE_TENSOR and getattr(_home, _plain, None) in _TABLE:
            _IN_PLACE[getattr(_home, _name)] = getattr(_home, _plain)
_HAS_INPLACE_FLAG = {
    function: inspect.signature(function)
    for function in _TABLE
    if inspect.isfunction(function) and "inplace" in function.__code__.co_varnames[: function.__code__.co_argcount]
}


def find(function: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Operation | None:
    """What LRP does with this call; None if nobody knows."""
    known = _REGISTERED.get(function) or _TABLE.get(function)
    if known is None or function in _REGISTERED:
        return known
    if known.name in ("pow", "__pow__"):
        return _power(known, [*args, *(kwargs or {}).values()])
    if known.name in _LIMITS:
        low, high = _limits(known.name, args, kwargs or {})
        bounded = math.isfinite(low) and math.isfinite(high)
        return replace(known, zero=low <= 0 <= high, keeps_sign=low >= 0, bounded=bounded)
    return known


_LIMITS = {
    "hardtanh": (("min_val", -1.0), ("max_val", 1.0)),
    "clamp": (("min", None), ("max", None)),
    "clip": (("min", None), ("max", None)),
    "clamp_min": (("min", None),),
    "clamp_max": (("max", None),),
}


def _limits(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[float, float]:
    """Between which numbers the result lies; limits that are tensors may be anything."""
    given: dict[str, Any] = dict(_LIMITS[name])
    given |= dict(zip(given, args[1:], strict=False)) | {k: v for k, v in kwargs.items() if k in given}
    low = next((v for k, v in given.items() if k.startswith("min")), None)
    high = next((v for k, v in given.items() if k.startswith("max")), None)
    low = -math.inf if low is None else math.nan if isinstance(low, Tensor) else low
    return low, math.inf if high is None else math.nan if isinstance(high, Tensor) else high


def _power(known: Operation, arguments: list[Any]) -> Operation | None:
    """x^p is an activation, p^x and 1 / x^p are gates."""
    base, exponent = arguments[:2]
    if not isinstance(base, Tensor):
        return replace(known, zero=False, gate=1)
    if isinstance(exponent, Tensor):
        return None if exponent.requires_grad or exponent.numel() > 1 else _power(known, [base, exponent.item()])
    return known if exponent >= 1 else replace(known, rule="gate", gate=2)


def name(function: Any) -> str:
    """What a model's author calls the function."""
    known = _REGISTERED.get(function) or _TABLE.get(function)
    if known is not None:
        return known.name
    return resolve_name(function) or getattr(function, "__qualname__", None) or str(function)


def register(function: Callable[..., Any], rule: str | Callable[..., Any]) -> None:
    """Tell LRP what to do with a function of one's own, from now on.

    function  a torch function, an operator (``torch.ops.mine.scan``), or a subclass of ``torch.autograd.Function``; a plain
              Python function needs no rule, since LRP sees what it calls
    rule      "gradient", "product", "secant", "gate" or "constant", as this module's docstring says; or a function with the
              same arguments that does the same with functions that LRP knows, such as ``lambda x: x * torch.sigmoid(x)``

    A later registration replaces an earlier one; ``unregister`` takes it back. TypeError or ValueError if the function cannot
    be called or the rule is none of these.
    """
    if not callable(function):
        raise TypeError(f"function must be callable, got {type(function).__name__}")
    if isinstance(rule, str):
        if rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)} or a function, got {rule!r}")
        _REGISTERED[function] = Operation(
            name(function),
            rule,
            constants=True,
            gate=2 if rule == "gate" else 0,
            zero=False,
            roles="*" if rule == "product" else "",
        )
    elif callable(rule):
        _REGISTERED[function] = Operation(name(function), "composed", made_of=rule)
    else:
        raise TypeError(f"rule must be a name or a function, got {type(rule).__name__}")


def unregister(function: Callable[..., Any]) -> None:
    """Forget what ``register`` was told about the function; ValueError if that is nothing."""
    if _REGISTERED.pop(function, None) is None:
        raise ValueError(f"function must have been registered, got {name(function)}")


def writes(function: Any) -> bool:
    """Whether the function changes its first argument in place."""
    return function in _IN_PLACE or (known := _TABLE.get(function)) is not None and known.rule == "assignment"


TAKE_A_FORM = {"expand_as", "view_as", "reshape_as", "type_as", "to", "__getitem__"}
"""A constant that takes the form of a tensor stays one."""


def opened(function: Any) -> Callable[..., Any] | None:
    """The body of one of PyTorch's own Python functions, so that what it calls is seen; None for all others.

    ``F.multi_head_attention_forward`` or ``F.normalize`` begin by handing themselves over to whoever intercepts functions
    (``has_torch_function``). Here they do not.
    """
    asks = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    if not isinstance(function, types.FunctionType) or not function.__module__.startswith("torch."):
        return None
    if function.__module__.startswith("torch.autograd") or function.__name__ == "backward":
        return None  # runs back through a graph that is ours
    if not any(question in function.__code__.co_names for question in asks):
        return None
    no = {question: lambda *tensors: False for question in asks if question in function.__globals__}
    body = types.FunctionType(
        function.__code__,
        {**function.__globals__, **no},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    body.__kwdefaults__ = function.__kwdefaults__
    return body


_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_ARGUMENTS = {
    "linear": ("input", "weight", "bias"),
    **{f"conv{d}d": _CONVOLUTION for d in (1, 2, 3)},
    **{f"conv_transpose{d}d": _TRANSPOSED for d in (1, 2, 3)},
    "batch_norm": ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    "dropout": ("input", "p", "training", "inplace"),
    "embedding": ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
}


def arguments(kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name; builtin functions have no signature to ask."""
    return dict(zip(_ARGUMENTS[kind], args, strict=False)) | kwargs


VIEW_AS_RESHAPE = {Tensor.view: Tensor.reshape}
"""``view`` asks for a memory layout that ours (channels last) may not have; ``reshape`` gives the same values."""


def out_of_place(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[bool, Any, tuple[Any, ...], dict[str, Any]]:
    """Whether a call works in place, and the same call that does not."""
    if function in _IN_PLACE:
        return True, _IN_PLACE[function], args, kwargs
    if function in _HAS_INPLACE_FLAG:
        bound = _HAS_INPLACE_FLAG[function].bind(*args, **kwargs)
        if bound.arguments.get("inplace"):
            bound.arguments["inplace"] = False
            return True, function, bound.args, bound.kwargs
    return False, function, args, kwargs


def first_argument(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Callable[[Callable[..., Tensor]], Callable[[Tensor], Tensor]]]:
    """The tensor that an activation is applied to, and how to make a function of it alone."""
    settings = {k: v for k, v in kwargs.items() if k not in ("input", "self")}
    if args and not isinstance(args[0], Tensor):  # torch.pow(2, x)
        return args[1], lambda function: lambda t: function(args[0], t, *args[2:], **settings)
    x, rest = (args[0], args[1:]) if args else (kwargs["input"], ())
    return x, lambda function: lambda t: function(t, *rest, **settings)


def secant(function: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """y / x, and its limit, the derivative g'(0), where x is 0; for a g that acts on each entry, with g(0) = 0."""
    at_zero = x == 0
    q = y / x.masked_fill(at_zero, 1)
    if bool(at_zero.any()):
        with torch.enable_grad():
            t = x.detach().clone().requires_grad_()
            slope = torch.autograd.grad(function(t).sum(), t)[0]
        q = torch.where(at_zero, slope, q)
    return q
