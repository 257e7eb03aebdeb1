"""Take parts of the input away and watch the score: occlusion and RISE (lectures 04, 06, 09 and 12).

Both only run the model forwards, so that they explain any function. `occlusion` takes one window at a time and reports how much
the score falls; `rise` takes many cells at once, at random, and reports the average score over the masks that kept a pixel.
What stands in the place of what is taken is a choice of its own, see ``removal``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .arguments import check_count, check_finite, check_generator, check_positive
from .removal import Removal, baseline, prepare
from .scores import Model, Target, check_inputs, check_model, check_target, unchanged, vary, wide

__all__ = ["Rise", "occlusion", "rise", "rise_estimate"]


# ------------------------------------------------------------------------------------------------------------
# One window at a time
# ------------------------------------------------------------------------------------------------------------


def occlusion(
    model: Model,
    inputs: Tensor,
    target: Target,
    *,
    patch: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    removal: Removal | None = None,
    share: bool = True,
    chunk: int = 32,
) -> Tensor:
    """Slide a window over the input, remove what is under it, and report how much the score falls.

    model    an nn.Module in evaluation mode, or a function of tensors; it is not changed
    inputs   (N, …), any float dtype and device: images (N, C, H, W), time series (N, C, T), tables (N, D)
    target   which score: a class index, one for each item (LongTensor (N,)), or a function from the outputs of all N items to
             scores (N,)
    patch    size of the window: one number for each dimension after N, such as (1, 8, 8), or one number for all but the
             channels, which the window then takes together: 8 is (C, 8, 8) for images and (C, 8) for time series
    stride   how far the window moves, as ``patch``, and no further than ``patch``; None is ``patch``, so that windows do not
             overlap
    removal  what takes the place of what is removed, one of ``xaicourse.removal``, random ones anew for each window; None is
             ``removal.baseline(0)``
    share    True: a window's fall is shared equally among its features (pixels times channels), so that their relevance sums
             to it; False: every feature of the window gets the whole fall, as in captum
    chunk    how many inputs the model sees at once

    Returns relevance shaped like ``inputs``. The first window lies at the first feature of each dimension, the last ends with
    the dimension and may be smaller. With f the score and W(d) all windows w that cover feature d,
    ``R_d = mean over w in W(d) of (f(x) - f(x without w)) / |w|``, without the |w| where ``share`` is False. The model sees as
    many inputs for each item as there are windows, and the input itself.

    Raises ValueError or TypeError if an argument is not as above, or if a NaN or an infinity appears.

    Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014; as a difference of scores in Ancona et
    al., "Towards Better Understanding of Gradient-based Attribution Methods", ICLR 2018.
    """
    check_model(model)
    check_inputs(inputs)
    target = check_target(target, len(inputs))
    sizes = tuple(inputs.shape[1:])
    window = _extent("patch", patch, sizes, sizes, "the size of the inputs")
    step = window if stride is None else _extent("stride", stride, sizes, window, "the size of the patch")
    check_count("chunk", chunk)
    inputs = inputs.detach()
    remove = prepare(baseline(0.0) if removal is None else removal, inputs)

    covers = [_windows(*dimension).to(inputs.device) for dimension in zip(sizes, window, step, strict=True)]
    counts = [len(cover) for cover in covers]

    def make(variant: Tensor, item: Tensor) -> Tensor:
        removed = (variant > 0).view(-1, *[1] * len(sizes))  # variant 0 is the input itself
        places = torch.unravel_index((variant - 1).clamp(min=0), counts)
        for dimension, (cover, place) in enumerate(zip(covers, places, strict=True)):
            if len(cover) > 1:  # a single window covers the dimension
                shape = [1] * len(sizes)
                shape[dimension] = sizes[dimension]
                removed = removed & cover[place].view(-1, *shape)
        return remove(item, removed)

    items, variants = len(inputs), 1 + math.prod(counts)
    with unchanged(model):
        asked = vary(model, make, target, items=items, variants=variants, chunk=chunk, device=inputs.device)
        score = torch.cat([score for _, _, score in asked]).view(variants, items)
    relevance = (score[0] - score[1:]).T.reshape(items, *counts)
    for dimension, cover in enumerate(covers, start=1):  # windows are boxes, so that each dimension is summed by itself
        weight = cover.to(relevance) / cover.sum(0)
        weight = weight / cover.sum(1, keepdim=True) if share else weight
        relevance = (relevance.movedim(dimension, -1) @ weight).movedim(-1, dimension)
    return _finished("the relevance", relevance.contiguous(), inputs)


def _extent(
    name: str, value: int | Sequence[int], sizes: tuple[int, ...], most: tuple[int, ...], most_is: str
) -> tuple[int, ...]:
    """A size for each dimension after N; one number leaves out the channels of what has more than one dimension."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        check_count(name, value, most=max(most[1:] or most), most_is=most_is)
        spread = (value,) * len(sizes) if len(sizes) == 1 else (most[0], *[value] * (len(sizes) - 1))
        return tuple(map(min, spread, most))
    if len(value) != len(sizes):
        raise ValueError(f"{name} must be one number, or one for each of the dimensions {sizes}, got {tuple(value)}")
    for dimension, (number, limit) in enumerate(zip(value, most, strict=True)):
        check_count(f"{name}[{dimension}]", number, most=limit, most_is=most_is)
    return tuple(value)


