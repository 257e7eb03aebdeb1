"""Gradient shattering: why the gradient of a deep ReLU network is noisy (lecture 08; slides: section 3, gradient shattering).

A network of ReLUs is linear in pieces, and its gradient is constant on each and jumps at their borders. How alike are the
gradients at two points of a line? `gradients_on_line` and `autocorrelation` say it. How many pieces are there? `breakpoints`
finds all of them on a line, `polygons_on_plane` on a plane, exactly; `regions_on_plane` marks them on a grid. `montufar_bound`
and `zaslavsky_bound` are what theory says of the largest number that is possible. `network` and `sawtooth` make the networks
that the lecture measures.

The pieces of *any* PyTorch model made of affine operations and of ReLU and its relatives are found, without touching it: what
the model calls is watched, whoever calls it. A model with anything else in it, a sigmoid or a layer norm, is refused by name;
and what was found is tried out: between two bends the outputs have to be affine.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, resolve_name

from .arguments import check_count, check_finite, check_generator, check_positive, kind
from .scores import Model, Target, check_model, check_outputs, check_score, check_target, gradient, scores, unchanged

__all__ = [
    "Autocorrelation",
    "Plane",
    "autocorrelation",
    "breakpoints",
    "brown_noise",
    "calibrate",
    "gradients_on_line",
    "montufar_bound",
    "network",
    "polygons_on_plane",
    "regions_on_plane",
    "sawtooth",
    "switched_units",
    "white_noise",
    "zaslavsky_bound",
]


# ------------------------------------------------------------------------------------------------------------
# Networks to measure
# ------------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """x + beta * block(x)."""

    def __init__(self, block: nn.Module, beta: float) -> None:
        super().__init__()
        self.block, self.beta = block, beta

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's output, scaled, to its input."""
        return x + self.beta * self.block(x)


def network(
    depth: int,
    width: int,
    *,
    inputs: int = 1,
    outputs: int = 1,
    skip: bool = False,
    batch_norm: bool = False,
    beta: float = 1.0,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """A random fully connected ReLU network, with or without skip connections and batch norm, in evaluation mode.

    depth       layers of ReLUs, at least 1; ``width`` ReLUs in each
    inputs      dimension of the input; the network maps (N, inputs) to (N, outputs)
    skip        each layer but the first adds its input to its output: ``x + beta * W ReLU(x)``
    batch_norm  before each ReLU; it does nothing until `calibrate` has shown it some inputs
    beta        factor of the layers that have a skip connection, above 0
    generator   where the weights come from; None is torch's global one

    Weights are drawn from N(0, 2 / fan-in) (He et al.), biases from N(0, 1 / fan-in). All networks of the same depth and
    width have the same number of ReLUs, in the same places: Linear, then ``depth - 1`` times (batch norm, ReLU, Linear) as a
    residual block or not, then (batch norm, ReLU, Linear).

    Balduzzi et al., "The Shattered Gradients Problem", ICML 2017; He et al., "Delving Deep into Rectifiers", ICCV 2015.
    """
    for name, value in {"depth": depth, "width": width, "inputs": inputs, "outputs": outputs}.items():
        check_count(name, value)
    check_positive("beta", beta)
    check_generator(generator)

    def block(outputs: int) -> nn.Sequential:
        return nn.Sequential(
            *([nn.BatchNorm1d(width)] if batch_norm else []), nn.ReLU(), _linear(width, outputs, generator)
        )

    blocks = [block(width) for _ in range(depth - 1)]
    between = [Residual(each, beta) for each in blocks] if skip else blocks
    return nn.Sequential(_linear(inputs, width, generator), *between, block(outputs)).eval()


def _linear(inputs: int, outputs: int, generator: torch.Generator | None) -> nn.Linear:
    device = torch.get_default_device() if generator is None else generator.device
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, device=device)
    nn.init.normal_(layer.weight, std=(2 / inputs) ** 0.5, generator=generator)
    nn.init.normal_(layer.bias, std=(1 / inputs) ** 0.5, generator=generator)
    return layer


def calibrate(model: nn.Module, inputs: Tensor) -> None:
    """Set the statistics of every batch norm to those of these inputs, in place: mean and variance (divided by n).

    model   a module in evaluation mode
    inputs  (N, …), what the model takes

    In evaluation mode each item is then normalised as it would be in training, in the batch ``inputs``; but the statistics
    are constants, so that the gradient of an item is its own.
    """
    _check_module(model)
    check_model(model)
    _check_point("inputs", inputs)

    def measure(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        values = args[0].detach().transpose(0, 1).flatten(1)
        module.running_mean.copy_(values.mean(1))  # type: ignore[operator]
        module.running_var.copy_(values.var(1, correction=0))  # type: ignore[operator]

    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]  # one after the other, as the inputs pass
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()


def sawtooth(folds: int, *, inputs: int = 1) -> nn.Sequential:
    """A ReLU network of 2 neurons per layer and input that folds [0, 1] onto itself, again and again, in evaluation mode.

    folds   layers of ReLUs, at least 1
    inputs  dimension of the input; each is folded by itself, and the output (N, 1) is their sum

    With the tent T(x) = 2 ReLU(x) - 4 ReLU(x - 1/2) it computes the sum of T(T(…T(x_i))): it has exactly 2^folds pieces on
    [0, 1] and 2^(folds * inputs) on the cube, from 2 * folds * inputs neurons. float64, in which it is exact.

    Montufar et al., "On the Number of Linear Regions of Deep Neural Networks", NeurIPS 2014; Telgarsky, "Benefits of Depth in
    Neural Networks", COLT 2016.
    """
    check_count("folds", folds, most=50, most_is="the digits of a float64")
    check_count("inputs", inputs)
    one = torch.eye(inputs, dtype=torch.float64)
    tent = torch.tensor([[2.0, -4.0]], dtype=torch.float64)  # of ReLU(x), ReLU(x - 1/2)
    twice = torch.ones(2, 1, dtype=torch.float64)
    layers: list[nn.Module] = []
    weight = torch.kron(one, twice)
    for _ in range(folds):
        layers += [_affine(weight, torch.tensor([0.0, -0.5], dtype=torch.float64).repeat(inputs)), nn.ReLU()]
        weight = torch.kron(one, twice @ tent)
    layers.append(_affine(tent.repeat(1, inputs), torch.zeros(1, dtype=torch.float64)))
    return nn.Sequential(*layers).eval()


