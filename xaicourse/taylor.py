"""Taylor expansions of a network, and the explanation that is their first order (lecture 07).

Slides: section 3, equations (10) to (13), and the derivation of gradient x input. With ``h = x - x0``, equation (10) is

    f(x) = f(x0) + Df(x0)[h] + D²f(x0)[h, h] / 2! + D³f(x0)[h, h, h] / 3! + …

The k-th derivative of a network with d inputs has d^k entries, but its term asks only for one number: the k-th derivative of
``t -> f(x0 + t h)`` at 0, a function of a single variable. `expansion` differentiates that one, k times in forward mode;
nothing larger than the network's own activations is ever made. `derivative` makes the whole tensor, where it is small.

`relevance` is equation (13), one number for each input dimension; `first_order` also says what it leaves over.
"""

from __future__ import annotations

import itertools
import math
import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from .arguments import check_count, check_finite, kind
from .scores import (
    Model,
    Target,
    ask,
    check_inputs,
    check_model,
    check_outputs,
    check_target,
    gradient,
    of_items,
    pairs,
    pick,
    scores,
    unchanged,
    wide,
)

__all__ = ["Expansion", "FirstOrder", "derivative", "expansion", "first_order", "orthogonal_root", "relevance"]


# ------------------------------------------------------------------------------------------------------------
# All orders along one direction
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expansion:
    """The terms of a Taylor expansion around x0, at x.

    terms  (order + 1, N, …): term k is D^k f(x0)[x - x0, …, x - x0] / k!; term 0 is f(x0)
    """

    terms: Tensor

    @property
    def order(self) -> int:
        """The highest order."""
        return len(self.terms) - 1

    @property
    def value(self) -> Tensor:
        """What the expansion predicts for f(x): the sum of its terms, (N, …)."""
        return self.terms.sum(0)

    @property
    def partial(self) -> Tensor:
        """What each order predicts for f(x): row k is the sum of the terms up to k, (order + 1, N, …)."""
        return self.terms.cumsum(0)

    def along(self, t: Tensor) -> Tensor:
        """What each order predicts for f(x0 + t (x - x0)), (order + 1, T, N, …), for any t (T,): a term k grows as t^k."""
        if not isinstance(t, Tensor) or not t.is_floating_point() or t.dim() != 1:
            raise TypeError(f"t must be a float tensor of shape (T,), got {kind(t)}")
        check_finite("t", t)
        orders = torch.arange(len(self.terms), device=t.device)
        powers = (t ** orders[:, None]).to(self.terms)
        return (powers.view(*powers.shape, *[1] * (self.terms.dim() - 1)) * self.terms[:, None]).cumsum(0)


def expansion(f: Model, x0: Tensor, x: Tensor, order: int, *, target: Target | None = None) -> Expansion:
    """Expand a function around x0 and evaluate the expansion at x, term by term.

    f       a module or function from (N, …) to (N, …), one row for each item; items do not see each other
    x0, x   the root and the point, (N, …), of the same shape, float dtype and device
    order   the highest order, 0 or more; each doubles the cost, which begins at one forward pass
    target  which output: an int, a LongTensor (N,), or a function from outputs to scores (N,); None: all outputs

    Returns an `Expansion` whose ``terms`` have shape (order + 1, N), or (order + 1, N, …) without a target, in the outputs'
    dtype.

    Raises TypeError or ValueError for arguments that are none of this, for NaN and infinity in them or in the result, for
    outputs that do not depend on the inputs, and for an operation without a forward-mode derivative, which is named.

    At a kink, such as ReLU's at 0, the derivative is what PyTorch takes it to be (there 0). Equation (10) of the slides;
    Taylor series by nested forward mode: Griewank and Walther, Evaluating Derivatives, SIAM 2008, chapters 3 and 13.
    """
    check_model(f, "f")
    check_count("order", order, least=0)
    _check_point("x0", x0)
    _check_point("x", x)
    if (x.shape, x.dtype, x.device) != (x0.shape, x0.dtype, x0.device):
        raise ValueError(f"x and x0 must agree in shape, dtype and device, got {_where(x)} and {_where(x0)}")
    target = target if target is None else check_target(target, len(x0))
    with _forward_mode(f):
        root, step = x0.detach().clone(), (x - x0).detach()
        _outputs(f, root, target, len(root))  # without derivatives: what goes wrong here is no matter of derivatives
        derivatives = _derivatives(lambda t: _outputs(f, root + t * step, target, len(root)), order)(root.new_zeros(()))
    terms = torch.stack([d / math.factorial(k) for k, d in enumerate(derivatives)])
    check_finite("the terms of the expansion", terms)
    return Expansion(terms)