def _windows(size: int, window: int, step: int) -> Tensor:
    """What each window along one dimension covers: BoolTensor (windows, size)."""
    starts = torch.arange(math.ceil((size - window) / step) + 1)[:, None] * step
    places = torch.arange(size)
    return (starts <= places) & (places < starts + window)


# ------------------------------------------------------------------------------------------------------------
# Many cells at once, at random
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rise:
    """A map by RISE, and how sure it is.

    relevance        shaped like the inputs (N, C, H, W); its sum over the channels is the map of the paper
    standard_errors  of ``relevance``, in the same shape; they too are to be summed over the channels, which share their masks.
                     0 if all masks were enumerated
    evaluations      how many masks the model saw for each item
    """

    relevance: Tensor
    standard_errors: Tensor
    evaluations: int


def rise(
    model: Model,
    inputs: Tensor,
    target: Target,
    *,
    masks: int | Literal["all"] = 2000,
    cells: int = 7,
    keep: float = 0.5,
    soft: bool = True,
    centred: bool = False,
    removal: Removal | None = None,
    generator: torch.Generator | None = None,
    chunk: int = 32,
) -> Tensor:
    """Show the model many randomly masked copies of the image; a pixel's relevance is the mean score of those that keep it.

    Arguments, errors, equation and reference as in `rise_estimate`, of which this is the ``relevance``.
    """
    return rise_estimate(
        model, inputs, target,
        masks=masks, cells=cells, keep=keep, soft=soft, centred=centred, removal=removal, generator=generator, chunk=chunk,
    ).relevance  # fmt: skip


def rise_estimate(
    model: Model,
    inputs: Tensor,
    target: Target,
    *,
    masks: int | Literal["all"] = 2000,
    cells: int = 7,
    keep: float = 0.5,
    soft: bool = True,
    centred: bool = False,
    removal: Removal | None = None,
    generator: torch.Generator | None = None,
    chunk: int = 32,
) -> Rise:
    """RISE with its standard errors: an average of scores over random masks, and how much of it is chance.

    model      an nn.Module in evaluation mode, or a function of tensors; it is not changed
    inputs     (N, C, H, W), any float dtype and device
    target     which score, as in `occlusion`; in the paper a probability: ``lambda y: y.softmax(1)[:, 3]``
    masks      how many masks, at least 2, the same ones for all items; "all" enumerates them, for hard masks of up to 16 cells
    cells      number of cells beside and above each other, 1 to the shorter side of the images
    keep       probability of a cell to be kept, above 0 and below 1
    soft       True: the grid of cells is interpolated (bilinear) and shifted at random by up to one cell, as in the paper;
               False: each pixel is kept or removed with its cell, and the grid does not move
    centred    False: as in the paper; True: how the score depends on m(p), see below
    removal    what takes the place of what is removed, one of ``xaicourse.removal``; None is ``removal.baseline(0)``. Soft
               masks leave few pixels untouched: for a removal that looks at what is left, take hard ones
    generator  where the masks come from; None is torch's global one
    chunk      how many images the model sees at once

    With m(p) in [0, 1] the mask at pixel p, x' the image with everything removed where m(p) < 1, f the score, and expectations
    over the masks, of which E[m(p)] = keep and Var[m(p)] are known exactly:

        S(p) = E[f(m x + (1 - m) x') m(p)] / E[m(p)]                centred: S(p) = Cov[f(…), m(p)] / Var[m(p)]

    S(p) is an average of scores: it contains E[f], which says nothing of p, and it does not sum to the score. Centred, it is
    the slope of the score along m(p), 0 for a pixel that does not matter; for hard masks it is the mean fall of the score when
    the cell of p goes, E[f | p kept] - E[f | p removed], and at keep 1/2 that cell's Banzhaf value.

    Returns a `Rise`: unbiased for S / C in each of the C channels, with the standard deviation over the masks / sqrt(masks).

    Raises ValueError or TypeError if an argument is not as above, or if a NaN or an infinity appears.

    Petsiuk, Das & Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018.
    """
    check_model(model)
    check_inputs(inputs, images=True)
    target = check_target(target, len(inputs))
    check_count("cells", cells, most=min(inputs.shape[2:]), most_is="the shorter side of the images")
    check_positive("keep", keep)
    if keep >= 1:
        raise ValueError(f"keep must be below 1, got {keep}")
    check_generator(generator)
    check_count("chunk", chunk)
    inputs = inputs.detach()
    remove = prepare(baseline(0.0) if removal is None else removal, inputs)

    grids, weights = _grids(masks, cells, keep, soft, generator, inputs)
    mask, variance = _masks(grids, keep, soft, generator, inputs)

    def make(variant: Tensor, item: Tensor) -> Tensor:
        kept = mask(variant)[:, None]
        return remove(item, kept < 1).lerp(inputs[item], kept.to(inputs.dtype))

    items, count = len(inputs), len(grids)
    with unchanged(model):
        asked = vary(model, make, target, items=items, variants=count, chunk=chunk, device=inputs.device)
        score = torch.cat([score for _, _, score in asked]).view(count, items).T
    if centred:
        score = score - score @ weights[:, None]
    total = score.new_zeros(items, *inputs.shape[2:])
    squares = torch.zeros_like(total)
    for block in torch.arange(count, device=inputs.device).split(chunk):
        part = mask(block).to(score)
        part = (part - keep) / variance if centred else part / keep
        total += torch.tensordot(score[:, block] * weights[block], part, 1)
        squares += torch.tensordot(score[:, block] ** 2 * weights[block], part**2, 1)
    if masks == "all":
        error = torch.zeros_like(total)
    else:
        error = ((squares - total**2).clamp(min=0) / (count - 1)).sqrt()
        total = total * count / (count - 1) if centred else total  # the mean score is estimated too
    channels = inputs.shape[1]
    relevance, errors = (
        _finished(name, (values[:, None] / channels).expand_as(inputs).contiguous(), inputs)
        for name, values in (("the relevance", total), ("the standard error", error))
    )
    return Rise(relevance, errors, count)


