"""Figures of patches, and of what detectors make of them over several seeds (lecture 15)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import Tensor

from .arguments import check_count
from .plotting import COLOURS, WIDTH, Picture, _check_alt, _house_style

__all__ = ["dots", "patches"]

Pair = tuple[float, float]


@_house_style
def patches(
    pictures: Tensor,
    *,
    alt: str,
    below: Sequence[str] | None = None,
    framed: Sequence[bool] | None = None,
    boxes: Sequence[tuple[int, int, int, int]] | None = None,
    names: Sequence[str] | None = None,
    columns: int = 6,
    title: str = "",
) -> Picture:
    """Draw small colour pictures in rows, as large as the page allows.

    pictures  (N, 3, H, W) in [0, 1]
    below     a line below each
    framed    which have a vermilion frame, for what is counterfeit
    boxes     a region in each: top, left, bottom, right, in pixels
    names     of the rows, at their left
    columns   pictures in a row

    ValueError if pictures have another shape or a list another length.
    """
    _check_alt(alt)
    if pictures.dim() != 4 or pictures.shape[1] != 3 or not len(pictures):
        raise ValueError(f"pictures must have shape (N, 3, H, W), N at least 1, got {tuple(pictures.shape)}")
    for name, given in (("below", below), ("framed", framed), ("boxes", boxes)):
        if given is not None and len(given) != len(pictures):
            raise ValueError(f"{name} must have one entry for each of {len(pictures)} pictures, got {len(given)}")
    check_count("columns", columns)
    rows = -(-len(pictures) // columns)
    if names is not None and len(names) != rows:
        raise ValueError(f"names must have one entry for each of {rows} rows, got {len(names)}")
    side = min(1.55, (WIDTH - (1.4 if names else 0)) / columns)
    figure = Figure(
        figsize=(
            side * columns + (1.4 if names else 0),
            rows * (side + (0.25 if below else 0)) + (0.45 if title else 0),
        ),
        layout="constrained",
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    for at, axes in enumerate(grid.flat):
        axes.set(xticks=[], yticks=[])
        if at >= len(pictures):
            axes.set_axis_off()
            continue
        axes.imshow(pictures[at].movedim(0, -1).cpu().numpy().clip(0, 1), interpolation="nearest")
        fake = framed is not None and framed[at]
        axes.spines[:].set(visible=True, color=COLOURS[1] if fake else "0.6", linewidth=4 if fake else 0.8)
        if below:
            axes.set_xlabel(below[at], fontsize=10, labelpad=3)
        if boxes is not None:
            top, left, bottom, right = boxes[at]
            shape = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, ec="white", lw=2.5)
            axes.add_patch(shape)
            axes.add_patch(Rectangle(shape.get_xy(), right - left, bottom - top, fill=False, ec="black", lw=1))
        if names is not None and at % columns == 0:
            axes.set_ylabel(names[at // columns], rotation=0, ha="right", va="center", fontsize=11, labelpad=8)
    if title:
        figure.suptitle(title, fontsize=14, fontweight="bold")
    return Picture(figure, alt)


@_house_style
def dots(
    panels: Mapping[str, Mapping[str, Mapping[str, Pair]]],
    *,
    alt: str,
    xlabel: str,
    chance: float | None = None,
    limits: Pair | None = None,
    title: str = "",
) -> Picture:
    """Draw means with their intervals: panels side by side, one row for each group, one colour for each name.

    panels  title of a panel to its rows, row to its dots, dot to (mean, half width): {"trained in colour": {"nearest": {"in
            colour": (0.95, 0.02), "in gray": (0.88, 0.04)}}}
    chance  where a dashed line stands
    limits  ends of the axis, the same for all panels

    ValueError if there is nothing to draw.
    """
    _check_alt(alt)
    if not panels or not all(panels.values()):
        raise ValueError("panels must hold at least one panel with one row, got none")
    rows = list(next(iter(panels.values())))
    if any(list(of_rows) != rows for of_rows in panels.values()):
        raise ValueError(f"panels must have the same rows, got {[list(of_rows) for of_rows in panels.values()]}")
    kinds = list(dict.fromkeys(kind for of_rows in panels.values() for row in of_rows.values() for kind in row))
    if len(kinds) > len(_MARKS):
        raise ValueError(f"panels must have at most {len(_MARKS)} kinds of dots, got {len(kinds)}")
    figure = Figure(figsize=(WIDTH, 0.85 + len(rows) * (0.16 * len(kinds) + 0.22)), layout="constrained")
    shared = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    colours = [COLOURS[at % len(COLOURS)] for at in (2, 1, 3, 0, 4)]
    for axes, (name, of_rows) in zip(shared, panels.items(), strict=True):
        for y, row in enumerate(rows):
            for number, kind in enumerate(kinds):
                if kind not in of_rows[row]:
                    continue
                middle, half = of_rows[row][kind]
                at = y + (number - (len(kinds) - 1) / 2) * 0.72 / max(len(kinds), 2)
                axes.errorbar(middle, at, xerr=half, fmt=_MARKS[number], ms=7, lw=2, color=colours[number], capsize=3)
        for y in range(len(rows) - 1):
            axes.axhline(y + 0.5, color="0.88", linewidth=1)
        if chance is not None:
            axes.axvline(chance, color="0.4", linestyle="--", linewidth=1)
        axes.set_title(name, fontsize=12)
        axes.set_xlabel(xlabel)
        axes.tick_params(axis="y", length=0)
        if limits is not None:
            axes.set_xlim(*limits)
    shared[0].set_yticks(range(len(rows)), rows, fontsize=11)
    shared[0].set_ylim(len(rows) - 0.45, -0.55)
    marks = [Line2D([], [], marker=_MARKS[n], ls="", ms=7, color=colours[n]) for n in range(len(kinds))]
    figure.legend(marks, kinds, loc="outside lower center", ncols=min(len(kinds), 5), frameon=False, fontsize=11)
    if title:
        figure.suptitle(title, fontsize=14, fontweight="bold", x=0.01, ha="left")
    return Picture(figure, alt, sharpness=2)


_MARKS = ("o", "s", "D", "^", "v")
