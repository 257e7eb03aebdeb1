"""Measures of how good an explanation is, for any explainer (lecture 12, claim L11).

An explainer is a plain function ``explainer(model, inputs, target) -> relevance``, shaped like the inputs, images of shape
(N, C, H, W). Four questions, and none of them decides alone:

- Does the score fall when what is relevant goes?  `pixel_flipping`, `deletion`, `insertion`; with them `random_bounds`
  and `oracle_bound`, between which a curve says something
- Does the explanation depend on what the model learnt?  `randomisation_check`
- Is the relevance where the object is?  `localisation`, `rank_accuracy`, `pointing_game`
- Does it stay the same where the input hardly changes, and how grainy is it?  `sensitivity`, `noisiness`

A measure that does not exist for an item (a share of nothing, the rank correlation of a constant map) is NaN for that item. All
else that is not finite, in inputs, outputs or relevance, is an error. The model is never changed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .arguments import check_count, check_finite, check_generator, check_positive, kind
from .removal import Removal, baseline, blur, prepare
from .scores import Target, check_inputs, check_model, check_score, check_target, vary, wide

__all__ = [
    "Curve",
    "Explainer",
    "RandomCurves",
    "Randomisation",
    "Sensitivity",
    "deletion",
    "insertion",
    "localisation",
    "noisiness",
    "oracle_bound",
    "pixel_flipping",
    "pointing_game",
    "random_bounds",
    "randomisation_check",
    "rank_accuracy",
    "sensitivity",
]

Explainer = Callable[[nn.Module, Tensor, Target], Tensor]
Order = Literal["descending", "ascending", "random"]


# ------------------------------------------------------------------------------------------------------------
# Does the score fall when what is relevant goes?
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """How the score of each item changes while its patches go (in `insertion`: come).

    fractions  share of the patches that are gone, from 0 to 1, (steps + 1,)
    scores     the model's score at each of them, (N, steps + 1)
    """

    fractions: Tensor
    scores: Tensor

    @property
    def area(self) -> Tensor:
        """Area under each item's curve by the trapezoid rule, (N,); in units of the score, for fractions end at 1."""
        return torch.trapezoid(self.scores, self.fractions, dim=-1)


@dataclass(frozen=True)
class RandomCurves:
    """The curves of several random orders.

    fractions  share of the patches that are gone, from 0 to 1, (steps + 1,)
    curves     the score in each order, (orders, N, steps + 1)
    """

    fractions: Tensor
    curves: Tensor

    @property
    def scores(self) -> Tensor:
        """Mean over the orders, (N, steps + 1)."""
        return self.curves.mean(0)

    @property
    def standard_errors(self) -> Tensor:
        """Standard error of `scores`, (N, steps + 1): standard deviation over the orders / sqrt(orders)."""
        return self.curves.std(0) / math.sqrt(len(self.curves))

    @property
    def area(self) -> Tensor:
        """Area under the mean curve, (N,)."""
        return torch.trapezoid(self.scores, self.fractions, dim=-1)

    @property
    def area_standard_errors(self) -> Tensor:
        """Standard error of `area`, (N,)."""
        areas = torch.trapezoid(self.curves, self.fractions, dim=-1)
        return areas.std(0) / math.sqrt(len(areas))


