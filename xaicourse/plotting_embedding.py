"""Maps of many dimensions in two, and how far to trust them (lecture 01).

A map's axes mean nothing, so they have no ticks: what is drawn is who is near to whom. Colours run from orange (do not trust)
to blue (trust), told apart by colour-blind eyes, on one scale for all maps of a figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from . import embedding
from .arguments import check_count, kind
from .plotting import COLOURS, WIDTH, Picture, _check_alt, _check_finite, _check_image, _house_style

__all__ = ["agreement", "maps", "pictures", "top_regions", "tsne"]

_TRUST = LinearSegmentedColormap.from_list("trust", [COLOURS[1], "#f0c9a8", "#9fc5df", COLOURS[2]])


@_house_style
def maps(
    points: Mapping[str, Tensor],
    *,
    alt: str,
    values: Mapping[str, Tensor] | None = None,
    limits: tuple[float, float] = (0.5, 1.0),
    scale: str = "trustworthiness of each point (0.5: as on a random map)",
    labels: Mapping[str, Sequence[str]] | Sequence[str] | None = None,
    notes: Mapping[str, str] | None = None,
    columns: int = 3,
    title: str = "",
) -> Picture:
    """Draw maps side by side, one dot for each sample.

    points   the name of each map to its points, (N, 2)
    alt      text alternative, not empty
    values   the name of each map to a value for each point, (N,), which is its colour; None: all black
    limits   ends of the colour scale, one for all maps; values beyond them have the colour of the end
    scale    what the colours say, below the colour bar
    labels   what each point belongs to, for all maps or by name; every label is written once, in the middle of its points
    notes    the name of a map to what is written below it
    columns  maps in a row
    title    above all maps

    Raises TypeError or ValueError if an argument is not as above.
    """
    _check_alt(alt)
    check_count("columns", columns)
    if not points:
        raise ValueError("points must hold at least one map, got none")
    placed = {name: _check_points(f"points[{name!r}]", each) for name, each in points.items()}
    coloured = {
        name: _check_values(f"values[{name!r}]", values.get(name), len(each)) if values is not None else None
        for name, each in placed.items()
    }
    columns = min(columns, len(placed))
    rows = -(-len(placed) // columns)
    side = min(WIDTH / columns, 4.4)
    below = 0.35 if notes else 0.0
    figure = Figure(figsize=(WIDTH, rows * (side + below) + (0.7 if values else 0.35)), layout="constrained")
    norm = Normalize(*limits)
    panels = [figure.add_subplot(rows, columns, number + 1) for number in range(len(placed))]
    for axes, (name, each) in zip(panels, placed.items(), strict=True):
        own = labels.get(name) if isinstance(labels, Mapping) else labels
        _dots(axes, each, coloured[name], norm, own, size=min(40.0, 3400 * side / 3 / len(each) ** 0.9))
        axes.set_title(name)
        if notes and name in notes:
            axes.set_xlabel(notes[name], fontsize=10)
    if values is not None:
        bar = figure.colorbar(
            ScalarMappable(norm, _TRUST), ax=panels, location="bottom", shrink=0.5, aspect=40, extend="both", pad=0.02
        )
        bar.set_label(scale)
    if title:
        figure.suptitle(title, fontsize=14, fontweight="bold")
    return Picture(figure, alt)


@_house_style
def pictures(
    points: Tensor,
    images: Tensor,
    *,
    alt: str,
    values: Tensor | None = None,
    limits: tuple[float, float] = (0.5, 1.0),
    scale: str = "frames: trustworthiness of each point (0.5: as on a random map)",
    size: float = 0.055,
    title: str = "",
) -> Picture:
    """Draw a map with a small picture in the place of each sample.

    points  (N, 2)
    images  (N, 3, h, w), colours in [0, 1]; or (N, 1, h, w), ink in [0, 1]: black where it is 1, nothing where it is 0
    alt     text alternative, not empty
    values  a value for each sample, (N,), which is the colour of its frame; None: no frames
    limits, scale  of the values, as in `maps`
    size    height of a picture, as a share of that of the map
    title   above the map

    Raises TypeError or ValueError if an argument is not as above.
    """
    _check_alt(alt)
    placed = _check_points("points", points)
    if (
        not isinstance(images, Tensor)
        or images.dim() != 4
        or len(images) != len(placed)
        or images.shape[1] not in (1, 3)
    ):
        raise ValueError(
            f"images must be one for each of the {len(placed)} points, (N, 1 or 3, h, w), got {kind(images)}"
        )
    if not 0 < size < 1:
        raise ValueError(f"size must lie between 0 and 1, got {size}")
    coloured = None if values is None else _check_values("values", values, len(placed))
    low, high = placed.min(0), placed.max(0)
    placed = (placed - low) / (high - low).clip(min=1e-12)
    figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
    axes = figure.add_subplot()
    tall, wide = size, size * 5 / WIDTH
    norm = Normalize(*limits)
    for number, ((x, y), image) in enumerate(zip(placed, images, strict=True)):
        box = (x - wide / 2, x + wide / 2, y - tall / 2, y + tall / 2)
        axes.imshow(_with_ink(image), extent=box, aspect="auto", zorder=2 + number, interpolation="antialiased")
        if coloured is not None:
            colour = _TRUST(norm(coloured[number]))
            edge = Rectangle((box[0], box[2]), wide, tall, fill=False, ec=colour, lw=1.8, zorder=2 + number)
            axes.add_patch(edge)
    axes.set(xlim=(-wide, 1 + wide), ylim=(-tall, 1 + tall))
    axes.set_axis_off()
    if coloured is not None:
        bar = figure.colorbar(
            ScalarMappable(norm, _TRUST), ax=axes, location="bottom", shrink=0.5, aspect=40, extend="both", pad=0.01
        )
        bar.set_label(scale)
    if title:
        axes.set_title(title)
    return Picture(figure, alt)


@_house_style
def top_regions(
    image: Tensor, answers: Mapping[str, Mapping[str, Tensor]], *, alt: str, top: int = 8, title: str = ""
) -> Picture:
    """Draw the photograph once for each answer, with only the regions that matter most to it in full colour.

    image    the photograph as displayed, (3, H, W), values in [0, 1]
    answers  the name of each row, such as "asked once", to the names of its answers and their values, (h, w): one for each
             region, larger where it matters more; h divides H and w divides W
    alt      text alternative, not empty
    top      how many regions are shown: at least 1, at most h w
    title    above all

    Raises TypeError or ValueError if an argument is not as above.
    """
    _check_alt(alt)
    pixels = np.asarray(_check_image(image))
    rows = [
        (row, name, _check_finite(f"answers[{row!r}][{name!r}]", each))
        for row, columns in answers.items()
        for name, each in columns.items()
    ]
    if not rows:
        raise ValueError("answers must hold at least one, got none")
    width = max(len(columns) for columns in answers.values())
    side = WIDTH / width
    figure = Figure(figsize=(WIDTH, len(answers) * side + 0.7), layout="constrained")
    grid = figure.add_gridspec(len(answers), width)
    for row, name, each in rows:
        tall, wide = pixels.shape[:2]
        if each.ndim != 2 or tall % each.shape[0] or wide % each.shape[1]:
            raise ValueError(
                f"answers[{row!r}][{name!r}] must have shape (h, w) that divides {tall} and {wide}, got {each.shape}"
            )
        check_count("top", top, most=each.size, most_is="the number of regions")
        place = list(answers).index(row), list(answers[row]).index(name)
        axes = figure.add_subplot(grid[place])
        high, broad = tall // each.shape[0], wide // each.shape[1]
        best = np.argsort(-each, axis=None, kind="stable")[:top]
        shown = 0.25 * pixels + 0.75
        for cell in best:
            y, x = np.unravel_index(cell, each.shape)
            part = np.s_[y * high : (y + 1) * high, x * broad : (x + 1) * broad]
            shown[part] = pixels[part]
            corner = (x * broad - 0.5, y * high - 0.5)
            axes.add_patch(Rectangle(corner, broad, high, fill=False, ec=COLOURS[1], lw=2))
        axes.imshow(shown, cmap="gray", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        if place[0] == 0:
            axes.set_title(name)
        if place[1] == 0:
            axes.set_ylabel(row, fontsize=12)
    if title:
        figure.suptitle(title, fontsize=14, fontweight="bold")
    return Picture(figure, alt)


@_house_style
def agreement(values: Mapping[str, Tensor], names: Sequence[str], *, alt: str, title: str = "", scale: str) -> Picture:
    """Draw tables of how far answers agree: a row and a column for each, its number in every cell.

    values  what is compared, such as "features", to a table (n, n) of correlations; on the diagonal a control: an answer with
            itself, given again
    names   of the n answers
    alt     text alternative, not empty
    scale   what the numbers are, below the colour bar

    Raises TypeError or ValueError if an argument is not as above.
    """
    _check_alt(alt)
    tables = {name: _check_finite(f"values[{name!r}]", table) for name, table in values.items()}
    for name, table in tables.items():
        if table.shape != (len(names), len(names)):
            raise ValueError(f"values[{name!r}] must have shape {(len(names), len(names))}, got {table.shape}")
    figure = Figure(figsize=(WIDTH, WIDTH / len(tables) + 0.9), layout="constrained")
    panels = figure.subplots(1, len(tables), squeeze=False)[0]
    norm = Normalize(-1, 1)
    colours = LinearSegmentedColormap.from_list("agreement", [COLOURS[1], "white", COLOURS[2]])
    for place, (axes, (name, table)) in enumerate(zip(panels, tables.items(), strict=True)):
        axes.imshow(table, cmap=colours, norm=norm)
        for row, column in np.ndindex(*table.shape):
            number = f"{table[row, column]:+.2f}".replace("-", "−")
            ink = "white" if abs(table[row, column]) > 0.65 else "black"
            weight = "bold" if row == column else "normal"
            axes.text(column, row, number, ha="center", va="center", color=ink, fontsize=13, fontweight=weight)
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axes.set_yticks(range(len(names)), names if place == 0 else [""] * len(names))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(name)
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=list(panels), location="bottom", shrink=0.5, aspect=40)
    bar.set_ticks([-1, -0.5, 0, 0.5, 1])
    bar.set_label(scale)
    if title:
        figure.suptitle(title, fontsize=14, fontweight="bold")
    return Picture(figure, alt)


@_house_style
def tsne(
    features: Tensor,
    labels: Sequence[str] | None = None,
    *,
    perplexity: float = 30.0,
    seed: int = 0,
    samples: int = 200,
    alt: str = "",
    title: str = "",
) -> Picture:
    """Draw the t-SNE of the first samples with a random start, each point by its trustworthiness, and the distortion beside it.

    features    (N, D)
    labels      what each sample belongs to
    perplexity  at least 1, below the number of samples that are drawn
    seed        of the start
    samples     how many of the features are drawn: at least 5, at most N
    alt         text alternative; empty: one that says the settings and the numbers

    The bars are the trustworthiness, the continuity and the stress of this map and, as thin lines, those of PCA and of the same
    map with its points permuted; neighbourhoods are of 10 samples, or of fewer if there are less than 25.

    Raises TypeError or ValueError if an argument is not as above.
    """
    if not isinstance(features, Tensor):
        raise TypeError(f"features must be a Tensor, got {type(features).__name__}")
    check_count("samples", samples, least=5, most=len(features), most_is="how many there are")
    x = features[:samples].detach().double().cpu()
    drawn = embedding.embed(x, perplexity=perplexity, start="random", generator=torch.Generator().manual_seed(seed))
    others = {
        "PCA": embedding.embed(x, "pca"),
        "permuted": drawn[torch.randperm(samples, generator=torch.Generator().manual_seed(seed))],
    }
    k = min(10, (samples - 1) // 2 - 1)
    trust = embedding.trustworthiness(x, drawn, k=k, per_point=True)
    measured = {"t-SNE": _distortion(x, drawn, k)} | {name: _distortion(x, each, k) for name, each in others.items()}
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    grid = figure.add_gridspec(1, 2, width_ratios=[1.5, 1])
    axes = figure.add_subplot(grid[0])
    norm = Normalize(0.5, 1)
    _dots(axes, drawn.numpy(), trust.numpy(), norm, labels[:samples] if labels else None, size=34)
    groups = int(embedding.clusters(drawn).max()) + 1
    axes.set_title(title or f"perplexity {perplexity:g}, seed {seed}, {samples} samples")
    apart = "1 group that is" if groups == 1 else f"{groups} groups that are"
    axes.set_xlabel(f"{apart} apart; in the original space {int(embedding.clusters(x).max()) + 1}")
    bar = figure.colorbar(ScalarMappable(norm, _TRUST), ax=axes, location="left", shrink=0.8, extend="both")
    bar.set_label("trustworthiness of each point")
    _bars(figure.add_subplot(grid[1]), measured)
    said = ", ".join(f"{name} {value:.2f}" for name, value in measured["t-SNE"].items())
    return Picture(figure, alt or f"A t-SNE of {samples} samples, perplexity {perplexity:g}, seed {seed}: {said}.")


def _distortion(x: Tensor, drawn: Tensor, k: int) -> dict[str, float]:
    return {
        "trustworthiness": float(embedding.trustworthiness(x, drawn, k=k)),
        "continuity": float(embedding.continuity(x, drawn, k=k)),
        "stress": float(embedding.stress(x, drawn)),
    }


def _bars(axes: Axes, measured: Mapping[str, Mapping[str, float]]) -> None:
    names = list(measured["t-SNE"])
    styles = {"t-SNE": COLOURS[2], "PCA": COLOURS[5], "permuted": "0.6"}
    high = 0.8 / len(measured)
    for place, (name, row) in enumerate(measured.items()):
        at = np.arange(len(names)) + (place - 1) * high
        axes.barh(at, [row[each] for each in names], 0.92 * high, color=styles[name], label=name)
        for y, each in zip(at, names, strict=True):
            axes.text(row[each] + 0.02, y, f"{row[each]:.2f}", va="center", fontsize=10)
    axes.set_yticks(
        range(len(names)),
        ["trustworthiness\n(more is better)", "continuity\n(more is better)", "stress\n(less is better)"],
    )
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.18), xticks=[0, 0.5, 1])
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.4, -0.08), ncols=3, fontsize=10)


def _dots(
    axes: Axes,
    points: np.ndarray,
    values: np.ndarray | None,
    norm: Normalize,
    labels: Sequence[str] | None,
    size: float,
) -> None:
    plain = {"color": "black" if labels is None else "0.6"}
    colour = plain if values is None else {"c": values, "cmap": _TRUST, "norm": norm}
    axes.scatter(points[:, 0], points[:, 1], s=size, linewidths=0, alpha=0.9, **colour)
    if labels is not None:
        if len(labels) != len(points):
            raise ValueError(f"labels must be one for each of the {len(points)} points, got {len(labels)}")
        for name in dict.fromkeys(labels):
            own = points[[each == name for each in labels]]
            x, y = own[np.linalg.norm(own - np.median(own, 0), axis=1).argmin()]  # on a point, not between two parts
            outline = [patheffects.withStroke(linewidth=2.5, foreground="white")]
            axes.text(x, y, name, ha="center", va="center", fontsize=12, fontweight="bold", path_effects=outline)
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[:].set(visible=True, color="0.8")


def _with_ink(image: Tensor) -> np.ndarray:
    if len(image) == 3:
        return np.asarray(_check_image(image))
    ink = np.asarray(_check_image(image[0]))
    return np.dstack([np.zeros((*ink.shape, 3)), ink])


def _check_points(name: str, points: Tensor) -> np.ndarray:
    if not isinstance(points, Tensor) or points.dim() != 2 or points.shape[1] != 2 or not len(points):
        raise ValueError(f"{name} must be the points of a map, a tensor (N, 2), got {kind(points)}")
    return np.asarray(_check_finite(name, points))


def _check_values(name: str, values: Tensor | None, count: int) -> np.ndarray:
    if not isinstance(values, Tensor) or values.shape != (count,):
        raise ValueError(f"{name} must have a value for each of the {count} points, ({count},), got {kind(values)}")
    return np.asarray(_check_finite(name, values))
