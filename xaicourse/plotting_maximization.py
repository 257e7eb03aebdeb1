"""Figures of images that maximise a unit, and of the samples that do (lecture 02).

Rules as in ``plotting``: red above zero, blue below, the scale's colour bar, the sum, and a text alternative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from .maximization import TopSamples
from .plotting import (
    _SIGNED,
    COLOURS,
    WIDTH,
    Picture,
    _check_alt,
    _check_finite,
    _check_image,
    _check_title,
    _gray,
    _house_style,
)

__all__ = ["gallery", "growth", "seen"]


@_house_style
def gallery(
    pictures: Sequence[Sequence[Tensor]],
    captions: Sequence[Sequence[str]],
    *,
    alt: str,
    rows: Sequence[str] | None = None,
    title: str | None = None,
    largest: float = 3.2,
) -> Picture:
    """Draw rows of images, with a caption above each.

    pictures  images (C, H, W) or (H, W) in [0, 1], a list for each row
    captions  as many, of one line or two
    rows      what stands at the left of each row
    largest   width of an image in inches, where few share a row
    """
    _check_alt(alt)
    if not pictures or not pictures[0]:
        raise ValueError("pictures must hold at least one row with one image, got none")
    if [len(row) for row in pictures] != [len(row) for row in captions]:
        raise ValueError(
            f"captions must be one for each image, {[len(row) for row in pictures]} in a row, got "
            f"{[len(row) for row in captions]}"
        )
    columns = max(len(row) for row in pictures)
    left = 0.0 if rows is None else 1.15
    cell = min((WIDTH - left) / columns, largest)
    head = 0.12 + 0.2 * max(1 + caption.count("\n") for row in captions for caption in row)
    shapes = [[_check_image(image) for image in row] for row in pictures]
    tall = max(image.shape[0] / image.shape[1] for row in shapes for image in row)
    size = cell - 0.12
    above = 0.35 if title else 0.0
    figure = Figure(figsize=(left + columns * cell, above + len(shapes) * (head + size * tall)))
    width, height = figure.get_size_inches()
    if title:
        figure.text(0.5, 1, _check_title(title), ha="center", va="top", fontsize=13, fontweight="bold")
    for y, row in enumerate(shapes):
        top = above + y * (head + size * tall) + head
        if rows is not None:
            middle = 1 - (top + size * tall / 2) / height
            figure.text((left - 0.12) / width, middle, rows[y], ha="right", va="center", fontsize=11, fontweight="bold")
        for x, image in enumerate(row):
            place = (left + x * cell + 0.06, top, size, size * tall)
            axes = _axes(figure, *place)
            axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="antialiased")
            axes.set_title(captions[y][x], fontsize=10.5, fontweight="normal", pad=3)
    return Picture(figure, alt)


@_house_style
def growth(images: Mapping[int, Tensor], history: Tensor, *, alt: str, label: str = "activation") -> Picture:
    """Draw an image that grows: as it was after some steps, and above it the activation in all of them.

    images   number of the step, counted from 0, to the image (C, H, W) in [0, 1]
    history  (steps,)
    """
    _check_alt(alt)
    values = _check_finite("history", history)
    if values.ndim != 1 or not images or not all(0 <= step < len(values) for step in images):
        raise ValueError(f"images must be of steps from 0 to {len(values) - 1}, got {sorted(images)}")
    size = min(WIDTH / len(images), 2.2)
    figure = Figure(figsize=(size * len(images), size + 2.5))
    height = figure.get_figheight()
    axes = figure.add_axes((0.09, 1 - 1.75 / height, 0.89, 1.65 / height))
    axes.plot(np.arange(len(values)), values, color=COLOURS[2], lw=2)
    for step in images:
        axes.plot(step, values[step], "o", color=COLOURS[1], ms=7)
    axes.set(xlim=(-0.02 * len(values), 1.02 * len(values)), xlabel="step", ylabel=label)
    for x, (step, image) in enumerate(sorted(images.items())):
        panel = _axes(figure, x * size + 0.04, 2.45, size - 0.08, size - 0.08)
        panel.imshow(_check_image(image), cmap="gray", vmin=0, vmax=1, interpolation="antialiased")
        panel.set_title(f"step {step}", fontsize=10.5, fontweight="normal", pad=2)
    return Picture(figure, alt)


@_house_style
def seen(
    maximized: Mapping[str, Tensor],
    best: Mapping[str, TopSamples],
    *,
    alt: str,
    notes: Mapping[str, str] | None = None,
    quantile: float = 0.995,
    boxes: bool = False,
) -> Picture:
    """Draw, for each channel, what maximises it, the samples that do, and the relevance of the activation on them.

    maximized  name of the channel to the image that maximises it, (C, H, W) in [0, 1]
    best       name of the channel to its samples; as many for each
    notes      what stands above the image that maximises
    quantile   each map has its own scale, which ends at this quantile of its |R|
    boxes      frame what the place where the channel is strongest can see
    """
    _check_alt(alt)
    if not best or list(maximized) != list(best):
        raise ValueError(f"maximized and best must name the same channels, got {list(maximized)} and {list(best)}")
    many = {len(found.values) for found in best.values()}
    if len(many) != 1:
        raise ValueError(f"best must have as many samples for each channel, got {sorted(many)}")
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile must be in (0, 1], got {quantile!r}")
    k = many.pop()
    gap, left = 0.22, 0.35
    cell = (WIDTH - left - 2 * gap) / (1 + 2 * k)
    size, head, top_head, foot = cell - 0.08, 0.24, 0.42, 0.62
    figure = Figure(figsize=(WIDTH, top_head + len(best) * (size + head) + foot))
    height = figure.get_figheight()
    starts = [left, left + cell + gap, left + (1 + k) * cell + 2 * gap]
    for start, wide, text in zip(
        starts, (1, k, k), ("what maximises it", "crops that do", "relevance of the activation"), strict=True
    ):
        at = start + wide * cell / 2
        figure.text(at / WIDTH, 1 - 0.16 / height, text, ha="center", va="center", fontsize=12.5, fontweight="bold")
    for y, (name, found) in enumerate(best.items()):
        top = top_head + y * (size + head) + head
        middle = 1 - (top + size / 2) / height
        figure.text(0.2 / WIDTH, middle, name, ha="center", va="center", rotation=90, fontsize=11.5, fontweight="bold")
        axes = _axes(figure, starts[0], top, size, size)
        axes.imshow(_check_image(maximized[name]), cmap="gray", vmin=0, vmax=1, interpolation="antialiased")
        axes.set_title((notes or {}).get(name, ""), fontsize=9.5, fontweight="normal", pad=2)
        for x in range(k):
            pixels = _check_image(found.images[x])
            axes = _axes(figure, starts[1] + x * cell, top, size, size)
            axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="antialiased")
            axes.set_title(f"active {found.values[x]:.2f}", fontsize=9.5, fontweight="normal", pad=2)
            values = _check_finite("relevance", found.relevance[x].sum(0))
            scale = float(np.quantile(np.abs(values), quantile)) or float(np.abs(values).max()) or 1.0
            axes = _axes(figure, starts[2] + x * cell, top, size, size)
            colour = _SIGNED((np.clip(values / scale, -1, 1) + 1) / 2)[..., :3]
            axes.imshow(colour * (0.55 + 0.45 * _gray(pixels))[..., None], interpolation="nearest")
            axes.set_title(f"sum R = {values.sum():.2f}", fontsize=9.5, fontweight="normal", pad=2)
            if boxes:
                t, m, b, r = found.boxes[x].tolist()
                axes.add_patch(Rectangle((m - 0.5, t - 0.5), r - m, b - t, fill=False, ec="black", lw=1.3))
    bar_axes = figure.add_axes((0.55, 0.42 / height, 0.3, 0.11 / height))
    bar = figure.colorbar(ScalarMappable(Normalize(-1, 1), _SIGNED), cax=bar_axes, orientation="horizontal")
    bar.set_ticks([-1, 0, 1], labels=["against", "0", "for"], fontsize=9.5)
    bar.set_label(f"each map on its own scale: full colour at the {quantile:.1%} quantile of |R|", fontsize=9.5)
    return Picture(figure, alt)


def _axes(figure: Figure, left: float, top: float, width: float, tall: float) -> Axes:
    """A panel without ticks, in inches from the top left corner of the figure."""
    wide, height = figure.get_size_inches()
    axes = figure.add_axes((left / wide, 1 - (top + tall) / height, width / wide, tall / height))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color="0.8")
    return axes