def _affine(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


# ------------------------------------------------------------------------------------------------------------
# The gradient along a line
# ------------------------------------------------------------------------------------------------------------


def gradients_on_line(
    model: Model, start: Tensor, end: Tensor, target: Target, *, points: int = 256, chunk: int = 64
) -> Tensor:
    """The gradient of the score at equally spaced points from ``start`` to ``end``, both included.

    model       an nn.Module in evaluation mode, or a function of tensors
    start, end  two points, each as one item of the model's inputs, without the batch axis
    target      an int, or a function of the outputs (n, …) of n points that gives their scores (n,)
    points      how many, at least 2
    chunk       how many the model sees at once

    Returns (points, …) in the dtype and on the device of ``start``. Raises TypeError or ValueError if an argument is not as
    above, if the score does not depend on the inputs, or if a NaN or an infinity appears.
    """
    check_model(model)
    _check_segment(start, end)
    check_count("points", points, least=2)
    check_count("chunk", chunk)
    target = _check_scalar_target(target)
    line = _line(start, end)
    with unchanged(model):
        check_score(model, start[None], target)
        t = torch.linspace(0, 1, points, dtype=start.dtype, device=start.device)
        return torch.cat([gradient(model, line(part), target)[1] for part in t.split(chunk)])


@dataclass(frozen=True)
class Autocorrelation:
    """How alike a series is to itself some steps later, over several series: (lags + 1,) each, from lag 0 on."""

    mean: Tensor
    standard_errors: Tensor  # of the mean over the series; NaN for one series alone
    each: Tensor  # (series, lags + 1)


def autocorrelation(gradients: Tensor, *, lags: int) -> Autocorrelation:
    """Autocorrelation of the gradient along lines, at 0 to ``lags`` steps.

    gradients  (lines, points, …): along several lines, or of several networks; any float dtype
    lags       at least 1, below the number of points

    With g_t the gradient at point t of T, and G its mean over the line::

        R(k) = sum over t of <g_t - G, g_(t+k) - G>  /  sum over t of |g_t - G|^2

    where <,> adds up the components, and the upper sum has T - k terms. R(0) = 1. White noise has R(k) = 0 but for
    -(T - k) / (T (T - 1)), because its mean was taken from the same points; a random walk ("brown" noise) falls slowly:
    compare with `white_noise` and `brown_noise` of the same length.

    Raises TypeError or ValueError if an argument is not as above, or if the gradient is constant along a line.

    Balduzzi et al., "The Shattered Gradients Problem", ICML 2017.
    """
    if not isinstance(gradients, Tensor) or not gradients.is_floating_point():
        raise TypeError(f"gradients must be a tensor of a float dtype, got {kind(gradients)}")
    if gradients.dim() < 2 or 0 in gradients.shape or gradients.shape[1] < 2:
        raise ValueError(
            f"gradients must have shape (lines, points, …) with at least two points, got {tuple(gradients.shape)}"
        )
    check_finite("gradients", gradients)
    check_count("lags", lags, most=gradients.shape[1] - 1, most_is="one less than there are points")
    g = gradients.double().reshape(*gradients.shape[:2], -1)
    if flat := (g == g[:, :1]).flatten(1).all(1).nonzero().flatten().tolist():
        raise ValueError(
            f"gradients must change along each line; they are constant along line {', '.join(map(str, flat))}"
        )
    g = g - g.mean(1, keepdim=True)
    points = g.shape[1]
    sums = torch.stack([(g[:, : points - lag] * g[:, lag:]).sum((1, 2)) for lag in range(lags + 1)], 1)
    each = sums / sums[:, :1]
    return Autocorrelation(each.mean(0), each.std(0) / len(each) ** 0.5 if len(each) > 1 else each[0] * math.nan, each)


def white_noise(lines: int, points: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Independent normal numbers, (lines, points), float64: a gradient that knows nothing of its neighbours."""
    check_count("lines", lines)
    check_count("points", points, least=2)
    check_generator(generator)
    device = None if generator is None else generator.device
    return torch.randn(lines, points, dtype=torch.float64, generator=generator, device=device)


def brown_noise(lines: int, points: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Random walks of independent normal steps, (lines, points), float64: a gradient that changes a little at each step."""
    return white_noise(lines, points, generator=generator).cumsum(1)


# ------------------------------------------------------------------------------------------------------------
# Linear regions on a line
# ------------------------------------------------------------------------------------------------------------

_APART = 1e-12  # of the segment: nearer breakpoints count as one
_ZERO = 1e-12  # of a layer's largest value: what is nearer to a bend lies on it


def breakpoints(
    model: Model,
    start: Tensor,
    end: Tensor,
    *,
    target: Target | None = None,
    chunk: int = 64,
    most: int = 100_000,
) -> Tensor:
    """Every point between ``start`` and ``end`` where a piecewise linear model passes from one linear region to another.

    model       an nn.Module in evaluation mode (a copy of it works in float64), or a function of float64 tensors; made of
                affine operations and of what bends: relu, relu6, leaky_relu, prelu, hardtanh, hardsigmoid, clamp, abs,
                maximum, minimum, max_pool1d to 3d
    start, end  two points, each as one item of the model's inputs, without the batch axis
    target      None: where any unit of the model bends. Else the score's own breakpoints: only where its slope along the line
                changes, which a unit that is cut off by silent ones behind it does not bring about; an int, or a function of
                the outputs (n, …) of n points that gives their scores (n,)
    chunk       how many pieces the model sees at once, by their two ends
    most        stop with an error at more breakpoints than this: take a shorter segment

    Returns (m,), float64, ascending, each t in (0, 1) for the point start + t (end - start); there are m + 1 regions.
    Breakpoints nearer than 1e-12 of the segment count as one.

    Between two points where no unit bends in the layers before, the value z that reaches a unit is affine, so that it is
    zero, if its ends differ in sign, at exactly t = t_a + (t_b - t_a) z_a / (z_a - z_b). Each piece is cut where the first
    layer with such units bends, and the parts are asked again, until nothing bends inside any piece. On the longest pieces,
    200 at most, the outputs (or the score) are then held against the affine function through those at both ends.

    Raises TypeError or ValueError if an argument is not as above, the model is not piecewise linear or bends by a function
    that is not among those above, or a NaN or an infinity appears.

    Montufar et al., "On the Number of Linear Regions of Deep Neural Networks", NeurIPS 2014; Hanin and Rolnick, "Complexity of
    Linear Regions in Deep Networks", ICML 2019.
    """
    check_model(model)
    _check_segment(start, end)
    target = None if target is None else _check_scalar_target(target)
    check_count("chunk", chunk)
    check_count("most", most)
    with _exact(model) as twin:
        line = _line(start.double(), end.double())
        if target is not None:
            check_score(twin, line(torch.zeros(1, dtype=torch.float64, device=start.device)), target)
        live = _probe(twin, (start, end))
        open_ = torch.tensor([[0.0, 1.0]], dtype=torch.float64, device=start.device)
        found: list[Tensor] = []
        count = 0
        while len(open_):
            pieces, open_ = open_[-chunk:], open_[:-chunk]
            piece, t = _first_bends(twin, line, pieces, live)
            found.append(t)
            count += len(t)
            if count > most:
                raise ValueError(
                    f"most: there are more than {most} breakpoints between start and end; take a shorter segment"
                )
            open_ = torch.cat([open_, _cut(pieces, piece, t)])
        bends = _merge(torch.cat(found).sort().values)
        _check_pieces(twin, line, bends, target, chunk)
        return bends if target is None else _where_slope_changes(twin, line, start, end, bends, target, chunk)


def switched_units(model: Model, start: Tensor, end: Tensor) -> int:
    """How many bends of the units of a piecewise linear model lie between two points, by looking at these two alone.

    model, start, end  as in `breakpoints`

    A unit is counted once for each of its bends (ReLU has one at 0, ReLU6 another at 6) on whose other side it is at the
    other point. It has to cross each of them on the way, so that there are at least so many breakpoints if no two units
    bend at the very same point. It costs what one pass through the model costs; max pooling is not counted.

    Raises TypeError or ValueError if an argument is not as above.
    """
    check_model(model)
    _check_segment(start, end)
    counts: list[int] = []

    def see(bend: Tensor) -> None:
        if bend.dim() == 2:
            counts.append(len(_crossings(bend, first, first + 1)[0]))

    with _exact(model) as twin:
        first = torch.zeros(1, dtype=torch.long, device=start.device)
        _watch(twin, torch.stack([start, end]).double(), _probe(twin, (start, end)), see)
    return sum(counts)


def _first_bends(
    twin: Model, line: Callable[[Tensor], Tensor], pieces: Tensor, live: list[bool]
) -> tuple[Tensor, Tensor]:
    """Where each piece (n, 2) bends in the first layer that bends in it: its index and t, (m,) each, by t."""
    left, right = pieces.unbind(1)
    points, place = pieces.T.unique(return_inverse=True)  # neighbours share an end
    cut = torch.zeros(len(pieces), dtype=torch.bool, device=pieces.device)
    found = [(cut.nonzero()[:, 0], left[:0])]

    def see(bend: Tensor) -> None:
        piece, part = _crossings(bend, *place)
        t = left[piece] + part * (right - left)[piece]
        new = ~cut[piece] & (t - left[piece] > _APART) & (right[piece] - t > _APART)
        found.append((piece[new], t[new]))
        cut[piece[new]] = True  # for the layers behind: they are not linear in the whole piece
        if cut.all():
            raise _Enough

    _watch(twin, line(points), live, see)
    piece, t = (torch.cat(column) for column in zip(*found, strict=True))
    order = t.argsort()
    piece, t = piece[order], t[order]
    new = torch.ones_like(cut[piece])
    new[1:] = (t.diff() > _APART) | (piece.diff() != 0)
    return piece[new], t[new]


def _cut(pieces: Tensor, piece: Tensor, t: Tensor) -> Tensor:
    """The parts (m, 2) of those pieces that are cut."""
    touched = pieces[piece.unique()]
    lefts, rights = torch.cat([touched[:, 0], t]), torch.cat([touched[:, 1], t])
    return torch.stack([lefts.sort().values, rights.sort().values], 1)


def _crossings(bend: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Where a layer bends inside each of n pieces, given what reaches it at their ends: index and fraction, (m,) each.

    bend         (points, units), a bend where the sign changes; or (points, units, k), where another of k candidates is largest
    left, right  (n,), which of the points are a piece's ends
    """
    if bend.dim() == 2:
        piece, unit = (bend[left] * bend[right] < 0).nonzero(as_tuple=True)
        a, b = bend[left[piece], unit], bend[right[piece], unit]
        clear = _clear(a, bend, left[piece]) & _clear(b, bend, right[piece])
        return piece[clear], (a / (a - b))[clear]
    largest = bend.argmax(2)
    piece, unit = (largest[left] != largest[right]).nonzero(as_tuple=True)
    i, j = torch.triu_indices(bend.shape[2], bend.shape[2], 1, device=bend.device)
    at_left, at_right = bend[left[piece], unit], bend[right[piece], unit]
    which, pair = ((at_left[:, i] - at_left[:, j]) * (at_right[:, i] - at_right[:, j]) < 0).nonzero(as_tuple=True)
    piece, unit, at_left, at_right = piece[which], unit[which], at_left[which], at_right[which]
    a, b = (at.gather(1, i[pair, None])[:, 0] - at.gather(1, j[pair, None])[:, 0] for at in (at_left, at_right))
    part = a / (a - b)
    values = at_left + part[:, None] * (at_right - at_left)
    meeting = values.gather(1, i[pair, None])[:, 0]
    clear = _clear(a, bend, left[piece]) & _clear(b, bend, right[piece])
    clear &= ~_clear(values.amax(1) - meeting, bend, left[piece])  # two that meet below another do not count
    return piece[clear], part[clear]


def _clear(values: Tensor, bend: Tensor, point: Tensor) -> Tensor:
    """Which values, of some of the points, are no zeros that rounding has moved."""
    touched, back = point.unique(return_inverse=True)
    largest = torch.stack([bend[p].abs().amax() for p in touched]) if len(touched) else values[:0]
    return values.abs() > _ZERO * largest[back]


def _merge(t: Tensor) -> Tensor:
    keep = torch.ones(len(t), dtype=torch.bool, device=t.device)
    keep[1:] = t.diff() > _APART
    return t[keep]


_TRIED = 200  # pieces on which what was found is tried out
_UNEVEN = 0.382  # of the way from one point to another: in the middle, much that is not affine looks so


def _check_pieces(twin: Model, line: Callable[[Tensor], Tensor], t: Tensor, target: Target | None, chunk: int) -> None:
    """ValueError unless the outputs, or the score, are affine on the longest pieces between breakpoints, ends included."""
    ends = torch.cat([t.new_zeros(1), t, t.new_ones(1)])
    left = ends.diff().topk(min(_TRIED, len(t) + 1)).indices.sort().values
    a, b = ends[left], ends[left + 1]
    points, place = torch.cat([a, b, a + _UNEVEN * (b - a)]).unique(return_inverse=True)  # neighbours share an end
    values = torch.cat([_outputs(twin, line(part), target) for part in points.split(chunk)])
    at_a, at_b, between = values[place].chunk(3)
    bent = _differ(between, torch.lerp(at_a, at_b, _UNEVEN), values)
    if bent.any():
        first = int(bent.nonzero()[0])
        raise ValueError(_bends_elsewhere(f"between t = {a[first]:.6g} and {b[first]:.6g}"))


def _outputs(twin: Model, inputs: Tensor, target: Target | None) -> Tensor:
    """Outputs, or scores, one row for each point."""
    with torch.inference_mode(False), torch.no_grad():
        if target is not None:
            return scores(twin, inputs, target)[:, None]
        outputs = twin(inputs)
        check_outputs(outputs, len(inputs), None)
        return outputs.flatten(1) if outputs.dim() > 1 else outputs[:, None]


def _differ(found: Tensor, affine: Tensor, values: Tensor) -> Tensor:
    """In which rows the outputs differ from the affine function by more than rounding, measured by how much values differ."""
    rounding = (
        1e-8 * (values.amax() - values.amin()) + 1e-12 * values.abs().amax()
    )  # whatever constant is added to them
    return ((found - affine).abs() > rounding).flatten(1).any(1)


def _bends_elsewhere(where: str) -> str:
    return (
        f"model must be piecewise linear and bend only by {_BENDS}; but {where}, where none of these bends, its outputs (or "
        "the score that target makes of them) are not affine"
    )


def _where_slope_changes(
    twin: Model, line: Callable[[Tensor], Tensor], start: Tensor, end: Tensor, t: Tensor, target: Target, chunk: int
) -> Tensor:
    """Those breakpoints on whose two sides the slope of the score along the line differs, by more than rounding."""
    ends = torch.cat([t.new_zeros(1), t, t.new_ones(1)])
    middles = (ends[1:] + ends[:-1]) / 2
    direction = (end.double() - start.double()).flatten()
    slopes = torch.cat([gradient(twin, line(part), target)[1].flatten(1) @ direction for part in middles.split(chunk)])
    return t[slopes.diff().abs() > 1e-9 * slopes.abs().max()]


# ------------------------------------------------------------------------------------------------------------
# Linear regions on a plane
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plane:
    """The linear regions that a grid of points on a plane meets."""

    regions: Tensor  # LongTensor (resolution, resolution): the region of each point, from 0; row 0 is at b = -1
    count: int  # how many the grid meets; there may be more


def regions_on_plane(
    model: Model, origin: Tensor, u: Tensor, v: Tensor, *, resolution: int = 200, chunk: int = 1024
) -> Plane:
    """The linear regions of a piecewise linear model on a plane, told apart by their activation patterns on a grid.

    model       as in `breakpoints`
    origin      the plane's middle, as one item of the model's inputs, without the batch axis
    u, v        two directions of the same shape: the points are origin + a u + b v, with a and b from -1 to 1
    resolution  grid points along each direction, at least 2
    chunk       how many the model sees at once

    Points with the same units switched on lie in the same region, which is convex. The grid misses regions that lie between
    its points, so that their number is a lower bound; `polygons_on_plane` is exact.

    Raises TypeError or ValueError if an argument is not as above, or as in `breakpoints`.
    """
    check_model(model)
    _check_plane(origin, u, v)
    check_count("resolution", resolution, least=2)
    check_count("chunk", chunk)
    generator = torch.Generator().manual_seed(0)
    names: list[Tensor] = []
    heights: list[Tensor] = []

    with _exact(model) as twin:
        live = _probe(twin, *_diagonals(origin, u, v))
        plane = _plane(origin, u, v)
        side = torch.linspace(-1, 1, resolution, dtype=torch.float64, device=origin.device)
        b, a = torch.meshgrid(side, side, indexing="ij")
        for part in torch.stack([a.flatten(), b.flatten()], 1).split(chunk):
            name = torch.zeros(len(part), dtype=torch.long, device=origin.device)  # of the pattern: a sum modulo 2^64
            generator.manual_seed(0)

            def see(bend: Tensor, name: Tensor = name) -> None:
                pattern = bend > 0 if bend.dim() == 2 else bend.argmax(2)
                letters = torch.randint(-(2**63), 2**63 - 1, pattern.shape[1:], generator=generator).to(pattern.device)
                name += (pattern * letters).sum(1)

            outputs = _watch(twin, plane(part), live, see)
            names.append(name)
            heights.append(_mixed(outputs, part))
    found, regions = torch.cat(names).unique(return_inverse=True)
    regions = regions.view(resolution, resolution)
    _check_grid(regions, torch.cat(heights).view(resolution, resolution))
    return Plane(regions, len(found))


def polygons_on_plane(
    model: Model,
    origin: Tensor,
    u: Tensor,
    v: Tensor,
    *,
    chunk: int = 64,
    most: int = 20_000,
) -> list[Tensor]:
    """The linear regions of a piecewise linear model on a square of a plane, exactly, as convex polygons.

    model         as in `breakpoints`, without max pooling
    origin, u, v  as in `regions_on_plane`
    chunk         how many polygons the model sees at once, by their corners
    most          stop with an error at more polygons than this: take a smaller square

    Returns a list of float64 tensors (corners, 2) of coordinates (a, b), which tile the square from -1 to 1. The square is
    cut along the lines where the first layer's units bend, each part along the lines of the second layer's, and so on: inside
    a part, all that reaches the next layer is affine. Polygons of less than 1e-13 of the square are left out.

    Raises TypeError or ValueError if an argument is not as above, or as in `breakpoints`.
    """
    check_model(model)
    _check_plane(origin, u, v)
    check_count("chunk", chunk)
    check_count("most", most)
    square = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    open_: list[NDArray[np.float64]] = [square]
    done: list[NDArray[np.float64]] = []
    with _exact(model) as twin:
        live = _probe(twin, *_diagonals(origin, u, v))
        plane = _plane(origin, u, v)
        while open_:
            polygons, open_ = open_[-chunk:], open_[:-chunk]
            for polygon, lines in zip(polygons, _first_lines(twin, plane, polygons, live), strict=True):
                parts = _divide(polygon, lines) if lines is not None else [polygon]
                (open_ if len(parts) > 1 else done).extend(parts)
            if len(open_) + len(done) > most:
                raise ValueError(f"most: there are more than {most} regions on this square; take a smaller one")
        _check_polygons(twin, plane, done, chunk)
    return [torch.from_numpy(polygon) for polygon in done]


def _mixed(outputs: Tensor | None, at: Tensor) -> Tensor:
    """All outputs of each point in one number, (n,), with weights that are no round numbers."""
    check_outputs(outputs, len(at), None)  # type: ignore[arg-type]
    flat = outputs.reshape(len(at), -1)  # type: ignore[union-attr]
    weights = 1 + torch.rand(flat.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return flat.double() @ weights.to(flat.device)


def _check_grid(regions: Tensor, heights: Tensor) -> None:
    """ValueError unless the outputs at three neighbours of one region lie on a line: along rows, columns and diagonals."""
    n = len(regions)
    for down, right in ((0, 1), (1, 0), (1, 1)):
        (a, b, c), (one, two, three) = (
            [grid[i * down : n - (2 - i) * down, i * right : n - (2 - i) * right] for i in range(3)]
            for grid in (regions, heights)
        )
        bent = _differ(two.reshape(-1, 1), (one + three).reshape(-1, 1) / 2, heights)
        if (bent & ((a == b) & (b == c)).flatten()).any():
            raise ValueError(_bends_elsewhere("inside a region of the plane"))


def _check_polygons(
    twin: Model, plane: Callable[[Tensor], Tensor], polygons: list[NDArray[np.float64]], chunk: int
) -> None:
    """ValueError unless the outputs are affine on the largest polygons, corners included."""
    largest = sorted(polygons, key=_area, reverse=True)[:_TRIED]
    for part in (largest[first : first + chunk] for first in range(0, len(largest), chunk)):
        weights = [(1 - _UNEVEN) ** np.arange(len(polygon)) for polygon in part]
        weights = [weight / weight.sum() for weight in weights]
        inside = [weight @ polygon for weight, polygon in zip(weights, part, strict=True)]
        values = _outputs(twin, plane(torch.from_numpy(np.concatenate([*part, inside]))), None)
        *corners, found = values.split([*map(len, part), len(part)])
        affine = [torch.from_numpy(w).to(at.device) @ at.double() for w, at in zip(weights, corners, strict=True)]
        if _differ(found, torch.stack(affine), values).any():
            raise ValueError(_bends_elsewhere("inside a polygon"))


def _first_lines(
    twin: Model, plane: Callable[[Tensor], Tensor], polygons: list[NDArray[np.float64]], live: list[bool]
) -> list[NDArray[np.float64] | None]:
    """What reaches those units that bend inside each polygon, in the first layer that has any: (corners, units)."""
    lines: list[NDArray[np.float64] | None] = [None] * len(polygons)
    corners = torch.from_numpy(np.concatenate(polygons))
    inputs = plane(corners)
    sizes = [len(polygon) for polygon in polygons]
    owner = torch.arange(len(polygons)).repeat_interleave(torch.tensor(sizes))

    def see(bend: Tensor) -> None:
        if bend.dim() == 3:
            raise ValueError("model: polygons_on_plane does not know max pooling; regions_on_plane does")
        bend = bend.cpu()
        bend = torch.where(bend.abs() > _ZERO * bend.abs().amax(1, keepdim=True), bend, 0)
        above, below = (
            torch.zeros(len(polygons), bend.shape[1]).index_add_(0, owner, sign.float()) > 0
            for sign in (bend > 0, bend < 0)
        )
        for number, values in enumerate(bend.split(sizes)):
            units = (above[number] & below[number]).nonzero()[:, 0]
            if lines[number] is None and len(units):
                cut = values[:, units].numpy()
                if len(_divide(polygons[number], cut)) > 1:  # where only a sliver would be cut off, look further on
                    lines[number] = cut

    _watch(twin, inputs, live, see)
    return lines


def _divide(polygon: NDArray[np.float64], lines: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Cut a convex polygon (corners, 2) along the zeros of affine functions, given at its corners: (corners, functions)."""
    parts = [np.concatenate([polygon, lines], 1)]
    for column in range(2, 2 + lines.shape[1]):
        parts = [half for part in parts for half in _halves(part, column)]
    return [part[:, :2] for part in parts]


def _halves(part: NDArray[np.float64], column: int) -> list[NDArray[np.float64]]:
    if not (part[:, column].max() > 0 > part[:, column].min()):
        return [part]
    halves: list[list[NDArray[np.float64]]] = [[], []]
    for here, after in zip(part, np.roll(part, -1, axis=0), strict=True):
        for half, sign in zip(halves, (1, -1), strict=True):
            if sign * here[column] >= 0:
                half.append(here)
        if here[column] * after[column] < 0:
            border = here + (after - here) * (here[column] / (here[column] - after[column]))
            border[column] = 0
            for half in halves:
                half.append(border)
    kept = [np.stack(half) for half in halves if len(half) > 2]
    kept = [half for half in kept if _area(half) > 4e-13]
    return kept if len(kept) > 1 else [part]  # a sliver is not cut off


def _area(polygon: NDArray[np.float64]) -> float:
    x, y = polygon[:, 0], polygon[:, 1]
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


# ------------------------------------------------------------------------------------------------------------
# What theory says
# ------------------------------------------------------------------------------------------------------------


def montufar_bound(inputs: int, widths: Sequence[int]) -> int:
    """A number of linear regions that *some* ReLU network of this shape has: a lower bound on the largest possible number.

    inputs  dimension n_0 of the input
    widths  ReLUs n_1, …, n_L of each layer, none below n_0

    ``(product over l < L of floor(n_l / n_0)^n_0) * sum over j = 0 … n_0 of binomial(n_L, j)``, as an exact int.

    Montufar et al., "On the Number of Linear Regions of Deep Neural Networks", NeurIPS 2014, corollary 6.
    """
    _check_widths(inputs, widths)
    if min(widths) < inputs:
        raise ValueError(f"widths must be at least inputs={inputs} each, got {list(widths)}")
    folds = math.prod((width // inputs) ** inputs for width in widths[:-1])
    return folds * zaslavsky_bound(inputs, widths[-1:])


def zaslavsky_bound(inputs: int, widths: Sequence[int]) -> int:
    """A number of linear regions that *no* ReLU network of this shape exceeds.

    inputs  dimension n_0 of the input
    widths  ReLUs n_1, …, n_L of each layer

    One layer cuts space along n hyperplanes, into at most ``sum over j = 0 … n_0 of binomial(n, j)`` parts (Zaslavsky), and
    reaches it. Each further layer cuts each part, of dimension d_l = min(n_0, …, n_(l-1)) at most:
    ``product over l of sum over j = 0 … d_l of binomial(n_l, j)``, as an exact int.

    Zaslavsky, "Facing up to Arrangements", Memoirs of the AMS 154, 1975; Raghu et al., "On the Expressive Power of Deep Neural
    Networks", ICML 2017.
    """
    _check_widths(inputs, widths)
    dimension, regions = inputs, 1
    for width in widths:
        regions *= sum(math.comb(width, j) for j in range(dimension + 1))
        dimension = min(dimension, width)
    return regions


# ------------------------------------------------------------------------------------------------------------
# Watching a model bend
# ------------------------------------------------------------------------------------------------------------

# Under a TorchFunctionMode a call is seen as the function that the model wrote: x.relu(), torch.relu and F.relu are three
_KNOTS: dict[Any, Callable[..., tuple[Any, ...]]] = {}  # function -> where it bends, out of its arguments
_LARGER: set[Any] = set()  # functions of two tensors, which bend where these are equal
_POOLS: dict[Any, int] = {}  # max poolings -> their dimensions


def _functions(names: str) -> Iterator[Any]:
    for name in names.split():
        for home in (torch, Tensor, F):
            for function in (getattr(home, name, None), getattr(home, name + "_", None)):
                if function is not None:
                    yield function


def _bends_at(names: str, knots: Callable[..., tuple[Any, ...]]) -> None:
    _KNOTS.update(dict.fromkeys(_functions(names), knots))


_bends_at("relu", lambda input, inplace=False: (0,))
_bends_at("relu6", lambda input, inplace=False: (0, 6))
_bends_at("leaky_relu", lambda input, negative_slope=0.01, inplace=False: (0,))
_bends_at("prelu", lambda input, weight: (0,))
_bends_at("abs", lambda input: (0,))
_bends_at("hardtanh", lambda input, min_val=-1.0, max_val=1.0, inplace=False: (min_val, max_val))
_bends_at("hardsigmoid", lambda input, inplace=False: (-3, 3))
_bends_at("clamp clip", lambda input, min=None, max=None: tuple(k for k in (min, max) if k is not None))
_bends_at("clamp_min", lambda input, min: (min,))
_bends_at("clamp_max", lambda input, max: (max,))
_LARGER.update(_functions("maximum minimum"))
for _dimensions in (1, 2, 3):
    _POOLS.update(dict.fromkeys(_functions(f"max_pool{_dimensions}d"), _dimensions))


@dataclass(frozen=True)
class _Bend:
    """What decides how a function bends: the signs of some values (…); or, ``largest``, which of k candidates is, (…, k)."""

    values: tuple[Tensor, ...]
    largest: bool = False

    def rows(self, rows: int) -> list[Tensor]:
        """(rows, units) each, or (rows, units, k) of candidates."""
        if any(each.dim() == 0 or each.shape[0] % rows for each in self.values):
            shapes = [tuple(each.shape) for each in self.values]
            raise ValueError(
                f"model must keep its {rows} items apart along the first axis; what bends has shape {shapes}"
            )
        return [
            each.reshape(rows, -1, each.shape[-1]) if self.largest else each.reshape(rows, -1) for each in self.values
        ]


def _bend(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Bend | None:
    if function in _KNOTS:
        z = args[0] if args else kwargs["input"]
        return _Bend(tuple(z - knot for knot in _KNOTS[function](*args, **kwargs)))
    if function in _LARGER:
        one, other = (*args, *kwargs.values())[:2]
        return _Bend((one - other,))
    if function in _POOLS:
        return _Bend((_windows(function(*args, **kwargs), _POOLS[function], *args, **kwargs),), largest=True)
    return None


def _windows(
    pooled: Tensor,
    dimensions: int,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """The k values among which a max pooling chooses, but for a constant in each row: (…, k), where ``pooled`` has (…)."""
    x = 1 + input - input.flatten(1).amin(1).view(-1, *[1] * (input.dim() - 1))  # so that the padding's zeros never win
    kernel, step, pad, spread = (
        (value,) * dimensions if isinstance(value, int) else tuple(value)
        for value in (kernel_size, stride or kernel_size, padding, dilation)
    )
    first = x.dim() - dimensions
    for d in range(dimensions):
        span = spread[d] * (kernel[d] - 1) + 1
        needed = (pooled.shape[first + d] - 1) * step[d] + span
        behind = needed - pad[d] - x.shape[first + d]  # below 0: the last values are in no window
        sides = (0, 0) * (dimensions - 1 - d) + (pad[d], max(behind, 0))
        x = F.pad(x, sides).narrow(first + d, 0, needed)
    for d in range(dimensions):
        x = x.unfold(first + d, spread[d] * (kernel[d] - 1) + 1, step[d])[..., :: spread[d]]
    return x.flatten(-dimensions)


class _Watch(TorchFunctionMode):
    """Shows what decides each bend to a function, in the order in which the model bends."""

    def __init__(self, see: Callable[[_Bend], None]) -> None:
        super().__init__()
        self.see = see

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        bend = _bend(func, args, kwargs or {})
        if bend is not None:
            self.see(bend)
        return func(*args, **(kwargs or {}))


def _watch(twin: Model, inputs: Tensor, live: list[bool], see: Callable[[Tensor], None]) -> Tensor | None:
    """Run a model and show ``see`` what decides each of its bends, (rows, units) or (rows, units, k), in their order.

    live  for each bend whether it depends on the inputs; a bent constant is none of our business

    Returns the outputs, or None if ``see`` had enough.
    """
    turn = iter(live)

    def show(bend: _Bend) -> None:
        if next(turn):
            for each in bend.rows(len(inputs)):
                see(each)

    with torch.inference_mode(False), torch.no_grad(), _Watch(show), suppress(_Enough):
        outputs = twin(inputs)
        check_finite("the model's outputs", outputs)
        return outputs
    return None


class _Enough(Exception):
    """Nothing behind this layer has to be seen."""


class _Record(TorchFunctionMode):
    """Keeps what every function gives; with ``ends``, records at two points, refuses what is not affine between them.

    What is known to bend is told to give the (weighted) mean of what it gave at the two points. So every other function sees
    the mean of what it saw, and gives the mean of what it gave exactly if it is affine.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ends: tuple[_Record, _Record] | None = None
        self.outputs: list[Tensor] = []
        self.live: list[bool] = []  # for each call that bends, whether it depends on the inputs
        self.bends: list[Tensor] = []  # of those that do

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        bend = _bend(func, args, kwargs or {})
        live = bend is not None and bend.values[0].requires_grad
        output = func(*args, **(kwargs or {}))
        if bend is not None:
            self.live.append(live)
            self.bends += [each.detach() for each in bend.rows(1)] if live else []
        for part in output if isinstance(output, (tuple, list)) else [output]:
            if isinstance(part, Tensor) and part.is_floating_point():
                if self.ends is not None:
                    self._compare(func, part, *self.ends, bends=live)
                self.outputs.append(part.detach().clone())
        return output

    def _compare(self, function: Any, output: Tensor, one: _Record, other: _Record, *, bends: bool) -> None:
        name = (resolve_name(function) or getattr(function, "__name__", str(function))).split(".")[-1]
        turn = len(self.outputs)
        if turn >= min(len(one.outputs), len(other.outputs)) or output.shape != one.outputs[turn].shape:
            raise ValueError(f"model must do the same with every input, but calls {name} for some only")
        a, b = one.outputs[turn], other.outputs[turn]
        if bends:
            with torch.no_grad():
                output.copy_(torch.lerp(a, b, _UNEVEN))
        elif not (output - torch.lerp(a, b, _UNEVEN)).abs().le(1e-8 * torch.maximum(a.abs(), b.abs()).amax()).all():
            raise ValueError(
                f"model must be piecewise linear, made of affine functions and of {_BENDS}; but {name} is neither"
            )


_BENDS = "relu, relu6, leaky_relu, prelu, hardtanh, hardsigmoid, clamp, abs, maximum, minimum and max pooling"


def _probe(twin: Model, *pairs: tuple[Tensor, Tensor]) -> list[bool]:
    """ValueError unless the model is piecewise linear and keeps its items apart; for each bend whether it sees the inputs.

    pairs  of points between which it is asked, as it is between two that are farther apart, at random around the first pair
    """
    generator = torch.Generator().manual_seed(0)
    start, end = (point.double() for point in pairs[0])
    spread = 1 + torch.maximum(start.abs(), end.abs()).max()  # far apart: from nearby, a smooth function looks affine
    one, other = (
        (start + end) / 2 + spread * torch.randn(start.shape, generator=generator, dtype=start.dtype).to(start.device)
        for _ in range(2)
    )
    for pair in pairs:
        _records(twin, *pair)
    at_one, at_other = _records(twin, one, other)
    turn = iter([torch.cat(pair) for pair in zip(at_one.bends, at_other.bends, strict=True)])

    def compare(bend: Tensor) -> None:
        alone = next(turn)
        if bend.shape != alone.shape or not (bend - alone).abs().le(1e-8 * alone.abs().amax()).all():
            raise ValueError(
                "model must give each item what it gives it alone, one after the other along the first axis"
            )

    _watch(twin, torch.stack([one, other]), at_one.live, compare)
    return at_one.live


def _records(twin: Model, one: Tensor, other: Tensor) -> tuple[_Record, _Record]:
    """What the model does at two points; ValueError if one of its functions is neither affine between them nor watched."""
    one, other = one.double()[None], other.double()[None]
    at_one, at_other, between = _Record(), _Record(), _Record()
    between.ends = at_one, at_other
    for record, point in ((at_one, one), (at_other, other), (between, torch.lerp(one, other, _UNEVEN))):
        with torch.enable_grad(), unchanged(twin):  # the same state each time, if it counts its calls
            x = point.clone().requires_grad_() * 1  # a model may work in place on it
            with record:
                outputs = twin(x)
        if not isinstance(outputs, Tensor):
            raise TypeError(
                f"model must return a tensor, got {type(outputs).__name__}; wrap it in a function that picks one"
            )
    return at_one, at_other


@contextmanager
def _exact(model: Model) -> Iterator[Model]:
    """A copy of the model in float64, whose parameters need no gradient; a function is taken as it is."""
    with torch.inference_mode(False):
        twin = copy.deepcopy(model).double().requires_grad_(False) if isinstance(model, nn.Module) else model
        yield twin


# ------------------------------------------------------------------------------------------------------------
# Points, lines, checks
# ------------------------------------------------------------------------------------------------------------


def _line(start: Tensor, end: Tensor) -> Callable[[Tensor], Tensor]:
    """Points (n, …) of a line, for t (n,)."""
    return lambda t: start + t.view(-1, *[1] * start.dim()) * (end - start)


def _plane(origin: Tensor, u: Tensor, v: Tensor) -> Callable[[Tensor], Tensor]:
    """Points (n, …) of a plane, for coordinates (n, 2)."""
    origin, u, v = origin.double(), u.double(), v.double()

    def points(at: Tensor) -> Tensor:
        a, b = at.to(origin.device).T.reshape(2, -1, *[1] * origin.dim())
        return origin + a * u + b * v

    return points


def _diagonals(origin: Tensor, u: Tensor, v: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The opposite corners of the square."""
    a, b, c, d = _plane(origin, u, v)(torch.tensor([[-1.0, -1.0], [1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]]).double())
    return (a, b), (c, d)


def _check_module(model: Model) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")


def _check_point(name: str, point: Tensor, like: Tensor | None = None) -> None:
    if not isinstance(point, Tensor) or not point.is_floating_point():
        raise TypeError(f"{name} must be a tensor of a float dtype, got {kind(point)}")
    if point.dim() == 0 or 0 in point.shape:
        raise ValueError(f"{name} must have at least one axis and not be empty, got {tuple(point.shape)}")
    if like is not None and (point.shape, point.dtype, point.device) != (like.shape, like.dtype, like.device):
        raise ValueError(
            f"{name} must be like the first point, {kind(like)} on {like.device}, got {kind(point)} on {point.device}"
        )
    check_finite(name, point)


def _check_segment(start: Tensor, end: Tensor) -> None:
    _check_point("start", start)
    _check_point("end", end, start)
    if torch.equal(start, end):
        raise ValueError("end must be another point than start")


def _check_plane(origin: Tensor, u: Tensor, v: Tensor) -> None:
    _check_point("origin", origin)
    _check_point("u", u, origin)
    _check_point("v", v, origin)
    directions = torch.stack([u.flatten(), v.flatten()]).double()
    if torch.linalg.matrix_rank(directions) < 2:
        raise ValueError("v must point in another direction than u, and neither may be zero")


def _check_scalar_target(target: Target) -> Target:
    target = check_target(target, 1)
    if isinstance(target, Tensor):
        return int(target)
    return target


def _check_widths(inputs: int, widths: Sequence[int]) -> None:
    check_count("inputs", inputs)
    if isinstance(widths, (str, int)) or not len(widths):
        raise TypeError(f"widths must be a sequence of the numbers of ReLUs in each layer, got {widths!r}")
    for width in widths:
        check_count("each of widths", width)