def _derivatives(g: Callable[[Tensor], Tensor], order: int) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """A function of one number to its value and derivatives there, up to the order: each level differentiates the last."""
    if order == 0:
        return lambda t: (g(t),)
    lower = _derivatives(g, order - 1)

    def level(t: Tensor) -> tuple[Tensor, ...]:
        with _named(order):
            values, changes = jvp(lower, (t,), (torch.ones_like(t),), strict=order == 1)[:2]
        return (*values, changes[-1])

    return level


# ------------------------------------------------------------------------------------------------------------
# The tensor of all derivatives
# ------------------------------------------------------------------------------------------------------------


def derivative(
    f: Model, x0: Tensor, order: int, *, target: Target | None = None, limit: int = 10**7, chunk: int = 1024
) -> Tensor:
    """The whole tensor of the derivatives of one order at x0: the gradient, the Hessian, the third derivatives …

    f       as for `expansion`; the items in a batch must not see each other, for directions are put side by side in it
    x0      the points (N, …), of a float dtype
    order   0 or more
    target  which output, as for `expansion`; None: all outputs
    limit   the most entries that the result may have
    chunk   how many inputs ``f`` sees at once

    Returns (N, *outputs, *item, …, *item), with the shape of an item of x0 once for each order: symmetric in these. As
    D^k f(x0)[e_i, e_j, …] for unit vectors, each by nested forward mode, and each set {i, j, …} only once.

    Raises as `expansion`, and ValueError with the number of entries and their memory if there are more than ``limit``.
    """
    check_model(f, "f")
    check_count("order", order, least=0)
    check_count("limit", limit)
    check_count("chunk", chunk)
    _check_point("x0", x0)
    target = target if target is None else check_target(target, len(x0))
    items, size = len(x0), x0[0].numel()
    with _forward_mode(f):
        root = x0.detach().clone()
        outputs = _outputs(f, root, target, len(root))
        entries = outputs.numel() * size**order
        if entries > limit:
            raise ValueError(
                f"order: D^{order} of {size} inputs has {entries:,} entries here, {entries * outputs.element_size():.1e} "
                f"bytes, and limit is {limit:,}; `expansion` gives its term along one direction without them"
            )
        if order == 0:
            return outputs
        sets = torch.combinations(torch.arange(size, device=root.device), order, with_replacement=True)
        parts = []
        for which, item in pairs(items, len(sets), 0 if target is None else target, chunk, root.device):
            units = F.one_hot(sets[which].T, size).to(root).view(order, len(item), *root.shape[1:])
            asked = None if target is None else of_items(target, item)
            parts.append(_directional(f, root[item], asked, items, units))
    found = torch.cat(parts).view(len(sets), items, *outputs.shape[1:])
    check_finite("the derivatives", found)
    full = found.new_empty(*[size] * order, *outputs.shape)
    for permutation in itertools.permutations(range(order)):
        full[tuple(sets[:, permutation].T)] = found
    full = full.permute(*range(order, full.dim()), *range(order))
    return full.reshape(*outputs.shape, *[n for _ in range(order) for n in x0.shape[1:]])


def _directional(f: Model, x: Tensor, target: Target | None, items: int, directions: Tensor) -> Tensor:
    """D^k f(x)[v_1, …, v_k], for directions (k, N, …)."""

    def differentiated(g: Callable[[Tensor], Tensor], v: Tensor, order: int) -> Callable[[Tensor], Tensor]:
        def level(x: Tensor) -> Tensor:
            with _named(order):
                return jvp(g, (x,), (v,), strict=order == 1)[1]

        return level

    g: Callable[[Tensor], Tensor] = lambda x: _outputs(f, x, target, items)  # noqa: E731
    for order, v in enumerate(directions, 1):
        g = differentiated(g, v, order)
    return g(x)


# ------------------------------------------------------------------------------------------------------------
# The first order as an explanation
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FirstOrder:
    """A first-order expansion as an explanation: ``score = bias + relevance's sum + remainder``, item by item.

    relevance  r_d, shaped like the inputs
    root       x0, shaped like the inputs
    score      f(x), (N,)
    bias       f(x0), (N,): what no input dimension gets
    """

    relevance: Tensor
    root: Tensor
    score: Tensor
    bias: Tensor

    @property
    def remainder(self) -> Tensor:
        """What the first order misses, (N,): of second order in x - x0 where f is smooth."""
        return self.score - self.bias - wide(self.relevance).flatten(1).sum(1).to(self.score.dtype)