def pixel_flipping(
    model: nn.Module,
    inputs: Tensor,
    target: Target,
    relevance: Tensor | None,
    *,
    removal: Removal,
    steps: int = 20,
    order: Order = "descending",
    patch: int = 1,
    generator: torch.Generator | None = None,
    chunk: int = 32,
) -> Curve:
    """Take the patches away in the order of their relevance, and follow the score.

    model      an nn.Module in evaluation mode, or a function of tensors; it is not changed
    inputs     (N, C, H, W), any float dtype and device
    target     which score to follow: a class index, one for each item (LongTensor (N,)), or a function from the outputs of
               all N items to scores (N,), such as ``lambda y: y.softmax(1)[:, 3]``
    relevance  shaped like the inputs; None only where the order is random
    removal    what takes the place of removed pixels, one of ``xaicourse.removal``
    steps      how many times patches are taken away, about as many each time; 1 to the number of patches
    order      "descending": most relevant first, a low curve is good; "ascending": least relevant first (the same order
               backwards), a high curve is good; "random": each item in an order of its own
    patch      side of the square patches in pixels, counted from the upper left; those at the lower and right border are
               smaller if the size is no multiple. A patch's relevance is the sum over its pixels and channels; of two with
               the same relevance, the one that comes first row by row counts as more relevant
    generator  for the random order; None is torch's global one
    chunk      how many images the model sees at once

    Returns a `Curve` on the device of the inputs; its first score is that of the whole image, its last that of none.

    Raises ValueError or TypeError if an argument is not as above, or if a NaN or an infinity appears.

    Bach et al. 2015, PLoS ONE 10(7); Samek et al. 2017, IEEE TNNLS 28(11). The score depends on ``removal`` too: use several.
    """
    target = _check_images(model, inputs, target)
    _check_removing(inputs, removal, patch, chunk)
    patches = math.prod(_grid(inputs, patch))
    check_count("steps", steps, most=patches, most_is="the number of patches")
    if order not in ("descending", "ascending", "random"):
        raise ValueError(f'order must be "descending", "ascending" or "random", got {order!r}')
    check_generator(generator)
    if order == "random":
        sequence = _shuffled(len(inputs), patches, generator).to(inputs.device)
    else:
        _check_relevance("relevance", relevance, inputs)
        assert relevance is not None
        sequence = _patch_sums(relevance, patch).argsort(dim=1, descending=True, stable=True)
        sequence = sequence.flip(1) if order == "ascending" else sequence
    return _follow(model, inputs, target, sequence, removal, steps, patch, chunk)


def deletion(
    model: nn.Module,
    inputs: Tensor,
    target: Target,
    relevance: Tensor,
    *,
    removal: Removal | None = None,
    steps: int = 20,
    patch: int = 1,
    chunk: int = 32,
) -> Curve:
    """Delete the most relevant patches first: `pixel_flipping` in descending order; a small area is good.

    removal  None is ``removal.baseline(0)``, as in the paper; all others as in `pixel_flipping`

    Petsiuk et al., "RISE", BMVC 2018, where the score is a probability: ``target=lambda y: y.softmax(1)[:, 3]``.
    """
    removal = baseline(0.0) if removal is None else removal
    return pixel_flipping(model, inputs, target, relevance, removal=removal, steps=steps, patch=patch, chunk=chunk)


def insertion(
    model: nn.Module,
    inputs: Tensor,
    target: Target,
    relevance: Tensor,
    *,
    removal: Removal | None = None,
    steps: int = 20,
    patch: int = 1,
    chunk: int = 32,
) -> Curve:
    """Start from nothing and insert the most relevant patches first; a large area is good.

    This is `pixel_flipping` in ascending order, read backwards: ``fractions`` are shares of the patches that are there again.

    removal  None is ``removal.blur(5)``, as in the paper; all others as in `pixel_flipping`

    Petsiuk et al., "RISE", BMVC 2018, where the score is a probability: ``target=lambda y: y.softmax(1)[:, 3]``.
    """
    removal = blur(5.0) if removal is None else removal
    curve = pixel_flipping(
        model, inputs, target, relevance, removal=removal, steps=steps, order="ascending", patch=patch, chunk=chunk
    )
    return Curve(1 - curve.fractions.flip(0), curve.scores.flip(1))


def random_bounds(
    model: nn.Module,
    inputs: Tensor,
    target: Target,
    *,
    removal: Removal,
    orders: int = 10,
    steps: int = 20,
    patch: int = 1,
    generator: torch.Generator | None = None,
    chunk: int = 32,
) -> RandomCurves:
    """Take the patches away in random orders: what a curve has to beat, with its standard error.

    orders  how many random orders, at least 2; all others as in `pixel_flipping`

    A descending curve that is no lower than this, or an ascending one that is no higher, says that the relevance does not know
    the patches that matter.
    """
    check_count("orders", orders, least=2)
    curves = [
        pixel_flipping(
            model, inputs, target, None,
            removal=removal, steps=steps, order="random", patch=patch, generator=generator, chunk=chunk,
        )
        for _ in range(orders)
    ]  # fmt: skip
    return RandomCurves(curves[0].fractions, torch.stack([curve.scores for curve in curves]))