def _grids(
    masks: int | Literal["all"], cells: int, keep: float, soft: bool, generator: torch.Generator | None, inputs: Tensor
) -> tuple[Tensor, Tensor]:
    """Which cells each mask keeps, (masks, cells, cells), 0 or 1, and the weight of each mask, (masks,), which sum to 1."""
    like = wide(inputs.new_empty(0))
    if masks == "all":
        if soft or cells**2 > 16:
            raise ValueError(
                f'masks: "all" is for soft=False and up to 16 cells, got soft={soft} and {cells} x {cells} cells'
            )
        number = torch.arange(2 ** (cells**2))[:, None]
        grids = (number >> torch.arange(cells**2)) & 1
        kept = grids.sum(1).double()
        weights = keep**kept * (1 - keep) ** (cells**2 - kept)
        return grids.view(-1, cells, cells).to(like), weights.to(like)
    check_count("masks", masks, least=2)
    device = generator.device if generator is not None else inputs.device
    grids = torch.rand(masks, cells, cells, generator=generator, device=device) < keep
    return grids.to(like), like.new_full((masks,), 1 / masks)


def _masks(
    grids: Tensor, keep: float, soft: bool, generator: torch.Generator | None, inputs: Tensor
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The masks of the grids with these numbers, (n,) -> (n, H, W), and the variance of a mask at each pixel, (H, W)."""
    device = generator.device if generator is not None else inputs.device
    sides = [_side(size, grids.shape[1], soft).to(grids) for size in inputs.shape[2:]]  # (shifts, size, cells) each
    shifts = [
        torch.randint(len(side), grids.shape[:1], generator=generator, device=device).to(grids.device) for side in sides
    ]
    (rows, columns), (down, right) = sides, shifts

    def mask(number: Tensor) -> Tensor:
        return rows[down[number]] @ grids[number] @ columns[right[number]].mT

    vertical, horizontal = ((side**2).sum(2).mean(0) for side in sides)  # a mean of independent cells
    return mask, keep * (1 - keep) * vertical[:, None] * horizontal


def _side(size: int, cells: int, soft: bool) -> Tensor:
    """How much each cell gives to each pixel along one side, for every shift: (shifts, size, cells); each row sums to 1."""
    if not soft:
        cell = torch.arange(size) * cells // size
        return torch.nn.functional.one_hot(cell, cells)[None].double()
    shifts = math.ceil(size / cells)
    pixels = torch.arange(shifts, dtype=torch.float64)[:, None] + torch.arange(size)
    # as the cells, stretched over one cell more than the image has, so that the image can move by one cell
    place = ((pixels + 0.5) * cells / ((cells + 1) * shifts) - 0.5).clamp(0, cells - 1)
    return (1 - (place[..., None] - torch.arange(cells)).abs()).clamp(min=0)


def _finished(name: str, values: Tensor, inputs: Tensor) -> Tensor:
    values = values.to(inputs.dtype)
    check_finite(name, values)
    return values