def relevance(
    model: Model, inputs: Tensor, target: Target, *, root: str | Tensor = "zero", at: str = "inputs"
) -> Tensor:
    """Explain a score by the first order of its Taylor expansion: r_d = df/dx_d (x_d - x0_d), equation (13).

    model   a module in evaluation mode, or a function, from inputs to outputs
    inputs  the points x, (N, …), of any float dtype and device
    target  an int, a LongTensor (N,), or a function from outputs to scores (N,)
    root    x0: a tensor that broadcasts to the inputs; "zero"; or "orthogonal", the point nearest to x among those that are
            orthogonal to the gradient at x (`orthogonal_root`)
    at      where the gradient is taken: "inputs", or "root" as in equation (13)

    Returns r, with the shape, dtype and device of the inputs. The default is gradient x input. The gradient is taken at the
    inputs, as there, because it is then about the input that is explained: at the root "zero" it would be the same for all.
    Either choice misses f(x) - f(x0) by an error of second order in x - x0; `first_order` says by how much.

    For ``at="inputs"`` every x0 that is orthogonal to the gradient, 0 among them, gives the same sum, ∇f(x)·x, but not the
    same r: from "zero" it is gradient x input, from "orthogonal" it is g_d² (g·x) / (g·g), which has one sign only.

    Raises TypeError or ValueError as every attribution, for a root that does not fit, and where a gradient to be orthogonal
    to is zero.
    """
    return first_order(model, inputs, target, root=root, at=at).relevance


def first_order(
    model: Model, inputs: Tensor, target: Target, *, root: str | Tensor = "zero", at: str = "inputs"
) -> FirstOrder:
    """What `relevance` computes, with the root that it used, f(x) and f(x0); the same arguments and errors."""
    check_model(model)
    check_inputs(inputs)
    target = check_target(target, len(inputs))
    _check_root(root, inputs)
    if at not in ("inputs", "root"):
        raise ValueError(f"at must be 'inputs' or 'root', got {at!r}")
    with unchanged(model), torch.inference_mode(False):
        x = inputs.detach().clone()
        score, slope = gradient(model, x, target)
        if isinstance(root, Tensor):
            x0 = root.detach().expand_as(x).clone()
        else:
            x0 = torch.zeros_like(x) if root == "zero" else _orthogonal(x, slope)
        if at == "root":
            bias, slope = gradient(model, x0, target)
        else:
            with torch.no_grad():
                bias = scores(model, x0, target)
    found = slope * (x - x0)
    check_finite("the relevance", found)
    return FirstOrder(found, x0, score, bias)


def orthogonal_root(model: Model, inputs: Tensor, target: Target) -> Tensor:
    """The point x0 nearest to x with ∇f(x)·x0 = 0, for each item: x0 = x - g (g·x) / (g·g), where g = ∇f(x).

    Arguments as for `relevance`; returns a tensor like the inputs. ValueError where the gradient is zero.
    """
    return first_order(model, inputs, target, root="orthogonal").root


def _orthogonal(x: Tensor, slope: Tensor) -> Tensor:
    g = wide(slope).flatten(1)
    largest = g.abs().amax(1, keepdim=True)
    if (zero := (largest == 0).flatten().nonzero().flatten().tolist()) != []:
        raise ValueError(
            f"root: the gradient of item {zero[0]} is zero, and every point is orthogonal to it; choose another root, "
            "or take a score that is not saturated (a logit, not a probability)"
        )
    g = F.normalize(g / largest, dim=1)  # scaled first, since the square of a small gradient is 0
    flat = wide(x).flatten(1)
    return (flat - g * (g * flat).sum(1, keepdim=True)).view_as(x).to(x.dtype)


# ------------------------------------------------------------------------------------------------------------
# Checks, and what makes forward mode work
# ------------------------------------------------------------------------------------------------------------


def _check_point(name: str, point: Tensor) -> None:
    if not isinstance(point, Tensor) or not point.is_floating_point():
        raise TypeError(f"{name} must be a tensor of a float dtype, got {kind(point)}")
    if point.dim() == 0 or point.numel() == 0:
        raise ValueError(f"{name} must have shape (N, …) with at least one item, not empty, got {tuple(point.shape)}")
    check_finite(name, point)


def _check_root(root: str | Tensor, inputs: Tensor) -> None:
    if isinstance(root, str):
        if root not in ("zero", "orthogonal"):
            raise ValueError(f"root must be a tensor, 'zero' or 'orthogonal', got {root!r}")
        return
    if not isinstance(root, Tensor):
        raise TypeError(f"root must be a tensor, 'zero' or 'orthogonal', got {type(root).__name__}")
    if (root.dtype, root.device) != (inputs.dtype, inputs.device):
        raise ValueError(f"root must have the dtype and device of the inputs, {_where(inputs)}, got {_where(root)}")
    try:
        fits = torch.broadcast_shapes(root.shape, inputs.shape) == inputs.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"root must broadcast to the inputs, {tuple(inputs.shape)}, got {tuple(root.shape)}")
    check_finite("root", root)


