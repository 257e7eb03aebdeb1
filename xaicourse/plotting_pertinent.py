"""Figures of pertinent positives and negatives: what is kept in cyan, what is added in pink, as on the slides (lecture 04)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from torch import Tensor

from .plotting import WIDTH, Picture, _check_alt, _check_finite, _house_style

__all__ = ["contrasts", "frequency"]

_KEPT, _ADDED, _TAKEN = np.array([0.0, 0.62, 0.80]), np.array([0.86, 0.05, 0.50]), np.array([0.90, 0.60, 0.0])
_SIZE = 1.0  # of a picture, in inches


@_house_style
def contrasts(
    pictures: Sequence[Tensor],
    changes: Sequence[Tensor],
    kinds: Sequence[str | Sequence[str]],
    *,
    alt: str,
    names: Sequence[str] | None = None,
    titles: Sequence[Sequence[str]] | None = None,
    title: str = "",
) -> Picture:
    """Draw rows of gray pictures, ink black, and on each what a contrast keeps of it or adds to it.

    pictures  a row each: (n, 1, H, W) in [0, 1], ink 1
    changes   a row each, shaped like its pictures: the perturbations of ``contrastive.Contrast``
    kinds     a row each, one for all of its pictures or one for each: "positive": the picture pale, what is kept cyan;
              "negative": what is added pink; "none": the picture. What a change takes away, where the removal allows it, is
              orange
    names     of the rows, on the left
    titles    of the pictures: a list for each row
    alt       text alternative, not empty

    Raises ValueError if an argument is not as above.
    """
    _check_alt(alt)
    if not len(pictures) == len(changes) == len(kinds):
        raise ValueError(
            f"pictures, changes and kinds must be as many, got {len(pictures)}, {len(changes)} and {len(kinds)}"
        )
    for row, (picture, change, kind) in enumerate(zip(pictures, changes, kinds, strict=True)):
        if picture.dim() != 4 or picture.shape[1] != 1:
            raise ValueError(f"pictures[{row}] must have shape (n, 1, H, W), got {tuple(picture.shape)}")
        if change.shape != picture.shape:
            raise ValueError(f"changes[{row}] must have shape {tuple(picture.shape)}, got {tuple(change.shape)}")
        of_each = [kind] * len(picture) if isinstance(kind, str) else list(kind)
        if len(of_each) != len(picture) or not set(of_each) <= {"positive", "negative", "none"}:
            raise ValueError(
                f"kinds[{row}] must be 'positive', 'negative' or 'none', or one of these for each picture, got {kind!r}"
            )
    columns = max(len(picture) for picture in pictures)
    left = 0.0 if names is None else 1.5
    size = min(_SIZE * 1.6, (WIDTH - left) / columns)
    above = 0.26 if titles else 0.06
    figure = Figure(figsize=(left + columns * size, len(pictures) * (size + above) + 0.05))
    wide, high = figure.get_size_inches()
    for y, (picture, change, kind) in enumerate(zip(pictures, changes, kinds, strict=True)):
        top = high - y * (size + above) - above
        if names is not None:
            figure.text((left - 0.12) / wide, (top - size / 2) / high, names[y], ha="right", va="center", fontsize=11)
        for x in range(len(picture)):
            place = ((left + x * size) / wide, (top - size) / high, (size - 0.06) / wide, (size - 0.06) / high)
            axes = figure.add_axes(place)
            one = kind if isinstance(kind, str) else kind[x]
            ink, changed = _check_finite(f"pictures[{y}]", picture[x, 0]), _check_finite(f"changes[{y}]", change[x, 0])
            axes.imshow(_coloured(ink, changed, one), interpolation="nearest")
            _plain(axes)
            if titles:
                axes.set_title(titles[y][x], fontsize=11, pad=3, fontweight="normal")
    if title:
        figure.text(0.5, 1 + 0.06 / high, title, ha="center", va="bottom", fontsize=13, fontweight="bold")
    return Picture(figure, alt, sharpness=2)


@_house_style
def frequency(
    shares: Sequence[Tensor], pictures: Tensor, *, names: Sequence[str], alt: str, title: str = "", label: str = ""
) -> Picture:
    """Draw how often each pixel is in a contrast, beside the picture itself.

    shares    a row for each name: (n, H, W), the share of the runs, from 0 to 1
    pictures  (n, 1, H, W) in [0, 1]: the outline of their ink is drawn
    names     of the rows
    label     of the colour bar

    Raises ValueError if an argument is not as above.
    """
    _check_alt(alt)
    count = len(pictures)
    size = min(1.7, (WIDTH - 1.5) / count)
    figure = Figure(figsize=(1.5 + count * size, len(shares) * size + 0.6))
    wide, high = figure.get_size_inches()
    colours = LinearSegmentedColormap.from_list("share", ["white", "#f6c3df", "#dc0d80", "#5a0035"])
    for y, row in enumerate(shares):
        if row.shape != (count, *pictures.shape[2:]):
            raise ValueError(f"shares[{y}] must have shape {(count, *pictures.shape[2:])}, got {tuple(row.shape)}")
        middle = high - (y + 0.5) * size
        figure.text(1.38 / wide, middle / high, names[y], ha="right", va="center", fontsize=11)
        for x in range(count):
            axes = figure.add_axes(
                ((1.5 + x * size) / wide, (middle - size / 2) / high, (size - 0.06) / wide, (size - 0.06) / high)
            )
            share, ink = _check_finite(f"shares[{y}]", row[x]), _check_finite("pictures", pictures[x, 0])
            axes.imshow(share, cmap=colours, vmin=0, vmax=1, interpolation="nearest")
            axes.contour(ink, [0.5], colors="0.35", linewidths=1.0)
            _plain(axes)
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), colours),
        cax=figure.add_axes((0.4, 0.42 / high, 0.3, 0.12 / high)),
        orientation="horizontal",
        ticks=[0, 0.5, 1],
    )
    bar.ax.set_xticklabels(["0", "1/2", "all"], fontsize=10)
    bar.set_label(label or "share of the runs in which the pixel is changed", fontsize=10, labelpad=1)
    if title:
        figure.text(0.5, 1 + 0.06 / high, title, ha="center", va="bottom", fontsize=13, fontweight="bold")
    return Picture(figure, alt, sharpness=2)


def _coloured(picture: np.ndarray, change: np.ndarray, kind: str) -> np.ndarray:
    """The picture as black ink on white, or pale, under the colours of the change, (H, W, 3)."""
    ink = picture if kind != "positive" else 0.22 * picture
    paper = np.repeat(1 - ink[..., None], 3, axis=2)
    if kind == "none":
        return paper
    strong = np.clip(np.abs(change), 0, 1)[..., None]
    colour = np.where(change[..., None] >= 0, _KEPT if kind == "positive" else _ADDED, _TAKEN)
    return (1 - strong) * paper + strong * colour


def _plain(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    for side in axes.spines.values():
        side.set(visible=True, color="0.85")