def oracle_bound(
    model: nn.Module,
    inputs: Tensor,
    target: Target,
    *,
    removal: Removal,
    patch: int,
    steps: int | None = None,
    order: Order = "descending",
    chunk: int = 32,
) -> Curve:
    """Ask the model itself which patch to take next: always the one that lowers the score the most (or keeps it highest).

    steps  at how many points to report the curve, None for all P patches; each patch is taken by itself in any case
    order  "descending" lowers the score the most at each step, "ascending" keeps it as high as it can; all others as in
           `pixel_flipping`

    Tries every patch that is left, so that the model sees P (P + 1) / 2 images for each item: choose a large ``patch``.

    Where the effects of patches add up (a linear model, a removal that looks at no neighbours), no order has a lower
    (higher) curve at any point. Elsewhere the first step is the best there is, but a greedy order need not stay the best.
    """
    target = _check_images(model, inputs, target)
    _check_removing(inputs, removal, patch, chunk)
    patches = math.prod(_grid(inputs, patch))
    steps = patches if steps is None else steps
    check_count("steps", steps, most=patches, most_is="the number of patches")
    if order not in ("descending", "ascending"):
        raise ValueError(f'order must be "descending" or "ascending", got {order!r}')

    gone = torch.zeros(len(inputs), patches, dtype=torch.bool, device=inputs.device)
    scores = [_scores(model, inputs, target, partial(_one_more, gone, None, inputs, patch), 1, removal, chunk)[:, 0]]
    for _ in range(patches):
        left = (~gone).nonzero()[:, 1].view(len(inputs), -1)  # the patches still there, as many for each item
        removed = partial(_one_more, gone, left, inputs, patch)
        tried = _scores(model, inputs, target, removed, left.shape[1], removal, chunk)
        best = (tried.argmin(1) if order == "descending" else tried.argmax(1))[:, None]
        scores.append(tried.gather(1, best)[:, 0])
        gone = gone.scatter(1, left.gather(1, best), True)
    counts = _counts(patches, steps, inputs.device)
    return Curve(counts.to(scores[0]) / patches, torch.stack(scores, 1)[:, counts])


def _follow(
    model: nn.Module,
    inputs: Tensor,
    target: Target,
    sequence: Tensor,
    removal: Removal,
    steps: int,
    patch: int,
    chunk: int,
) -> Curve:
    """The curve while the patches go in the order of ``sequence`` (N, patches)."""
    rank = torch.empty_like(sequence)  # when each patch goes
    rank.scatter_(1, sequence, torch.arange(sequence.shape[1], device=sequence.device).expand_as(sequence))
    counts = _counts(sequence.shape[1], steps, inputs.device)
    removed = partial(_first_ones, rank, counts, inputs, patch)
    scores = _scores(model, inputs, target, removed, len(counts), removal, chunk)
    return Curve(counts.to(scores) / sequence.shape[1], scores)


def _counts(patches: int, steps: int, device: torch.device) -> Tensor:
    """How many patches are gone after each step, (steps + 1,)."""
    return torch.tensor([round(step * patches / steps) for step in range(steps + 1)], device=device)


def _first_ones(rank: Tensor, counts: Tensor, inputs: Tensor, patch: int, variant: Tensor, item: Tensor) -> Tensor:
    """The pixels gone at step ``variant`` of each ``item``."""
    return _pixels(rank[item] < counts[variant][:, None], inputs, patch)


def _one_more(gone: Tensor, left: Tensor | None, inputs: Tensor, patch: int, variant: Tensor, item: Tensor) -> Tensor:
    """The pixels gone already of each ``item``, and the patch that is on trial in this ``variant``."""
    removed = gone[item]
    if left is not None:
        removed = removed.scatter(1, left[item, variant][:, None], True)
    return _pixels(removed, inputs, patch)