def _where(tensor: Tensor) -> str:
    return f"{kind(tensor)} on {tensor.device}"


def _outputs(f: Model, x: Tensor, target: Target | None, items: int) -> Tensor:
    """All outputs (N, …), or the score (N,); a function as target is asked once for each batch of so many items."""
    outputs = f(x)
    check_outputs(outputs, len(x), target)
    if isinstance(target, (int, Tensor)):
        return pick(outputs, target)
    if target is not None:
        return ask(target, outputs, items)
    if not outputs.is_floating_point():
        raise TypeError(f"f must return a tensor of a float dtype, got {kind(outputs)}")
    return outputs


@contextmanager
def _forward_mode(f: Model) -> Iterator[None]:
    """Forward mode on its own, without a graph for reverse mode; attention by its formula, for its kernels have none."""
    with warnings.catch_warnings(), unchanged(f), torch.inference_mode(False), torch.no_grad():
        warnings.filterwarnings(
            "ignore", message=".*torch.jit.script", category=FutureWarning
        )  # PyTorch's own, at first use
        with sdpa_kernel(SDPBackend.MATH), _WrittenOut():
            yield


class _WrittenOut(TorchFunctionMode):
    """Functions of which PyTorch (2.15) has one forward-mode derivative, in terms of which it has all.

    To differentiate the activations twice is an error there. To differentiate the norms twice gives wrong numbers and no
    error: mean and variance are taken for constants.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in _RECURRENT:  # by steps: the kernels that do all steps at once have no derivative
            with warnings.catch_warnings(), torch.backends.cudnn.flags(enabled=False):
                warnings.simplefilter("ignore")  # about TF32, which nobody asked for
                with torch.backends.mkldnn.flags(enabled=False):
                    return function(*args, **kwargs)
        if function not in _FORMULAS:
            return function(*args, **kwargs)
        in_place = kwargs.pop("inplace", False)
        x = args[0] if args else kwargs.pop("input")
        y = _FORMULAS[function](x, *args[1:], **kwargs)
        return x.copy_(y) if in_place else y


def _glu(x: Tensor, dim: int = -1) -> Tensor:
    signal, gate = x.chunk(2, dim)
    return signal * torch.sigmoid(gate)


def _layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    y = _standardised(x, tuple(range(x.dim() - len(normalized_shape), x.dim())), eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    y = _standardised(x, tuple(range(2, x.dim())), eps)
    channels = (-1, *[1] * (x.dim() - 2))
    y = y if weight is None else y * weight.view(channels)
    return y if bias is None else y + bias.view(channels)


def _torch_instance_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    return _instance_norm(x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


def _native_layer_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    dims = tuple(range(x.dim() - len(normalized_shape), x.dim()))
    mean, spread = x.mean(dims, keepdim=True), x.var(dims, correction=0, keepdim=True)
    return _layer_norm(x, normalized_shape, weight, bias, eps), mean, torch.rsqrt(spread + eps)


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training:
        raise ValueError(
            "f must treat each item by itself, but calls batch_norm with training=True: the batch's statistics"
        )
    return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)


def _standardised(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + eps)


_RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
_FORMULAS: dict[Any, Callable[..., Any]] = {
    F.silu: lambda x: x * torch.sigmoid(x),
    F.mish: lambda x: x * torch.tanh(F.softplus(x)),
    F.hardsigmoid: lambda x: F.relu6(x + 3) / 6,
    F.glu: _glu,
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    torch.native_layer_norm: _native_layer_norm,
    F.instance_norm: _instance_norm,
    torch.instance_norm: _torch_instance_norm,
    F.batch_norm: _batch_norm,
}


@contextmanager
def _named(order: int) -> Iterator[None]:
    """What forward mode cannot do, as a ValueError that says at which operation; f itself has run without an error."""
    try:
        yield
    except (RuntimeError, TypeError) as error:  # NotImplementedError is a RuntimeError
        said = str(error).partition("\n")[0]
        if "strict" in said:
            why = (
                "the outputs do not depend on the inputs; somewhere between them the graph is cut (detach, a rounding or an "
                "argmax)"
            )
        elif operation := re.search(r"forward AD with (\S+)", said):
            why = f"{operation[1].removeprefix('aten::')} has no forward-mode derivative"
        else:
            why = said
        raise ValueError(f"f cannot be differentiated {order} times in forward mode: {why}{_line(error)}") from error


def _line(error: BaseException) -> str:
    """The line of the model's own code at which an error arose, if it has one."""
    ours = (str(Path(torch.__file__).parent), __file__)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    return f"; it is at {frames[-1].line!r} in {frames[-1].name}" if frames and frames[-1].line else ""
