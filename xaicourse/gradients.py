"""Attributions from gradients: plain, edited on the way back, and averaged (lecture 09; slides, section 3: gradient x input,
integrated gradients, SmoothGrad).

- `gradient`, `gradient_x_input`: the slope at the input, and what it makes of the input
- `guided_backprop`, `deconvolution`: the gradient with its negative part thrown away at every ReLU
- `integrated_gradients`, `integrate`: the average along the way from a baseline, which sums to the difference of the scores
- `smoothgrad`, `vargrad`: mean and variance of the gradient in a noisy neighbourhood
- `expected_gradients`: integrated gradients, averaged over baselines out of a set

What is averaged is computed ``chunk`` inputs at a time and added up at once, so that memory does not grow with the number of
steps or samples. Noise and random points are the same for all items and do not depend on ``chunk``: a batch gives what its
items give.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .arguments import check_count, check_finite, check_generator, check_positive, kind
from .scores import (
    Model,
    Target,
    ask,
    check_inputs,
    check_model,
    check_target,
    first_axis_kept,
    of_items,
    pairs,
    scores,
    unchanged,
    uncompiled,
    wide,
)
from .scores import gradient as score_gradient

__all__ = [
    "Integral",
    "deconvolution",
    "expected_gradients",
    "gradient",
    "gradient_x_input",
    "guided_backprop",
    "integrate",
    "integrated_gradients",
    "smoothgrad",
    "vargrad",
]

Quadrature = Literal["gausslegendre", "midpoint", "right", "left", "trapezoid"]
Method = Callable[[Model, Tensor, Target], Tensor]
Quadratures = ("gausslegendre", "midpoint", "right", "left", "trapezoid")


# ------------------------------------------------------------------------------------------------------------
# At the input itself
# ------------------------------------------------------------------------------------------------------------


def gradient(model: Model, inputs: Tensor, target: Target) -> Tensor:
    """The gradient of the score with respect to the inputs: how fast it changes with each of them.

    model   an nn.Module in evaluation mode, or a function of tensors; it is not changed
    inputs  (N, …), any float dtype and device
    target  which score to explain: a class index, one for each item (LongTensor (N,)), or a function from the outputs to
            scores (N,)

    Returns ``df/dx_d``, shaped like ``inputs``, in units of the score per unit of the input: a sensitivity, which sums to
    nothing in particular.

    Raises ValueError or TypeError if an argument is not as above, if the score does not depend on the inputs, or if a NaN or an
    infinity appears.

    Simonyan, Vedaldi & Zisserman, "Deep Inside Convolutional Networks", ICLR workshop 2014.
    """
    target = _check(model, inputs, target)
    with unchanged(model):
        return _like(score_gradient(model, inputs, target)[1], inputs)


def gradient_x_input(model: Model, inputs: Tensor, target: Target) -> Tensor:
    """The gradient times the input, ``R_d = df/dx_d x_d``: a Taylor expansion of first order (lecture 07).

    Arguments and errors are those of `gradient`. It sums to the score if the model is piecewise linear and has no biases.
    Shrikumar et al., "Not Just a Black Box", 2016 (arXiv:1605.01713).
    """
    return _like(gradient(model, inputs, target) * inputs.detach(), inputs)


def guided_backprop(model: Model, inputs: Tensor, target: Target) -> Tensor:
    """The gradient, with what is negative set to 0 at the output of every ReLU on the way back.

    Arguments, result and errors are those of `gradient`. At y = relu(x), with g what comes back to y::

        g_x = max(g, 0) [x > 0]                  relu6: [0 < x < 6]

    Every ReLU counts, whatever calls it: relu, relu6, hardtanh and clamp from 0 on, threshold at 0, a maximum with zeros. Other
    activations (GELU, SiLU, leaky ReLU) keep their derivative. What PyTorch does not call by such a name cannot be seen: a ReLU
    spelled ``x * (x > 0)``, or in a scripted module or a custom ``autograd.Function``. A model without any is refused, since
    the map would be the plain gradient, and so is an ``nn.RNN`` or ``nn.RNNCell`` of ReLUs, which hides
    them.

    The result resembles the input more than it tells about the model (lecture 09).

    Springenberg et al., "Striving for Simplicity: The All Convolutional Net", ICLR workshop 2015.
    """
    return _edited(model, inputs, target, keep_mask=True)


def deconvolution(model: Model, inputs: Tensor, target: Target) -> Tensor:
    """The gradient, where every ReLU rectifies what comes back instead of what came in.

    Arguments, result, errors and the functions that count as ReLU are those of `guided_backprop`. At y = relu(x), and likewise
    for relu6 and the others, ``g_x = max(g, 0)`` whatever x was: below 0, or above 6 where a relu6 is saturated. Max pooling
    passes back to its winners.

    Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014.
    """
    return _edited(model, inputs, target, keep_mask=False)


def _edited(model: Model, inputs: Tensor, target: Target, *, keep_mask: bool) -> Tensor:
    target = _check(model, inputs, target)
    rectifiers = _Rectifiers(keep_mask)

    def watched(x: Tensor) -> Tensor:
        with uncompiled(), rectifiers:
            return model(x)

    with unchanged(model):
        found = score_gradient(watched, inputs, target)[1]
    if not rectifiers.seen:
        raise ValueError(
            "model must call a ReLU (relu, relu6, hardtanh or clamp from 0 on, threshold at 0) between inputs and score; it "
            "calls none that can be seen, and the map would be the plain gradient"
        )
    return _like(found, inputs)


class _Rectifiers(TorchFunctionMode):
    """Sees every function that the model calls, and puts another one in the place of those that rectify."""

    def __init__(self, keep_mask: bool) -> None:
        super().__init__()
        self.keep_mask, self.seen = keep_mask, 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in (torch.rnn_relu, torch.rnn_relu_cell):
            raise ValueError(
                "model must not hide its ReLUs in an nn.RNN or nn.RNNCell; write its steps out with torch.relu"
            )
        found = _RECTIFIERS[function](*args, **kwargs) if function in _RECTIFIERS else None
        if found is None or not (found[0].requires_grad and torch.is_grad_enabled()):
            return function(*args, **kwargs)
        x, ceiling, in_place = found
        y = _Rectified.apply(x, ceiling, self.keep_mask)
        y.register_hook(self._count)
        return x.copy_(y) if in_place or function in _IN_PLACE else y

    def _count(self, _: Tensor) -> None:
        self.seen += 1  # on the way back: a ReLU of weights, or beside the way, does not count


class _Rectified(torch.autograd.Function):
    """y = min(max(x, 0), ceiling), and what comes back of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ceiling: float, keep_mask: bool) -> Tensor:
        """Give y, and remember where it lies between its bounds."""
        y = x.clamp(0, ceiling)
        if keep_mask:
            ctx.save_for_backward((y > 0) & (y < ceiling))  # not y: the model may work on it in place
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Pass what is positive to x."""
        positive = grads[0].clamp(min=0)
        return (positive * ctx.saved_tensors[0] if ctx.saved_tensors else positive), None, None


# What a call rectifies, at which ceiling, and whether in place; None if it is no ReLU. Arguments are named as PyTorch does.
Rectifier = tuple[Tensor, float, bool] | None


def _relu(input: Tensor, inplace: bool = False) -> Rectifier:
    return input, math.inf, inplace


def _relu6(input: Tensor, inplace: bool = False) -> Rectifier:
    return input, 6.0, inplace


def _hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Rectifier:
    return (input, max_val, inplace) if min_val == 0 else None


def _threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Rectifier:
    return (input, math.inf, inplace) if threshold == value == 0 else None


def _clamp(input: Tensor, min: Any = None, max: Any = None, *, out: Any = None) -> Rectifier:
    if out is not None or isinstance(max, Tensor) or (max is not None and max <= 0):
        return None
    return (input, math.inf if max is None else float(max), False) if _is_zero(min, input) else None


def _maximum(input: Tensor, other: Any = None, *axis: Any, **options: Any) -> Rectifier:
    if axis or options or not isinstance(other, Tensor):
        return None  # torch.max is also a maximum along an axis
    if _is_zero(other, input):
        return input, math.inf, False
    return (other, math.inf, False) if _is_zero(input, other) else None


def _is_zero(bound: Any, x: Tensor) -> bool:
    """Whether it is 0 for every x."""
    if not isinstance(bound, Tensor):
        return isinstance(bound, (int, float)) and bound == 0
    spread = torch.broadcast_shapes(bound.shape, x.shape) == x.shape
    return spread and x.is_floating_point() and not bound.requires_grad and not bool(bound.any())


_RECTIFIERS: dict[Any, Callable[..., Rectifier]] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_), _relu),
    **dict.fromkeys((F.relu6,), _relu6),
    **dict.fromkeys((F.hardtanh, F.hardtanh_), _hardtanh),
    **dict.fromkeys((F.threshold, torch.threshold, torch.threshold_), _threshold),
    **dict.fromkeys((torch.clamp, torch.clamp_, torch.clip, torch.clip_, torch.clamp_min, torch.clamp_min_), _clamp),
    **dict.fromkeys(
        (Tensor.clamp, Tensor.clamp_, Tensor.clip, Tensor.clip_, Tensor.clamp_min, Tensor.clamp_min_), _clamp
    ),
    **dict.fromkeys((torch.maximum, Tensor.maximum, torch.max, Tensor.max, torch.fmax, Tensor.fmax), _maximum),
}
_IN_PLACE = {function for function in _RECTIFIERS if function.__name__.endswith("_")}


# ------------------------------------------------------------------------------------------------------------
# Along the way from a baseline
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Integral:
    """Integrated gradients, and how good they are.

    relevance           shaped like the inputs
    difference          f(x) - f(baseline) of each item, (N,): what the relevance should sum to
    completeness_error  |sum of relevance - difference| of each item, (N,), relative to |difference|, or to a thousandth of
                        |f(x)| + |f(baseline)| where that is more
    steps               points that the result of each item is made of, LongTensor (N,)
    evaluations         gradients that were computed for each item on the way there, LongTensor (N,)
    """

    relevance: Tensor
    difference: Tensor
    completeness_error: Tensor
    steps: Tensor
    evaluations: Tensor


def integrated_gradients(
    model: Model,
    inputs: Tensor,
    target: Target,
    *,
    baseline: Tensor | float | None = None,
    steps: int | Literal["auto"] = 64,
    quadrature: Quadrature = "gausslegendre",
    tolerance: float = 0.01,
    max_steps: int = 1024,
    chunk: int = 8,
) -> Tensor:
    """Average the gradient along the straight way from a baseline to the input, times the way: integrated gradients.

    model       an nn.Module in evaluation mode, or a function of tensors; it is not changed
    inputs      (N, …), any float dtype and device
    target      which score to explain: a class index, one for each item (LongTensor (N,)), or a function from the outputs of
                all N items to scores (N,)
    baseline    where the way begins: a number, or a tensor that broadcasts to the inputs; None is 0
    steps       how many points, at least 1 (trapezoid: 2); "auto" doubles them, from 16 on, until the completeness error of an
                item is at most ``tolerance``, and was at most four times that with half the points, since once may be luck;
                where it is above ``tolerance`` at the last step up to ``max_steps``, a RuntimeWarning says so
    quadrature  where the points are on [0, 1], and their weights: "gausslegendre"; "midpoint" (r - 1/2)/R; "right" r/R, as in
                the paper and on the slide; "left" (r - 1)/R; "trapezoid", R points from 0 to 1, the ends with half weight
    tolerance   of "auto", relative, above 0
    max_steps   of "auto", at least 32
    chunk       how many inputs the model sees at once; a function as target sees all N items together

    Returns relevance, shaped like ``inputs``::

        R_d = (x_d - x0_d) sum_r w_r df/dx_d(x0 + a_r (x - x0)),    sum_d R_d -> f(x) - f(x0)

    `integrate` does the same and reports how far the sum is off. A small error of the sum does not mean an accurate map.

    Raises ValueError or TypeError if an argument is not as above, if the score does not depend on the inputs, or if a NaN or an
    infinity appears.

    Sundararajan, Taly & Yan, "Axiomatic Attribution for Deep Networks", ICML 2017.
    """
    target, start = _check_integral(model, inputs, target, baseline, steps, quadrature, tolerance, max_steps, chunk)
    with unchanged(model), first_axis_kept(model, inputs):
        if steps != "auto":
            return _like(_rule(model, inputs, start, target, quadrature, steps, chunk), inputs)
        found = _adapt(model, inputs, start, target, quadrature, tolerance, max_steps, chunk)
    if bool((found.completeness_error > tolerance).any()):
        short = int((found.completeness_error > tolerance).sum())
        warnings.warn(
            f"integrated gradients of {short} of {len(inputs)} items have a completeness error of up to "
            f"{found.completeness_error.max():.2g} after {int(found.steps.max())} steps; tolerance={tolerance:g}",
            RuntimeWarning,
            stacklevel=2,
        )
    return found.relevance


def integrate(
    model: Model,
    inputs: Tensor,
    target: Target,
    *,
    baseline: Tensor | float | None = None,
    steps: int | Literal["auto"] = "auto",
    quadrature: Quadrature = "gausslegendre",
    tolerance: float = 0.01,
    max_steps: int = 1024,
    chunk: int = 8,
) -> Integral:
    """Integrated gradients with a report: arguments and errors as in `integrated_gradients`, and no warning.

    Asks the model for the scores of inputs and baselines besides. Returns an `Integral`.
    """
    target, start = _check_integral(model, inputs, target, baseline, steps, quadrature, tolerance, max_steps, chunk)
    with unchanged(model), first_axis_kept(model, inputs):
        if steps == "auto":
            return _adapt(model, inputs, start, target, quadrature, tolerance, max_steps, chunk)
        relevance = _rule(model, inputs, start, target, quadrature, steps, chunk)
        difference, scale = _difference(model, inputs, start, target, chunk)
    error = _completeness_error(relevance, difference, scale)
    taken = torch.full((len(inputs),), steps, device=inputs.device)
    return Integral(_like(relevance, inputs), difference, error, taken, taken.clone())


_BEFORE = 4  # times the tolerance: how wrong half the points may be
_FIRST = 16  # points that "auto" begins with; fewer are right by chance too often


def _adapt(
    model: Model,
    inputs: Tensor,
    start: Tensor,
    target: Target,
    quadrature: Quadrature,
    tolerance: float,
    max_steps: int,
    chunk: int,
) -> Integral:
    """Double the points of each item until its sum is right, and not by luck."""
    difference, scale = _difference(model, inputs, start, target, chunk)
    steps, evaluations = (torch.full((len(inputs),), _FIRST, device=inputs.device) for _ in range(2))
    relevance = _rule(model, inputs, start, target, quadrature, _FIRST, chunk)
    error = _completeness_error(relevance, difference, scale)
    before = torch.full_like(error, math.inf)
    fixed = quadrature == "trapezoid"  # counts both ends
    intervals = _FIRST - fixed
    nested = quadrature in ("right", "left", "trapezoid")
    while 2 * intervals + fixed <= max_steps:
        todo = (error > tolerance) | (before > _BEFORE * tolerance)
        if not bool(todo.any()):
            break
        # a function as target has to see all items
        some = todo.nonzero()[:, 0] if isinstance(target, (int, Tensor)) else torch.arange(len(inputs)).to(todo.device)
        part = inputs[some], start[some], of_items(target, some)
        if nested:  # twice the intervals are those there are and their midpoints: T_2n = (T_n + M_n) / 2
            finer = (relevance[some] + _rule(model, *part, "midpoint", intervals, chunk)) / 2
        else:
            finer = _rule(model, *part, quadrature, 2 * intervals, chunk)
        intervals *= 2
        changed = todo[some]
        relevance[some[changed]] = finer[changed]
        steps[todo] = intervals + fixed
        evaluations[some] += intervals // 2 if nested else intervals
        before[todo], error = error[todo], _completeness_error(relevance, difference, scale)
    return Integral(_like(relevance, inputs), difference, error, steps, evaluations)


def _rule(
    model: Model, inputs: Tensor, start: Tensor, target: Target, quadrature: Quadrature, steps: int, chunk: int
) -> Tensor:
    """One quadrature rule, (N, …), in at least float32."""
    x, x0 = wide(inputs.detach()), wide(start)
    places, weights = (each.to(x) for each in _points(quadrature, steps))

    def make(variant: Tensor, item: Tensor) -> Tensor:
        return torch.lerp(x0[item], x[item], _each(places[variant], x)).to(inputs.dtype)

    total = torch.zeros_like(x)
    for variant, item, found in _gradients(model, make, inputs, target, steps, chunk):
        total.index_add_(0, item, wide(found) * _each(weights[variant], found))
    return total * (x - x0)


@functools.lru_cache(maxsize=32)
def _points(quadrature: Quadrature, steps: int) -> tuple[Tensor, Tensor]:
    """Places in [0, 1] and their weights, which sum to 1."""
    r = torch.arange(1, steps + 1, dtype=torch.float64)
    if quadrature == "gausslegendre":
        places, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(steps))  # for [-1, 1]
        return (places + 1) / 2, weights / 2
    weights = torch.full_like(r, 1 / steps)
    if quadrature == "trapezoid":
        weights = torch.full_like(r, 1 / (steps - 1))
        weights[[0, -1]] /= 2
        return (r - 1) / (steps - 1), weights
    return (r - {"midpoint": 0.5, "right": 0.0, "left": 1.0}[quadrature]) / steps, weights


def _difference(model: Model, inputs: Tensor, start: Tensor, target: Target, chunk: int) -> tuple[Tensor, Tensor]:
    """f(x) - f(x0) of each item, (N,), and what an error is to be held against."""
    at_once = chunk if isinstance(target, (int, Tensor)) else len(inputs)
    ends = []
    with torch.no_grad():
        for points in (inputs.detach(), start):
            items = torch.arange(len(inputs), device=inputs.device).split(at_once)
            ends.append(wide(torch.cat([scores(model, points[i], of_items(target, i)) for i in items])))
    difference = ends[0] - ends[1]
    scale = torch.maximum(difference.abs(), 1e-3 * (ends[0].abs() + ends[1].abs()))
    return difference, scale.clamp(min=torch.finfo(scale.dtype).tiny)


def _completeness_error(relevance: Tensor, difference: Tensor, scale: Tensor) -> Tensor:
    return (relevance.flatten(1).sum(1).to(difference) - difference).abs() / scale


# ------------------------------------------------------------------------------------------------------------
# In a noisy neighbourhood
# ------------------------------------------------------------------------------------------------------------


def smoothgrad(
    model: Model,
    inputs: Tensor,
    target: Target,
    *,
    noise: float = 0.15,
    samples: int = 32,
    method: Method = gradient,
    generator: torch.Generator | None = None,
    chunk: int = 8,
) -> Tensor:
    """The mean gradient of noisy copies of the input: SmoothGrad.

    model      an nn.Module in evaluation mode, or a function of tensors; it is not changed
    inputs     (N, …), any float dtype and device
    target     which score to explain: a class index, one for each item (LongTensor (N,)), or a function from the outputs of
               all N items to scores (N,)
    noise      standard deviation of the noise, relative to max - min of each item; above 0
    samples    how many copies, at least 1
    method     what is averaged: any attribution ``method(model, inputs, target)``, such as `gradient_x_input`
    generator  where the noise comes from; None is torch's global one
    chunk      how many inputs the model sees at once; a function as target sees all N items together

    Returns the mean of ``df/dx_d(x + e)`` over the noise ``e ~ N(0, (noise (max x - min x))^2)``, shaped like ``inputs``: an
    estimate of the gradient of another function, of E f(x + e). Its variance is that of a single gradient / samples.

    Raises ValueError or TypeError if an argument is not as above, if an item is constant, if the score does not depend on the
    inputs, or if a NaN or an infinity appears.

    Smilkov et al., "SmoothGrad: Removing Noise by Adding Noise", 2017 (arXiv:1706.03825).
    """
    return _like(_noisy(model, inputs, target, noise, samples, method, generator, chunk)[0], inputs)


def vargrad(
    model: Model,
    inputs: Tensor,
    target: Target,
    *,
    noise: float = 0.15,
    samples: int = 32,
    method: Method = gradient,
    generator: torch.Generator | None = None,
    chunk: int = 8,
) -> Tensor:
    """The variance of the gradient over noisy copies of the input: VarGrad.

    Arguments and errors are those of `smoothgrad`; ``samples`` is at least 2. Returns the variance, with samples - 1, shaped
    like ``inputs`` and at least 0: where the gradient is unsteady. Divided by ``samples``, it is the squared standard error of
    `smoothgrad`.

    Adebayo et al., "Local Explanation Methods for Deep Neural Networks Lack Sensitivity to Parameter Values", ICLR workshop
    2018.
    """
    check_count("samples", samples, least=2)
    return _like(_noisy(model, inputs, target, noise, samples, method, generator, chunk, squares=True)[1], inputs)


def _noisy(
    model: Model,
    inputs: Tensor,
    target: Target,
    noise: float,
    samples: int,
    method: Method,
    generator: torch.Generator | None,
    chunk: int,
    *,
    squares: bool = False,
) -> tuple[Tensor, Tensor]:
    """Mean and, if asked for, variance of the gradients of noisy copies, (N, …) each."""
    target = _check(model, inputs, target)
    check_positive("noise", noise)
    check_count("samples", samples)
    if not callable(method):
        raise TypeError(f"method must be an attribution, method(model, inputs, target), got {type(method).__name__}")
    check_generator(generator)
    check_count("chunk", chunk)
    x = inputs.detach()
    values = x.flatten(1)
    sigma = noise * (values.amax(1) - values.amin(1))
    if bool((sigma == 0).any()):
        constant = (sigma == 0).nonzero()[:, 0].tolist()
        raise ValueError(f"inputs must not be constant, since the noise is relative to max - min; items {constant} are")
    draw = _Draws(lambda: _normal(x[0], generator))

    def make(variant: Tensor, item: Tensor) -> Tensor:
        return torch.addcmul(x[item], draw(variant), _each(sigma[item], x))

    mean = torch.zeros_like(wide(x))
    spread = torch.zeros_like(mean) if squares else mean
    count = torch.zeros(len(x), device=x.device)
    with unchanged(model), first_axis_kept(model, inputs):
        for _, item, found in _gradients(model, make, inputs, target, samples, chunk, method):
            found = wide(found)
            if not squares:
                mean.index_add_(0, item, found, alpha=1 / samples)
                continue
            for i, each in zip(item.tolist(), found, strict=True):  # Welford: no difference of large sums
                count[i] += 1
                step = each - mean[i]
                mean[i] += step / count[i]
                spread[i] += step * (each - mean[i])
    return mean, spread / (samples - 1) if squares else spread


def _normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else like.device
    return torch.randn(like.shape, generator=generator, device=device).to(like)


class _Draws:
    """Random tensors by number, drawn in their order whatever the chunks are, and forgotten when they have had their turn."""

    def __init__(self, draw: Callable[[], Tensor]) -> None:
        self.draw, self.kept, self.next = draw, dict[int, Tensor](), 0

    def __call__(self, numbers: Tensor) -> Tensor:
        wanted = numbers.tolist()  # in their order, as pairs come
        first, last = wanted[0], wanted[-1]
        for number in range(self.next, last + 1):
            self.kept[number] = self.draw()
        self.next = max(self.next, last + 1)
        self.kept = {number: drawn for number, drawn in self.kept.items() if number >= first}
        return torch.stack([self.kept[number] for number in wanted])


# ------------------------------------------------------------------------------------------------------------
# Over a set of baselines
# ------------------------------------------------------------------------------------------------------------


def expected_gradients(
    model: Model,
    inputs: Tensor,
    target: Target,
    *,
    baselines: Tensor,
    samples: int = 64,
    generator: torch.Generator | None = None,
    chunk: int = 8,
) -> Tensor:
    """Integrated gradients from a random baseline, one random point each: expected gradients.

    baselines  (M, …), the set to draw from, each shaped like an item of the inputs, such as training samples
    samples    how many pairs of a baseline and a point, at least 1, the same for all items

    All others as in `smoothgrad`. Returns relevance, shaped like ``inputs``: the mean over the samples of

        (x_d - b_d) df/dx_d(b + a (x - b)),    b uniform in the set, a uniform in [0, 1]

    In expectation it sums to f(x) less the mean score of the set; with few samples it is off by chance.

    Raises ValueError or TypeError if an argument is not as above, if the score does not depend on the inputs, or if a NaN or an
    infinity appears.

    Erion et al., "Improving Performance of Deep Learning Models with Axiomatic Attribution Priors and Expected Gradients",
    Nature Machine Intelligence 3, 2021.
    """
    target = _check(model, inputs, target)
    if not isinstance(baselines, Tensor) or not baselines.is_floating_point():
        raise TypeError(f"baselines must be a tensor of a float dtype, got {kind(baselines)}")
    if baselines.shape[1:] != inputs.shape[1:] or len(baselines) == 0:
        expected = ", ".join(map(str, ["M", *inputs.shape[1:]]))
        raise ValueError(f"baselines must have shape ({expected}), as the inputs, got {tuple(baselines.shape)}")
    check_finite("baselines", baselines)
    check_count("samples", samples)
    check_generator(generator)
    check_count("chunk", chunk)
    x, b = wide(inputs.detach()), wide(baselines.detach().to(inputs))
    device = generator.device if generator is not None else x.device
    which = torch.randint(len(b), (samples,), generator=generator, device=device).to(x.device)
    places = torch.rand(samples, generator=generator, device=device).to(x)

    def make(variant: Tensor, item: Tensor) -> Tensor:
        return torch.lerp(b[which[variant]], x[item], _each(places[variant], x)).to(inputs.dtype)

    total = torch.zeros_like(x)
    with unchanged(model), first_axis_kept(model, inputs):
        for variant, item, found in _gradients(model, make, inputs, target, samples, chunk):
            total.index_add_(0, item, wide(found) * (x[item] - b[which[variant]]), alpha=1 / samples)
    return _like(total, inputs)


# ------------------------------------------------------------------------------------------------------------
# What they share
# ------------------------------------------------------------------------------------------------------------


def _gradients(
    model: Model,
    make: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor,
    target: Target,
    variants: int,
    chunk: int,
    method: Method = gradient,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The gradient of every item in every variant, chunk by chunk: (variant (n,), item (n,), gradient (n, …)).

    method  what is asked for in the place of the gradient
    """
    items = len(inputs)
    for variant, item in pairs(items, variants, target, chunk, inputs.device):
        varied, wanted = make(variant, item), of_items(target, item)
        if method is gradient:  # has checked all that it would check again
            found = score_gradient(model, varied, wanted, items=items)[1]
        else:
            found = method(model, varied, _batchwise(wanted, items))
            if not isinstance(found, Tensor) or found.shape != varied.shape:
                raise ValueError(f"method must return relevance of shape {tuple(varied.shape)}, got {kind(found)}")
        yield variant, item, found.detach().contiguous()  # sums over items are slow where channels lie last