def _scores(
    model: nn.Module,
    inputs: Tensor,
    target: Target,
    removed: Callable[[Tensor, Tensor], Tensor],
    variants: int,
    removal: Removal,
    chunk: int,
) -> Tensor:
    """The score of every item in every variant of what is removed, (N, variants).

    ``removed(variant, item)`` gives the pixels (n, 1, H, W) gone from n pairs; pairs of all variants share a chunk.
    """
    remove = prepare(removal, inputs.detach())

    def make(variant: Tensor, item: Tensor) -> Tensor:
        return remove(item, removed(variant, item))

    items = len(inputs)
    asked = vary(model, make, target, items=items, variants=variants, chunk=chunk, device=inputs.device)
    return torch.cat([score for _, _, score in asked]).view(variants, items).T


def _grid(inputs: Tensor, patch: int) -> tuple[int, int]:
    return math.ceil(inputs.shape[2] / patch), math.ceil(inputs.shape[3] / patch)


def _patch_sums(relevance: Tensor, patch: int) -> Tensor:
    """Relevance of each patch, row by row: (N, C, H, W) -> (N, patches)."""
    sums = _map(relevance)[:, None]
    return F.avg_pool2d(sums, patch, ceil_mode=True, divisor_override=1).flatten(1)


def _pixels(patches: Tensor, inputs: Tensor, patch: int) -> Tensor:
    """Spread a value for each patch over its pixels: (n, patches) -> (n, 1, H, W)."""
    grid = patches.view(len(patches), 1, *_grid(inputs, patch))
    pixels = grid.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    return pixels[:, :, : inputs.shape[2], : inputs.shape[3]]