def _batchwise(target: Target, items: int) -> Target:
    """A function as target, that is asked once for each batch of so many items."""
    if isinstance(target, (int, Tensor)):
        return target
    return lambda outputs: ask(target, outputs, items)


def _each(values: Tensor, like: Tensor) -> Tensor:
    """(n,) as (n, 1, …), to be multiplied with (n, …)."""
    return values.view(-1, *[1] * (like.dim() - 1))


def _like(relevance: Tensor, inputs: Tensor) -> Tensor:
    """In the dtype and memory format of the inputs; an error if it is not finite there."""
    found = torch.empty_like(inputs, requires_grad=False).copy_(relevance)
    check_finite("the relevance", found)
    return found


def _check(model: Model, inputs: Tensor, target: Target) -> Target:
    check_model(model)
    check_inputs(inputs)
    return check_target(target, len(inputs))


def _check_integral(
    model: Model,
    inputs: Tensor,
    target: Target,
    baseline: Tensor | float | None,
    steps: int | str,
    quadrature: str,
    tolerance: float,
    max_steps: int,
    chunk: int,
) -> tuple[Target, Tensor]:
    """Check everything; the target and the baseline in the shape of the inputs."""
    target = _check(model, inputs, target)
    if quadrature not in Quadratures:
        raise ValueError(f"quadrature must be one of {', '.join(Quadratures)}, got {quadrature!r}")
    if isinstance(steps, str):
        if steps != "auto":
            raise ValueError(f'steps must be a number or "auto", got {steps!r}')
        check_positive("tolerance", tolerance)
        check_count("max_steps", max_steps, least=2 * _FIRST)
    else:
        check_count("steps", steps, least=2 if quadrature == "trapezoid" else 1)
    check_count("chunk", chunk)
    if baseline is None:
        baseline = 0.0
    if isinstance(baseline, bool) or not isinstance(baseline, (int, float, Tensor)):
        raise TypeError(f"baseline must be a number, a tensor or None, got {type(baseline).__name__}")
    start = torch.as_tensor(baseline, dtype=None if isinstance(baseline, Tensor) else torch.float64).detach()
    if not start.is_floating_point():
        raise TypeError(f"baseline must be of a float dtype, got {start.dtype}")
    check_finite("baseline", start)
    try:
        fits = torch.broadcast_shapes(start.shape, inputs.shape) == inputs.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"baseline must broadcast to the inputs, {tuple(inputs.shape)}, got {tuple(start.shape)}")
    return target, start.to(inputs).expand_as(inputs)