def _shuffled(items: int, patches: int, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else None
    return torch.stack([torch.randperm(patches, generator=generator, device=device) for _ in range(items)])


# ------------------------------------------------------------------------------------------------------------
# Does the explanation depend on what the model learnt?
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Randomisation:
    """How much of an explanation is left when layers are randomised; one row for each layer, one column for each item.

    layers                     names of the layers, in the order in which they were randomised
    rank_correlation           Spearman's, of the relevance of all inputs before and after, (layers, N)
    absolute_rank_correlation  the same of |relevance|, (layers, N)
    cosine                     of the angle between the relevance before and after, (layers, N)
    magnitude                  sum |relevance| after / sum |relevance| before, (layers, N)
    """

    layers: tuple[str, ...]
    rank_correlation: Tensor
    absolute_rank_correlation: Tensor
    cosine: Tensor
    magnitude: Tensor


def randomisation_check(
    model: nn.Module,
    inputs: Tensor,
    target: Target,
    explainer: Explainer,
    *,
    cascading: bool = True,
    layers: Sequence[str] | None = None,
    generator: torch.Generator | None = None,
) -> Randomisation:
    """Give layers random parameters and see whether the explanation notices.

    model      an nn.Module in evaluation mode; all happens on a copy of it
    inputs     (N, C, H, W), any float dtype and device
    target     as in `pixel_flipping`
    explainer  ``explainer(model, inputs, target) -> relevance``, shaped like the inputs. It is given the copy: a layer that it
               looks at must be looked up in the model that it is given
    cascading  True: each layer is randomised in addition to those before; False: each layer by itself
    layers     names out of ``model.named_modules()``; a container's name stands for all that it contains. None: every module
               that has parameters of its own, from the last that was defined, which is the output in most models, to the first
    generator  where the random parameters come from; None is torch's global one

    A module is randomised by its own ``reset_parameters``, as before training (a batch norm forgets its statistics then, and
    neither shifts nor scales); the parameters of a module without it are drawn from a normal distribution with their own mean
    and standard deviation.

    Returns a `Randomisation` in float64 on the CPU. An explanation of what the model learnt changes; one that keeps its ranks
    shows the image, not the model. Look at the magnitudes too: ranks are the same when all relevance has faded a millionfold,
    and a pattern that stays can be that of the input, by which gradient x input multiplies whatever the model says.

    Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018; Binder et al., "Shortcomings of Top-Down
    Randomization-Based Sanity Checks for Evaluations of Deep Neural Network Explanations", CVPR 2023.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, whose layers can be randomised, got {type(model).__name__}")
    target = _check_images(model, inputs, target)
    _check_explainer(explainer)
    check_generator(generator)
    names = _layer_names(model, layers)

    twin = copy.deepcopy(model)
    check_score(twin, inputs, target)
    before = _explain(explainer, twin, inputs, target).cpu().double().flatten(1)
    rows = []
    for name in names:
        if not cascading:
            twin = copy.deepcopy(model)
        _randomise(twin.get_submodule(name), generator)
        after = _explain(explainer, twin, inputs, target).cpu().double().flatten(1)
        rows.append(
            (
                _correlation(_ranks(before), _ranks(after)),
                _correlation(_ranks(before.abs()), _ranks(after.abs())),
                _cosine(before, after),
                after.abs().sum(1) / _nonzero(before.abs().sum(1)),
            )
        )
    return Randomisation(tuple(names), *(torch.stack(column) for column in zip(*rows, strict=True)))


def _layer_names(model: nn.Module, layers: Sequence[str] | None) -> list[str]:
    modules = dict(model.named_modules())
    if layers is None:
        names = [name for name, module in modules.items() if next(module.parameters(recurse=False), None) is not None]
        if not names:
            raise ValueError("model has no parameters to randomise")
        return names[::-1]
    if isinstance(layers, str) or not layers or not all(isinstance(name, str) for name in layers):
        raise TypeError(f"layers must be a sequence of names out of model.named_modules(), got {layers!r}")
    for name in layers:
        if name not in modules:
            raise ValueError(f"layers: {name!r} is no module of the model; model.named_modules() lists them")
        if next(modules[name].parameters(), None) is None:
            raise ValueError(f"layers: {name!r} has no parameters to randomise")
    return list(layers)


def _randomise(module: nn.Module, generator: torch.Generator | None) -> None:
    """New random parameters for a module and all in it, in place."""
    device = generator.device if generator is not None else None
    seed = int(torch.randint(2**62, (), generator=generator, device=device))
    # reset_parameters knows no generator, only the global one, which is put back afterwards
    with torch.no_grad(), torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        for part in module.modules():
            own = list(part.parameters(recurse=False))
            before = [parameter.clone() for parameter in own]
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
            for parameter, old in zip(own, before, strict=True):
                if callable(reset) and not (torch.equal(parameter, old) and old.numel() > 1 and old.std() > 0):
                    continue  # reset; what it left alone (weights behind a spectral norm) is drawn anew
                spread = parameter.std(correction=0) if parameter.numel() else 0
                parameter.copy_(parameter.mean() + spread * torch.randn_like(parameter))


# ------------------------------------------------------------------------------------------------------------
# Is the relevance where the object is?
# ------------------------------------------------------------------------------------------------------------


def localisation(relevance: Tensor, mask: Tensor) -> Tensor:
    """Share of the positive relevance that lies inside the mask (relevance mass accuracy).

    relevance  (N, C, H, W); it is summed over the channels before its negative part is left out
    mask       BoolTensor (N, 1, H, W), True on the object, at least at one pixel of each item

    Returns (N,) from 0 to 1; NaN for an item without positive relevance. A map of equal positive values gets the share of the
    image that the mask covers, which is what to compare with. With R the relevance of each pixel p,
    ``sum over p in mask of max(R_p, 0) / sum over all p of max(R_p, 0)``.

    Raises ValueError or TypeError if an argument is not as above.

    Arras et al., "CLEVR-XAI", Information Fusion 81, 2022.
    """
    values, inside = _check_mask(relevance, mask)
    positive = values.clamp(min=0)
    return (positive * inside).sum(1) / _nonzero(positive.sum(1))


def rank_accuracy(relevance: Tensor, mask: Tensor) -> Tensor:
    """Share of the K pixels of highest relevance that lie inside the mask of K pixels (relevance rank accuracy).

    Arguments, errors and reference as in `localisation`. Returns (N,) from 0 to 1. Where several pixels share the K-th value,
    each counts by its chance to be among the K, so that a constant map gets the share of the image that the mask covers.
    """
    values, inside = _check_mask(relevance, mask)
    size = inside.sum(1, keepdim=True)
    last = values.sort(1, descending=True).values.gather(1, size - 1)
    above, tied = values > last, values == last
    chance = (size - above.sum(1, keepdim=True)) / tied.sum(1, keepdim=True)
    return (inside * (above + tied * chance)).sum(1) / size[:, 0]


def pointing_game(relevance: Tensor, mask: Tensor) -> Tensor:
    """Whether the pixel of highest relevance lies inside the mask: 1 if it does, 0 if not.

    Arguments and errors as in `localisation`. Returns (N,); where several pixels share the highest value, the share of them
    that lies inside. The mean over many items is the accuracy in the pointing game, here without a tolerance of 15 pixels.

    Zhang et al., "Top-down Neural Attention by Excitation Backprop", IJCV 126, 2018.
    """
    values, inside = _check_mask(relevance, mask)
    highest = values == values.amax(1, keepdim=True)
    return (highest & inside).sum(1) / highest.sum(1)


# ------------------------------------------------------------------------------------------------------------
# Does it stay the same where the input hardly changes, and how grainy is it?
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sensitivity:
    """How far an explanation moves, relative to its length, under small changes of the input: (N,) each."""

    average: Tensor
    maximal: Tensor


def sensitivity(
    model: nn.Module,
    inputs: Tensor,
    target: Target,
    explainer: Explainer,
    *,
    radius: float,
    samples: int = 10,
    generator: torch.Generator | None = None,
) -> Sensitivity:
    """Change the inputs a little, at random, and measure how much the explanation changes.

    model      an nn.Module in evaluation mode, or a function of tensors; the explainer is asked to leave it as it is
    inputs     (N, C, H, W), any float dtype and device
    target     as in `pixel_flipping`
    explainer  ``explainer(model, inputs, target) -> relevance``, shaped like the inputs
    radius     how far each value of the input may move, in its units, above 0
    samples    how many changed inputs, at least 1
    generator  where they come from; None is torch's global one

    With R(x) the relevance and every value of e uniform in [-radius, radius], the average and the maximum over the samples of
    ``|R(x + e) - R(x)| / |R(x)|`` (Euclidean lengths); NaN for an item with R(x) = 0. The maximum over few samples in many
    dimensions is far below the true one.

    Raises ValueError or TypeError if an argument is not as above.

    Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019.
    """
    target = _check_images(model, inputs, target)
    _check_explainer(explainer)
    check_positive("radius", radius)
    check_count("samples", samples)
    check_generator(generator)
    check_score(model, inputs, target)

    before = wide(_explain(explainer, model, inputs, target)).flatten(1)
    length = _nonzero(before.norm(dim=1))
    device = generator.device if generator is not None else inputs.device
    moved = []
    for _ in range(samples):
        uniform = torch.rand(inputs.shape, generator=generator, dtype=inputs.dtype, device=device).to(inputs)
        after = wide(_explain(explainer, model, inputs + radius * (2 * uniform - 1), target)).flatten(1)
        moved.append((after - before).norm(dim=1) / length)
    together = torch.stack(moved)
    return Sensitivity(together.mean(0), together.amax(0))


def noisiness(relevance: Tensor) -> Tensor:
    """How grainy each map is: 0 smooth, 1 white noise, 2 a chequerboard; a map's scale and offset do not matter.

    relevance  (N, C, H, W), summed over the channels; at least two pixels

    Returns (N,): Geary's C, the mean squared difference of neighbours (beside or above each other) over twice the variance::

        C = mean over neighbours p, q of (R_p - R_q)^2 / (2 variance of R),   variance with n - 1

    Its mean over all arrangements of the same values is exactly 1, whatever their distribution. NaN for a constant map.

    Raises ValueError or TypeError if ``relevance`` is not as above.

    Geary, "The Contiguity Ratio and Statistical Mapping", The Incorporated Statistician 5(3), 1954.
    """
    _check_maps(relevance)
    values = _map(relevance)
    if values[0].numel() < 2:
        raise ValueError(f"relevance must have at least two pixels, got {tuple(relevance.shape)}")
    squares = torch.cat([values.diff(dim=1).flatten(1), values.diff(dim=2).flatten(1)], 1) ** 2
    return squares.mean(1) / _nonzero(2 * values.flatten(1).var(1))


# ------------------------------------------------------------------------------------------------------------
# Arithmetic
# ------------------------------------------------------------------------------------------------------------


def _map(relevance: Tensor) -> Tensor:
    """Relevance of each pixel, (N, H, W): the sum over the channels, in at least float32."""
    return wide(relevance).sum(1)


def _nonzero(values: Tensor) -> Tensor:
    """NaN in the place of 0, for what is divided by it."""
    return values.masked_fill(values == 0, math.nan)


def _ranks(values: Tensor) -> Tensor:
    """Rank of each value in its row, from 1; equal values share the mean of their ranks."""
    rows = []
    for row in values:
        _, place, counts = torch.unique(row, return_inverse=True, return_counts=True)
        rows.append((counts.cumsum(0) - (counts - 1) / 2).to(values)[place])
    return torch.stack(rows)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1) / _nonzero(a.norm(dim=1) * b.norm(dim=1))


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    return _cosine(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True))


# ------------------------------------------------------------------------------------------------------------
# Asking the model and the explainer
# ------------------------------------------------------------------------------------------------------------


def _explain(explainer: Explainer, model: nn.Module, inputs: Tensor, target: Target) -> Tensor:
    relevance = explainer(model, inputs.detach().clone(), target)
    _check_same("explainer must return", relevance, inputs)
    return relevance.detach()


# ------------------------------------------------------------------------------------------------------------
# Checks
# ------------------------------------------------------------------------------------------------------------


def _check_images(model: nn.Module, inputs: Tensor, target: Target) -> Target:
    check_model(model)
    check_inputs(inputs, images=True)
    return check_target(target, len(inputs))


def _check_removing(inputs: Tensor, removal: Removal, patch: int, chunk: int) -> None:
    if not callable(removal):
        raise TypeError(f"removal must be a function of inputs and removed places, got {type(removal).__name__}")
    check_count("patch", patch, most=max(inputs.shape[2:]), most_is="the longer side of the images")
    check_count("chunk", chunk)


def _check_explainer(explainer: Explainer) -> None:
    if not callable(explainer):
        raise TypeError(f"explainer must be a function of model, inputs and target, got {type(explainer).__name__}")


def _check_relevance(name: str, relevance: Tensor | None, inputs: Tensor) -> None:
    if not isinstance(relevance, Tensor) or not relevance.is_floating_point():
        raise TypeError(f"{name} must be a tensor of a float dtype, got {kind(relevance)}")
    if relevance.shape != inputs.shape:
        raise ValueError(
            f"{name} must have the shape of the inputs, {tuple(inputs.shape)}, got {tuple(relevance.shape)}"
        )
    if relevance.device != inputs.device:
        raise ValueError(f"{name} must be on the device of the inputs, {inputs.device}, got {relevance.device}")
    check_finite(name, relevance)


def _check_same(what: str, result: Tensor, inputs: Tensor) -> None:
    if not isinstance(result, Tensor) or result.shape != inputs.shape or result.dtype != inputs.dtype:
        raise ValueError(f"{what} a tensor like the inputs, {kind(inputs)}, got {kind(result)}")
    check_finite(f"what {what.split()[0]} returns", result)


def _check_maps(relevance: Tensor) -> None:
    if not isinstance(relevance, Tensor) or not relevance.is_floating_point():
        raise TypeError(f"relevance must be a tensor of a float dtype, got {kind(relevance)}")
    if relevance.dim() != 4 or 0 in relevance.shape:
        raise ValueError(f"relevance must have shape (N, C, H, W), not empty, got {tuple(relevance.shape)}")
    check_finite("relevance", relevance)


def _check_mask(relevance: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Check both and give the relevance of each pixel and the mask, (N, H W) each."""
    _check_maps(relevance)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"mask must be a BoolTensor, got {kind(mask)}")
    expected = (len(relevance), 1, *relevance.shape[2:])
    if mask.shape != expected:
        raise ValueError(f"mask must have shape {expected}, one for each item, got {tuple(mask.shape)}")
    if mask.device != relevance.device:
        raise ValueError(f"mask must be on the device of the relevance, {relevance.device}, got {mask.device}")
    empty = (~mask.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"mask must be True at least once in each item; it is empty in item {', '.join(map(str, empty))}"
        )
    return _map(relevance).flatten(1), mask.flatten(1)
